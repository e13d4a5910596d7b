"""HTML pages: text and figures in document order, and only what belongs to the article."""

import base64

import PIL.Image
import pytest

from pardalis.documents import (
    READERS,
    Document,
    Image,
    Omission,
    PageOptions,
    Rejection,
    Text,
    read_html,
)
from pardalis.errors import DataError


def read(tmp_path, body, **options):
    (tmp_path / "page.html").write_text(f"<html><head><title>T</title></head><body>{body}</body>")
    return kept(read_html(tmp_path / "page.html", PageOptions(**options)))


def kept(items):
    return [item for item in items if not isinstance(item, Omission)]


def text_of(tmp_path, body):
    (document,) = read(tmp_path, body)
    return document.text


def test_text_and_images_come_in_order(tmp_path, red_file):
    body = """
      <h1>The  owl</h1>
      <p>It <b>hunts</b> at
         night. <img src="red.png" alt=" A
         red owl "> And sleeps.</p>
      <ul><li>wings</li><li>eyes</li></ul>"""
    assert read(tmp_path, body) == [
        Document(
            (
                Text("The owl\nIt hunts at night. "),
                Image(red_file, "A red owl"),
                Text(" And sleeps.\nwings\neyes"),
            ),
            "page.html",
        )
    ]


def test_a_figure_between_paragraphs_keeps_the_line_breaks(tmp_path, red_file):
    body = '<p>one</p><figure><img src="red.png"><img src="red.png"></figure><p>two</p>'
    (document,) = read(tmp_path, body)
    assert document.segments == (
        Text("one\n"),
        Image(red_file),
        Image(red_file),
        Text("\ntwo"),
    )


@pytest.mark.parametrize("tag", ["script", "style", "nav", "header", "footer", "noscript"])
def test_what_surrounds_an_article_is_dropped(tmp_path, tag):
    assert text_of(tmp_path, f"<p>a</p><{tag}>not<b>this</b></{tag}>tail<p>b</p>") == "a\ntail\nb"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a<br>b<br><br>c", "a\nb\nc"),
        ("<p>a <!-- hidden -->b</p><?pi x?>", "a b"),
        ("<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>", "a\tb\n1\t2"),
        ("<p>x</p><pre>if a:\n    b\n\n<b>c</b></pre><p>  y</p>", "x\nif a:\n    b\n\nc\ny"),
        ("fish &amp; chips&nbsp;&lt;3", "fish & chips <3"),
        ("<p>a</p>\n\n  <div><div>  b </div></div>  ", "a\nb"),
        ("un<i>believ</i>able", "unbelievable"),
    ],
)
def test_whitespace_and_blocks(tmp_path, body, expected):
    assert text_of(tmp_path, body) == expected


def test_images_declared_small_are_dropped(tmp_path, red_png):
    (tmp_path / "a.png").write_bytes(red_png)
    body = """x <img src="a.png" width="47" alt="1"> <img src="a.png" height="20px" alt="2">
      <img src="a.png" width="48" alt="3"> <img src="a.png" width="50%" alt="4">"""
    (document,) = read(tmp_path, body)
    assert [image.alt for image in document.images] == ["3", "4"]
    (document,) = read(tmp_path, body, declared_side=0, min_side=0)
    assert len(document.images) == 4


def test_images_of_trackers_and_layouts_are_dropped(tmp_path, encode):
    dot = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
    for name, size in {"dot": (1, 1), "rule": (600, 2), "least": (8, 8)}.items():
        (tmp_path / f"{name}.png").write_bytes(encode(PIL.Image.new("RGB", size)))
    body = f"""words <img src="data:image/gif;base64,{dot}"> <img src="dot.png">
      <img src="rule.png" width="100%"> <img src="least.png">"""
    (document,) = read(tmp_path, body)
    assert document.images == (Image(tmp_path / "least.png"),)
    (document,) = read(tmp_path, body, declared_side=0, min_side=0)
    assert len(document.images) == 4


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("my%20owl.png?size=2#top", "my owl.png"),
        ("my owl.png", "my owl.png"),
        ("100%25.png", "100%.png"),
        ("a%20b.png", "a%20b.png"),
        ("a.png?v=1", "a.png?v=1"),
        ("sub/../a.png", "a.png"),
        ("file:a.png", "a.png"),
        ("/a.png", "a.png"),
    ],
)
def test_image_addresses(tmp_path, red_png, source, file):
    (tmp_path / "sub").mkdir()
    (tmp_path / file).write_bytes(red_png)
    (document,) = read(tmp_path, f'<img src="{source}">')
    assert document.images[0].source.resolve() == tmp_path / file


