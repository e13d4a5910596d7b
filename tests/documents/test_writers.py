"""Documents written and read back, and pages for people."""

import json
import re

import PIL.Image
import pytest

from pardalis.documents import (
    Document,
    Image,
    Region,
    Rejection,
    Text,
    from_data_uri,
    open_image,
    read_html,
    read_jsonl,
    to_html,
    to_markdown,
    write_jsonl,
)
from pardalis.errors import DataError


def owl(red_png):
    segments = (
        Text("An owl: ü\n", "user"),
        Image(PIL.Image.new("RGB", (16, 12), "red"), "red", "assistant"),
        Image(red_png),
    )
    return Document(segments, "owl", "CC0")


def test_jsonl_round_trip(tmp_path, red_png):
    document = owl(red_png)
    path = tmp_path / "out" / "docs.jsonl"
    plain = Document((Text("b"),), "plain")
    assert write_jsonl(iter([document, plain]), path, tmp_path / "images") == 2
    back, plain_back = read_jsonl(path)
    assert plain_back == plain
    assert (back.name, back.licence, back.text) == ("owl", "CC0", "An owl: ü\n")
    assert [segment.role for segment in back.segments] == ["user", "assistant", None]
    assert [image.alt for image in back.images] == ["red", ""]
    for image, original in zip(back.images, document.images, strict=True):
        assert open_image(image.source) == open_image(original.source)
    assert len(list((tmp_path / "images").iterdir())) == 1  # equal images are stored once


def test_weights_round_trip(tmp_path, red_png):
    document = Document((Text("q", weight=0.0), Image(red_png, weight=0.5), Text("a")), "owl")
    write_jsonl([document], tmp_path / "docs.jsonl", tmp_path)
    assert (tmp_path / "docs.jsonl").read_text().count("weight") == 2
    (back,) = read_jsonl(tmp_path / "docs.jsonl")
    assert [segment.weight for segment in back.segments] == [0.0, 0.5, 1.0]


def test_regions_round_trip(tmp_path, red_png):
    regions = (Region((0.5, 0.0, 3.0, 2.0), "face", 2.5), Region((0.0, 0.0, 1.0, 1.0)))
    document = Document((Image(red_png, regions=regions), Image(red_png)), "owl")
    write_jsonl([document], tmp_path / "docs.jsonl", tmp_path)
    (back,) = read_jsonl(tmp_path / "docs.jsonl")
    assert [image.regions for image in back.images] == [regions, ()]


def test_image_paths_are_relative_to_the_jsonl_file(tmp_path, red_png):
    write_jsonl([owl(red_png)], tmp_path / "a/docs.jsonl", tmp_path / "b")
    record = json.loads((tmp_path / "a/docs.jsonl").read_text())
    assert re.fullmatch(r"\.\./b/[0-9a-f]{16}\.png", record["segments"][1]["image"])
    (tmp_path / "a").rename(tmp_path / "c")
    assert not isinstance(next(read_jsonl(tmp_path / "c/docs.jsonl")), Rejection)


def test_a_broken_image_leaves_the_previous_file_whole(tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_text("previous")
    with pytest.raises(DataError, match="not an image of a kind"):
        write_jsonl([Document((Image(b"broken"),))], path, tmp_path)
    assert path.read_text() == "previous"
    assert list(tmp_path.iterdir()) == [path]


def test_html_is_escaped_self_contained_and_readable_again(tmp_path, red_png):
    segments = (
        Text("1 < 2 & {x}\n\n second ", "user"),
        Text("third", "user"),
        Image(red_png, 'the "owl"', "assistant"),
    )
    page = to_html(Document(segments, "<owl>", "CC <0>"))
    assert "<title>&lt;owl&gt;</title>" in page
    assert "<p>1 &lt; 2 &amp; {x}</p>\n<p>second</p>\n<p>third</p>" in page
    assert page.count('class="role">user') == page.count('class="role">assistant') == 1
    assert "<footer>CC &lt;0&gt;</footer>" in page
    (uri,) = re.findall('src="([^"]*)"', page)
    assert open_image(from_data_uri(uri)) == open_image(red_png)

    (tmp_path / "page.html").write_text(page)
    document, footer, *_ = read_html(tmp_path)
    assert "CC <0>" in footer.reason
    assert document.images[0].alt == 'the "owl"'
    assert "1 < 2 & {x}\nsecond\nthird" in document.text


def test_html_without_name_and_licence():
    page = to_html(Document((Text("a"),)))
    assert "<title>Document</title>" in page
    assert "<footer>" not in page


def test_markdown(tmp_path, red_png):
    document = Document((Text("# Owl\n"), Image(red_png, "an [owl]"), Text("\nIt hunts.\n")))
    text = to_markdown(document, tmp_path)
    match = re.fullmatch(r"# Owl\n\n!\[an \\\[owl\\\]\]\((\w+\.png)\)\n\nIt hunts\.\n", text)
    assert match is not None
    assert open_image(tmp_path / match[1]) == open_image(red_png)
