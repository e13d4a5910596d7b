"""Pages of PDF, by either library."""

import PIL.Image
import pytest
from pdf_files import pdf_file

from pardalis.data.source import SourceConfig, read_source
from pardalis.documents import Document, Image, Rejection, Text, open_image

RED = PIL.Image.new("RGB", (64, 48), "red")
BLUE = PIL.Image.new("RGB", (64, 48), "blue")
DOT = PIL.Image.new("RGB", (4, 4), "blue")


@pytest.fixture(params=["pypdfium2", "pymupdf"])
def library(request):
    pytest.importorskip(request.param, reason="the library is the user's choice")
    return request.param


def read(path, **options):
    return list(read_source(SourceConfig(name="a", reader="pdf", path=path, options=options)))


def shown(segment):
    if isinstance(segment, Text):
        return segment.text
    return open_image(segment.source).getpixel((5, 5))


def test_a_page_is_its_text_with_images_in_place(tmp_path, library):
    parts = ["An owl sits here.", RED, "It is white.", "It flies.", BLUE]
    (tmp_path / "owls.pdf").write_bytes(pdf_file([parts, ["A page of text."], []]))
    first, second, third = read(tmp_path, library=library)
    assert [shown(each) for each in first.segments] == [
        "An owl sits here.", (255, 0, 0), "It is white.\nIt flies.", (0, 0, 255),
    ]  # fmt: skip
    assert (first.name, second.name) == ("owls.pdf:1", "owls.pdf:2")
    assert second.segments == (Text("A page of text."),)
    assert isinstance(third, Rejection) and third.kind == "empty-document"


def test_an_image_stands_in_its_column(tmp_path, library):
    left = ["Left one.", "Left two.", "Left three."]
    right: list = [("Right one.", 220.0), (RED, 220.0), ("Right two.", 220.0)]
    (tmp_path / "a.pdf").write_bytes(pdf_file([[*left, *right]]))
    [document] = read(tmp_path, library=library)
    words = [shown(each) for each in document.segments]
    assert words == ["\n".join([*left, "Right one."]), (255, 0, 0), "Right two."]


def test_a_page_as_it_looks(tmp_path, library):
    (tmp_path / "a.pdf").write_bytes(pdf_file([["An owl.", RED]]))
    [document] = read(tmp_path / "a.pdf", library=library, pages="rendered", dots_per_inch=36)
    image, text = document.segments
    assert isinstance(image, Image) and open_image(image.source).size == (200, 300)
    assert text == Text("An owl.")


def test_small_images_are_counted(tmp_path, library):
    (tmp_path / "a.pdf").write_bytes(pdf_file([["An owl.", DOT]]))
    small, document = read(tmp_path, library=library)
    assert small.kind == "small-image" and isinstance(document, Document) and not document.images
    [document] = read(tmp_path, library=library, min_side=1)
    assert len(document.images) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no PDF"),
        (b"%PDF-1.7\n", "no PDF"),
        (b"\x00" * 4096, "no PDF"),
        (b"PK\x03\x04", "no PDF"),
    ],
)
def test_what_is_no_pdf_is_told(tmp_path, library, content, reason):
    (tmp_path / "a.pdf").write_bytes(content)
    [rejection] = read(tmp_path, library=library)
    assert rejection.kind == "unreadable-file" and reason in rejection.reason