def test_an_address_from_the_root_starts_at_the_folder(tmp_path, red_png):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.png").write_bytes(red_png)
    (tmp_path / "deep/page.htm").write_text('<img src="/a.png">')
    (document,) = read_html(tmp_path)
    assert document == Document((Image(tmp_path / "a.png"),), "deep/page.htm")


def test_data_uris(tmp_path, red_png):
    uri = f"data:image/png;base64,{base64.b64encode(red_png).decode()}"
    (document,) = read(tmp_path, f'<img src="{uri}" alt="red">')
    assert document.segments == (Image(red_png, "red"),)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("https://example.org/a.png", "remote-image"),
        ("//example.org/a.png", "remote-image"),
        ("http://[", "missing-image"),
        ("no.png", "missing-image"),
        ("", "missing-image"),
        ("a" * 5000, "missing-image"),
        ("drawing.SVG?x", "missing-image"),
        ("data:image/svg+xml,%3Csvg%3E", "vector-image"),
        ("data:image/png;base64,b3dsc", "bad-base64"),
        ("data:image/gif;base64,R0lGODlhAQABAIA=", "unreadable-image"),
        ("data:image/png;base64,", "unreadable-image"),
        ("empty.png", "unreadable-image"),
        ("cut.png", "unreadable-image"),
        ("text.png", "unreadable-image"),
    ],
)
def test_a_page_is_kept_without_an_image_that_cannot_be_used(tmp_path, red_png, source, kind):
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(red_png[:20])  # in its header
    (tmp_path / "text.png").write_text("<html>404</html>")
    rejection, document = read(tmp_path, f'<p>words <img src="{source}" alt="gone"></p>')
    assert isinstance(rejection, Rejection)
    assert rejection.kind == kind
    assert (
        rejection.where
        == f"{tmp_path / 'page.html'}: {source[:40] if 'base64' in source else source}"
    )
    assert document == Document((Text("words"),), "page.html")


def test_a_folder_is_read_in_sorted_order_and_bad_pages_are_rejected(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/z.html").write_text("<p>z</p>")
    (tmp_path / "a.XHTML").write_text("<p>a</p>")
    (tmp_path / "empty.html").touch()
    (tmp_path / "frames.html").write_text("<frameset><frame></frameset>")
    (tmp_path / "hollow.html").write_text("<body><nav>menu</nav></body>")
    (tmp_path / "gone.html").symlink_to(tmp_path / "nowhere")
    (tmp_path / "readme.txt").write_text("not a page")
    gone, first, *rejections, last = kept(read_html(tmp_path))
    assert (first.name, last.name) == ("a.XHTML", "b/z.html")
    assert (gone.where.rpartition("/")[2], gone.kind) == ("gone.html", "missing-file")
    assert [(r.where.rpartition("/")[2], r.kind) for r in rejections] == [
        ("empty.html", "unreadable-page"),
        ("frames.html", "empty-document"),
        ("hollow.html", "empty-document"),
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("<p>Größe</p>".encode(), "Größe"),
        ('<meta charset="latin-1"><p>Größe</p>'.encode("latin-1"), "Größe"),
        ('<meta charset="windows-1251"><p>сова</p>'.encode("cp1251"), "сова"),
    ],
)
def test_encodings(tmp_path, content, expected):
    (tmp_path / "page.html").write_bytes(content)
    (document,) = read_html(tmp_path / "page.html")
    assert document.text == expected


def test_a_deeply_nested_page_is_read(tmp_path):
    assert text_of(tmp_path, "<div>" * 200 + "deep" + "</div>" * 200) == "deep"


def test_a_root_that_does_not_exist(tmp_path):
    with pytest.raises(DataError, match="no does not exist; an HTML page or a folder of them"):
        read_html(tmp_path / "no")


def test_readers_have_names():
    assert READERS["html"] is read_html
