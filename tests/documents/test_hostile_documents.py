"""Documents that somebody else made take bounded time and memory, and delete nothing."""

import io
import os
import struct
import zlib

import hostile
import PIL.Image
import pytest

from pardalis import files
from pardalis.documents import READERS, Document, Omission, Rejection, open_image
from pardalis.errors import DataError

HOLES = 1 << 40  # bytes of a file of holes, which takes no space on a disk
TEXT = {"chat": "a.jsonl", "jsonl": "a.jsonl", "folder": "a.txt", "html": "a.html"}


@pytest.fixture(autouse=True)
def bounded():
    with hostile.limits(seconds=30):
        yield


def only(reader, path) -> Document | Rejection:
    [item] = (each for each in READERS[reader](path) if not isinstance(each, Omission))
    return item


def attributes(n: int) -> str:
    return "<p " + " ".join(f"a{i}=1" for i in range(n)) + ">An owl.</p>"


@pytest.mark.parametrize("reader", TEXT)
def test_a_file_of_holes_is_rejected(tmp_path, reader, monkeypatch):
    monkeypatch.setattr(files, "MOST_BYTES", 1 << 16)  # of a line
    path = tmp_path / TEXT[reader]
    with open(path, "wb") as file:
        file.truncate(HOLES)
    if reader == "folder":
        PIL.Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    item, *rest = READERS[reader](tmp_path if reader == "folder" else path)
    assert [each.name for each in rest] == (["a.png"] if reader == "folder" else [])
    assert isinstance(item, Rejection)
    assert item.kind in ("long-line", "unreadable-page", "bad-caption")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "not a regular file"),
        (
            lambda path: os.symlink("/dev/zero", path),
            "It is a link to '/dev/zero', which lies outside",
        ),
    ],
    ids=["pipe", "device"],
)
def test_a_page_that_is_no_file_is_rejected(tmp_path, make, reason):
    make(tmp_path / "a.html")
    item = only("html", tmp_path)
    assert isinstance(item, Rejection) and reason in item.reason


def test_links_do_not_make_a_folder_endless(tmp_path):
    PIL.Image.new("RGB", (9, 9)).save(tmp_path / "owl.png")
    for name in ("a", "b"):
        os.symlink(".", tmp_path / name)
    for depth in range(40):  # two ways to each of them
        (tmp_path / f"d{depth}").mkdir()
        for name in ("a", "b"):
            os.symlink(f"../d{depth + 1}", tmp_path / f"d{depth}" / name)
    assert only("folder", tmp_path).name == "owl.png"


def test_folders_below_the_longest_path_are_not_seen(tmp_path):
    PIL.Image.new("RGB", (9, 9)).save(tmp_path / "owl.png")
    place = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=place)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    assert only("folder", tmp_path).name == "owl.png"


def test_a_declared_width_of_many_spaces(tmp_path):
    page = tmp_path / "a.html"
    page.write_text(f'<p>An owl.</p><img src="a.png" width="1{" " * 1_000_000}x">')
    items = [*READERS["html"](page)]
    assert [item.kind for item in items if isinstance(item, Rejection)] == ["missing-image"]


@pytest.mark.parametrize(
    "page",
    [
        attributes(300_000),
        attributes(300_000).replace("=1 ", '=""'),
        "<!-->" + attributes(300_000),
        b"\xff\xfe" + attributes(300_000).encode("utf-16-le"),
    ],
    ids=["plain", "quoted", "comment", "utf-16"],
)
def test_a_tag_of_many_attributes_is_refused(tmp_path, page):
    path = tmp_path / "a.html"
    path.write_bytes(page if isinstance(page, bytes) else page.encode())
    item = only("html", path)
    assert isinstance(item, Rejection) and "more than 2,000 attributes" in item.reason


def test_a_long_page_of_many_tags_is_read(tmp_path):
    path = tmp_path / "a.html"
    wrapped = "\n".join(["QUJD" * 19] * 5000)  # base64 with line feeds is one attribute
    tags = f'<img width="9" src="data:image/png;base64,{wrapped}">' + attributes(1000)
    path.write_text(tags + "<script>" + "x = [1, 2 / 3];\n" * 9000 + "</script>")
    assert only("html", path).text == "An owl."


# ── images ───────────────────────────────────────────────────────────────────────────────────────


def test_an_image_of_holes_is_refused(tmp_path):
    path = tmp_path / "a.png"
    with open(path, "wb") as file:
        file.truncate(HOLES)
    with pytest.raises(DataError, match=rf"a\.png cannot be read: it has {HOLES} bytes, too many"):
        open_image(path)


@pytest.mark.parametrize("between", [b"", b"\xff\xe1\x00\x04\xff\xd9"], ids=["", "false end"])
def test_a_jpeg_of_many_scans_is_refused(between):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8000, 8000)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    many = content[:last] + (content[last:-2] + between) * 3000 + content[-2:]
    with pytest.raises(DataError, match="has more than 200 scans"):
        open_image(many)


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 1}])
def test_scans_of_an_ordinary_jpeg_are_few(options, noise_image):
    buffer = io.BytesIO()
    noise_image.save(buffer, "JPEG", **options)
    assert open_image(buffer.getvalue()).size == noise_image.size


@pytest.fixture
def noise_image():
    return PIL.Image.effect_noise((512, 512), 50).convert("RGB")


def test_an_icon_that_hides_a_large_image_is_refused_before_it_is_decoded():
    header = b"IHDR" + struct.pack(">IIBBBBB", 13_000, 13_000, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(b""), b"IEND")
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each))
        for each in chunks
    )
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(content), 22)
    with pytest.raises(DataError, match="more than 80 million pixels"):
        open_image(struct.pack("<HHH", 0, 1, 1) + entry + content)
