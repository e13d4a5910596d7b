"""Pages as people publish them: what a browser shows of them is what is read."""

import base64
import gzip
import os
import unicodedata
from pathlib import Path
from urllib.parse import quote

import hostile
import PIL.Image
import pytest

from pardalis.documents import Document, Image, Omission, PageOptions, Rejection, Text, read_html
from pardalis.documents import svg as drawings
from pardalis.errors import ConfigError

NAMES = 'xmlns="http://www.w3.org/2000/svg"'
SVG = f'<svg {NAMES} width="60" height="60"><rect width="9" height="9"/></svg>'
TEX = "<annotation encoding='application/x-tex'>"
KATEX = f"<math><semantics><mn>1</mn>{TEX}1</annotation></semantics></math>"


@pytest.fixture(autouse=True)
def bounded():
    with hostile.limits(seconds=30):
        yield


@pytest.fixture
def page(tmp_path):
    """Write and read a page; gives its items by class."""

    def run(markup, name="page.html", **options):
        path = tmp_path / name
        path.write_bytes(markup.encode() if isinstance(markup, str) else markup)
        return list(read_html(path, PageOptions(**options)))

    return run


def document_of(items) -> Document:
    [document] = [item for item in items if isinstance(item, Document)]
    return document


def counts_of(items) -> dict[str, int]:
    return {item.kind: item.count for item in items if isinstance(item, Omission)}


def rejected(items) -> list[str]:
    return [i.kind for i in items if isinstance(i, Rejection) and not isinstance(i, Omission)]


# ── text that keeps its meaning ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("2<sup>24</sup> colours", "2²⁴ colours"),
        ("10<sup>−6</sup> m", "10⁻⁶ m"),
        ("x<sup>n</sup> + y<sup>n+1</sup>", "x^n + y^(n+1)"),
        ("H<sub>2</sub>O and a<sub>ij</sub>", "H₂O and a_ij"),
        ("the 1<sup>st</sup>", "the 1st"),
        ('as said<sup><a href="#n1">[1]</a></sup>', "as said[1]"),
        ('as said<sup><a href="#n1">1</a></sup>', "as said[1]"),
        ("<sup>24</sup> Mg", "24 Mg"),
        ("<math><mfrac><mn>1</mn><mn>2</mn></mfrac></math>", "1/2"),
        (
            "<math><mfrac><mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow><mi>c</mi></mfrac></math>",
            "(a + b)/c",
        ),
        ("<math><msup><mi>x</mi><mn>24</mn></msup></math>", "x^24"),
        (
            "<math><msqrt><mi>x</mi></msqrt><mo>=</mo><msub><mi>y</mi><mi>i</mi></msub></math>",
            "√(x) = y_i",
        ),
        ("<math alttext='\\frac12'><mfrac><mn>1</mn><mn>2</mn></mfrac></math>", "\\frac12"),
        (f"<math><semantics><mn>1</mn>{TEX}\\tfrac</annotation></semantics></math>", "\\tfrac"),
        ("<p style='display:none'><math alttext='a^b'></math></p>", "a^b"),
        ("<ruby>漢<rp>(</rp><rt>kan</rt><rp>)</rp>字<rt>ji</rt></ruby>", "漢(kan)字(ji)"),
        ("<ol><li>a<li>b</ol>", "1. a\n2. b"),
        ('<ol start="3"><li>a<li value="9"><p>b</p><li>c</ol>', "3. a\n9. b\n10. c"),
        ("<ol reversed><li>a<li>b</ol>", "2. a\n1. b"),
        ('<ol type="a"><li>x<li>y</ol><ol type="I" start="4"><li>z</ol>', "a. x\nb. y\nIV. z"),
        ("<ul><li>a<ol><li>b</ol><li>c</ul>", "a\n1. b\nc"),
        ("<table><tr><td>1<td>2<tr><td>3<td>4</table>", "1\t2\n3\t4"),
        ("<table><tr><td><p>1</p><td><td><div>3</div></table>", "1\t\t3"),
        ("a&nbsp;&nbsp;b&nbsp; c", "a b c"),
        (
            "<p>if x:<br>&nbsp;&nbsp;&nbsp; y = 1<br>\n &nbsp; <b>z</b><br>w",
            "if x:\n    y = 1\n  z\nw",
        ),
        ("<div>&nbsp;&nbsp;a</div><div><i>&nbsp;</i><i>&nbsp;</i>b</div>", "  a\n  b"),
        (
            "<p>x<p>&nbsp;one<p>&nbsp;&nbsp;<p>\u3000\u3000two<ol><li>&nbsp;&nbsp;y",
            "x\none\ntwo\n1. y",
        ),
        ("<table><tr><td>&nbsp;&nbsp;1<td>&nbsp;&nbsp;2</table>", "  1\t2"),
        (
            "<table><tr><td rowspan=2>A<td>1<tr><td>2<tr><td colspan=2>B<td>3</table>",
            "A\t1\n2\nB\t3",
        ),
        ("<table><tr><td>1<tr><td><td>2<tr><td>&nbsp;<td><td>3</table>", "1\n\t2\n\t\t3"),
        ("<table><caption>C</caption><tr><th>a<th>b</table>after", "C\na\tb\nafter"),
        ("<q>Hoo</q>, it said", "“Hoo”, it said"),
        ("&frac12; &notin; &#8364; &#x1F989; &#150; &amp;lt;", "½ ∉ € 🦉 – &lt;"),
        ("a<wbr>b&shy;c", "ab\u00adc"),
        ("<pre>a<br>  b</pre>c", "a\n  b\nc"),
        ("<div style='white-space: pre'>a\n  b</div>", "a\n  b"),
        ("<details><summary>More</summary>inside</details>", "More\ninside"),
        ("<script type='math/tex'>x^2</script><span class='MathJax'>x2</span>", "x^2"),
        (f"<span>{KATEX}<span class='katex-html' aria-hidden='true'>1</span></span>", "1"),
        ("<xmp><b>x</b></xmp>", "<b>x</b>"),
        ("<p>a<p>b<li>c", "a\nb\nc"),
        ("<dl><dt>term<dd>what it is</dl>", "term\nwhat it is"),
        ("<h2><button>Fold</button></h2>x", "Fold\nx"),
        ("<header><h1>T</h1><p>by me</p></header><p>x", "T\nby me\nx"),
        ("<p>x<table><tr><th><th>a<tr><th>0<td>1<tr><td><td>4</table>", "x\n\ta\n0\t1\n\t4"),
        ("<table><tfoot><tr><td>sum</tfoot><tbody><tr><td>1</table>", "1\nsum"),
        ("<div><span style='display:block'>a</span><b style='DISPLAY: flex'>b</b>c", "a\nb\nc"),
        (
            "<x-card><template shadowrootmode=open><style>.z{display:none}</style><i class=z>q</i>"
            "<h1><slot name=t></slot></h1><slot></slot><slot name=no>alone</slot></template>"
            "text <b slot=t>title</b></x-card>",
            "title\ntext alone",
        ),
        (
            "<a-b><template shadowroot=open>1 <c-d><template shadowrootmode=open>2<slot></slot>"
            "</template><slot></slot></c-d> 4</template> 3</a-b>",
            "1 2 3 4",
        ),
        ("<article><header><h1>T</h1></header>x<footer>by me</footer></article>", "T\nx\nby me"),
    ],
)
def test_what_a_line_means_survives(page, body, expected):
    assert document_of(page(f"<!DOCTYPE html><body>{body}</body>")).text == expected


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("<nav>menu</nav>", "navigation"),
        ('<div role="navigation">menu</div>', "navigation"),
        ('<div role="search">find</div>', "navigation"),
        ("<header>site</header><footer>imprint</footer>", "navigation"),
        ("<p hidden>secret</p>", "hidden"),
        ('<p style="color: red; DISPLAY : none">secret</p>', "hidden"),
        ('<p style="visibility:hidden">secret</p>', "hidden"),
        ("<dialog>cookies?</dialog>", "hidden"),
        ("<div popover>cookies?</div>", "hidden"),
        ("<a-b><template shadowrootmode=open><b></b></template>secret</a-b>", "hidden"),
        ('<p style="background: #fff url(a.png)"></p>', "background"),
        ('<svg width="99" height="99"><g/></svg>', "small-image"),
        ("<noscript>Switch scripts on</noscript>", "hidden"),
        ('<i class="icon" aria-hidden="true">home</i>', "decoration"),
        ("<button>Copy</button>", "control"),
        ("<select><option>a<option>b</select>", "control"),
        ("<textarea>draft</textarea>", "control"),
        ('<h2>Owls<a class="headerlink" href="#owls">¶</a></h2>', "permalink"),
        ('<iframe src="other.html"></iframe>', "embedded"),
        ("<video>no film</video>", "embedded"),
        ('<td class="linenos"><pre>1\n2</pre></td>', "line-numbers"),
        ('<svg width="16" height="16"><path d=""/></svg>', "small-image"),
        ('<img width="1" height="1" src="https://tracker.example/p.gif">', "small-image"),
    ],
)
def test_what_is_left_out_is_counted_by_rule(page, body, kind):
    if "<td" in body:
        body = f"<table><tr>{body}<td>code</table>"
    items = page(f"<main>An owl.</main>{body}")
    assert set(counts_of(items)) == {kind}
    [omission] = [item for item in items if isinstance(item, Omission)]
    assert omission.reason.endswith(".") and omission.where.endswith("page.html")
    shown = document_of(items).text
    assert shown.startswith("An owl.")
    for word in ("menu", "secret", "Copy", "home", "imprint", "¶", "cookies", "scripts", "1\n"):
        assert word not in shown


def test_a_saved_page_whose_body_is_hidden_from_screen_readers_is_kept(page):
    items = page('<div aria-hidden="true"><p>An owl.</p></div>')
    assert document_of(items).text == "An owl."


# ── options ──────────────────────────────────────────────────────────────────────────────────────


def test_a_selector_chooses_the_content(page):
    body = """<h1>Site</h1><div id="main"><p>An owl.</p><p class="ad">Buy!</p></div>
      <div id="main2"><div id="main">Another.</div></div><p>Prev Next</p>"""
    items = page(body, content="#main", leave_out=".ad")
    assert document_of(items).text == "An owl.\nAnother."
    assert counts_of(items) == {"left-out": 1, "outside-content": 3}
    [rejection] = page("<p>a</p>", content="#main")
    assert "nothing in it matches the selector '#main'" in rejection.reason


@pytest.mark.parametrize("selector", ["p[", "::", "..a", "p:nope("])
def test_a_wrong_selector_is_refused(selector):
    with pytest.raises(ConfigError, match="content must be a CSS selector"):
        PageOptions(content=selector)


def test_what_most_pages_repeat_is_left_out(tmp_path, red_file, encode):
    (tmp_path / "next.png").write_bytes(encode(PIL.Image.new("RGB", (24, 24), "blue")))
    for number in range(10):
        code = "<pre>return 0</pre>" if number else "<p>return 0</p>"
        (tmp_path / f"{number}.html").write_text(
            f"""<table><tr><td>Prev<td>Page {number}<td><img src="next.png"></table>
            <p>Owl {number}.</p><img src="red.png" width="99">{code}<p>See also</p>
            {"<p>Prev</p>" if number == 3 else ""}"""
        )
    items = list(read_html(tmp_path, PageOptions(repeated=0.5)))
    documents = [item for item in items if isinstance(item, Document)]
    assert documents[1].text == "Page 1\nOwl 1.\nreturn 0"
    assert not documents[1].images  # both stand on every page
    assert "Prev" in documents[3].text  # there in a paragraph, which is no navigation
    repeated = [item for item in items if isinstance(item, Omission)]
    assert [item.count for item in repeated] == [4] * 10
    assert "'Prev'" in repeated[0].reason
    whole = [i for i in read_html(tmp_path) if isinstance(i, Document)]
    assert whole[1].text.startswith("Prev\tPage 1\t") and len(whole[1].images) == 2


def test_few_pages_repeat_nothing(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.html").write_text(f"<p>Prev</p><p>Owl {number}.</p>")
    documents = list(read_html(tmp_path, PageOptions(repeated=0.5)))
    assert [document.text for document in documents] == [f"Prev\nOwl {n}." for n in range(3)]


def test_the_smallest_size_of_images_is_an_option(page, red_file):
    assert document_of(page('<p>a</p><img src="red.png">')).images
    items = page('<p>a</p><img src="red.png">', min_side=13)
    assert not document_of(items).images and counts_of(items) == {"small-image": 1}


# ── images ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def dot(tmp_path, encode):
    (tmp_path / "dot.gif").write_bytes(encode(PIL.Image.new("P", (1, 1)), "GIF"))
    for number, name in enumerate(("a.png", "b.png", "media/a.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        colour = PIL.Image.new("RGB", (60, 60), (number, 0, 0))
        (tmp_path / name).write_bytes(encode(colour))
    return "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


@pytest.mark.parametrize(
    "image",
    [
        '<img src="dot.gif" data-src="a.png">',
        '<img src="DOT" data-original="a.png">',
        '<img src="DOT" data-lazy-src="a.png" width="1" height="1">',
        '<img data-srcset="a.png 800w, gone.png 400w" src="dot.gif">',
        '<img srcset="a.png">',
        '<img srcset="dot.gif 1x, a.png 2x">',
        '<img srcset="gone.png 400w,\n a.png 800w" src="gone.png">',
        '<img srcset="https://x.example/i,w_800/o.png 800w" src="a.png">',
        '<picture><source srcset="a.png" type="image/png"><img src="gone.png"></picture>',
        '<picture><source media="print" srcset="b.png"><source srcset="a.png"><img></picture>',
        '<picture><source media="(prefers-color-scheme:dark)" srcset="b.png"><img src="a.png">',
        '<picture><source srcset="gone.webp"><img src="a.png"></picture>',
        '<img src="dot.gif" class="lazy"><noscript><img src="a.png"></noscript>',
        '<img data-src="a.png"><noscript><img src="a.png"></noscript>',
        '<noscript><div><img src="a.png"></div></noscript>',
        '<object data="a.png" type="image/png">An owl</object>',
        '<input type="image" src="a.png">',
        '<video poster="a.png"></video>',
        '<img src="media/../a.png?x=1#y">',
        '<img src=" a.png\n">',
        '<img src="media\\..\\a.png">',
        '<a href="#x"><img src="a.png"></a>',
        '<img src="a.png" src="b.png">',
        '<img src="A.PNG">',
        '<img src="DOT" data-ezsrc="a.png" data-thumb-src="b.png">',
        '<img src="dot.gif" lazy-src="a.png">',
        '<img data-actualsrc="a.png">',
        '<img data-cfsrc="a.png" src="">',
        '<img src="DOT" data-ezsrcset="a.png 2x, b.png 1x">',
        '<amp-img src="a.png" width="60"><noscript><img src="a.png"></noscript></amp-img>',
        '<svg viewBox="0 0 60 60" width="100%"><image xlink:href="a.png"/></svg>',
        # As SingleFile keeps an image that a page has several times.
        "<style>:root{--sf-img-1: url('a.png')}</style><img style='background-blend-mode:normal;"
        "background-image:var(--sf-img-1)!important' src='EMPTY'>",
    ],
)
def test_the_image_that_a_browser_loads_is_taken(page, tmp_path, dot, image):
    empty = f"data:image/svg+xml,<svg {NAMES} width='60' height='60'><g/></svg>".replace(
        "'", "&#39;"
    )
    image = image.replace("DOT", dot).replace("EMPTY", empty)
    items = page(f"<p>before</p>{image}<p>after</p>")
    before, image, after = document_of(items).segments
    assert (before, after) == (Text("before\n"), Text("\nafter"))
    assert image.source.resolve() == (tmp_path / "a.png").resolve()
    assert not rejected(items)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_of_images_match_as_they_look(page, tmp_path, red_png, forms):
    name, address = (unicodedata.normalize(form, "é.png") for form in forms)
    (tmp_path / name).write_bytes(red_png)
    assert len(document_of(page(f'<img src="{address}"><img src="{quote(address)}">')).images) == 2


def test_an_address_is_relative_to_the_base(page, tmp_path, dot):
    base = '<head><base href="media/"></head>'
    assert document_of(page(f'{base}<img src="a.png">')).images[0].source.parent.name == "media"
    assert rejected(page(f'{base}<p>x</p><img src="b.png">')) == ["missing-image"]
    assert document_of(page(f'{base}<img src="/b.png">')).images
    assert rejected(page('<base href="https://x.example/"><p>x</p><img src="a.png">')) == [
        "remote-image"
    ]
    assert rejected(page('<base href="../../"><p>x</p><img src="etc/hostname">')) == [
        "missing-image"
    ]
    assert document_of(page('<base href="//["><p>x</p>')).text == "x"


def test_placeholders_alone_are_no_images(page, dot):
    items = page(f'<p>x</p><img src="{dot}"><img src="dot.gif" alt="owl">')
    assert not document_of(items).images and counts_of(items) == {"small-image": 2}
    items = page(f'<p>x</p><img src="{dot}" data-src="https://x.example/a.png">')
    assert counts_of(items) == {"small-image": 1}


def test_all_after_a_huge_data_uri_is_kept(page, encode, dot):
    png = encode(PIL.Image.new("RGB", (1800, 1800), "red"), compress_level=0)
    uri = base64.b64encode(png).decode()
    assert len(uri) > 12_000_000
    items = page(
        f'<p>a</p><img src="data:image/png;base64,{uri}"><p>b</p><img src="b.png"><p>c</p>'
    )
    segments = document_of(items).segments
    assert [type(segment) for segment in segments] == [Text, Image, Text, Image, Text]
    is_whole = segments[1].source == png
    assert is_whole


@pytest.mark.parametrize("form", ["padless", "wrapped", "escaped"])
def test_data_uris_as_browsers_read_them(page, red_png, form):
    text = base64.b64encode(red_png + b"\0" * (2 - len(red_png) % 3)).decode()
    if form == "padless":
        text = text.rstrip("=")
    elif form == "wrapped":
        text = "\n  ".join(text[i : i + 20] for i in range(0, len(text), 20))
    else:
        text = text.replace("=", "%3D").replace("+", "%2B").replace("/", "%2F")
    assert len(document_of(page(f'<img src="data:image/png;base64,{text}">')).images) == 1


def test_drawings_are_rendered(page, tmp_path):
    (tmp_path / "a.svg").write_text(SVG)
    uri = "data:image/svg+xml;base64," + base64.b64encode(SVG.encode()).decode()
    plain = "data:image/svg+xml," + SVG.replace('"', "%22").replace("<", "%3C").replace(">", "%3E")
    items = page(f"a<img src='a.svg'><img src='{uri}'><img src=\"{plain}\">{SVG}b")
    images = document_of(items).images
    assert len(images) == 4 and not rejected(items)
    assert {image.source for image in images} == {images[0].source}
    assert drawings.render(SVG.encode()) == images[0].source


def test_drawings_are_counted_without_the_extra(page, monkeypatch):
    monkeypatch.setattr(drawings, "can_render", lambda: False)
    items = page(f"<p>a</p>{SVG}")
    assert rejected(items) == ["vector-image"]
    assert "extra svg" in items[0].reason


# ── encodings ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("\ufeffGröße".encode(), "Größe"),
        ("Größe сова".encode("utf-16"), "Größe сова"),
        (b"\xfe\xff" + "сова".encode("utf-16-be"), "сова"),
        ("<p>An owl, größer".encode("utf-16-le"), "An owl, größer"),
        ('<meta charset="gb2312">镕'.encode("gbk"), "镕"),
        ('<meta charset="GBK">㐀'.encode("gb18030"), "㐀"),
        (b'<meta charset="iso-8859-1">\x93owl\x94 \x80', "“owl” €"),
        (b'<meta charset="ascii">\x93owl\x94', "“owl”"),
        ('<?xml version="1.0" encoding="windows-1251"?><p>сова'.encode("cp1251"), "сова"),
        (
            "<meta http-equiv='Content-Type' content='a; charset=koi8-r'>сова".encode("koi8-r"),
            "сова",
        ),
        (
            '<meta content="text/html; charset=Shift_JIS" http-equiv=content-type>梟①'.encode(
                "cp932"
            ),
            "梟①",
        ),
        (
            '<!-- <meta charset="koi8-r"> --><meta charset="windows-1251">сова'.encode("cp1251"),
            "сова",
        ),
        ('<meta name="x" content="charset=koi8-r"><p>Größe'.encode(), "Größe"),
        ('<meta charset="utf-16">Größe'.encode(), "Größe"),
        ('<meta charset="nonsense">Größe'.encode(), "Größe"),
        ("<p>Größe, Füße, Mäuse".encode() + b"\xff" + b"!", "Größe, Füße, Mäuse�!"),
        ("<p>Größe".encode("latin-1"), "Größe"),
        (("<p>" + "Сова охотится ночью. " * 3).encode("cp1251"), "Сова охотится ночью. " * 3),
        (
            ("<p>" + "フクロウは夜に狩りをする。" * 3).encode("euc_jp"),
            "フクロウは夜に狩りをする。" * 3,
        ),
        (
            ("<p>" + "猫头鹰在夜间捕猎，白天睡觉。" * 3).encode("gbk"),
            "猫头鹰在夜间捕猎，白天睡觉。" * 3,
        ),
    ],
)
def test_bytes_are_decoded_as_browsers_do(page, content, expected):
    assert document_of(page(content)).text == expected.strip()


def test_bytes_that_are_lost_are_counted(page):
    assert counts_of(page(b'<meta charset="utf-8">Gr\xf6\xdfe')) == {"bad-bytes": 2}
    mixed = '<meta charset="utf-8">\ufffd'.encode() + b"Gr\xf6"
    assert counts_of(page(mixed)) == {"bad-bytes": 1}
    assert counts_of(page('<meta charset="utf-8">mv travail/\ufffdl\ufffdments'.encode())) == {}


# ── XHTML and saved pages ────────────────────────────────────────────────────────────────────────


def test_xhtml_is_read_as_xml(page):
    content = """<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head>
      <title/><script src="x.js"/></head><body><p>a<a id="x"/></p><div/>
      <![CDATA[1 < 2 & 3]]><p title="a > b"/><textarea/>b</body></html>"""
    assert document_of(page(content, "page.xhtml")).text == "a\n1 < 2 & 3\nb"


def test_a_raw_element_that_never_ends_loses_nothing(page):
    assert document_of(page("<p>a</p><iframe src='x' title='/'/><p>b</p>")).text == "a\nb"


def test_frames_of_a_saved_page_are_no_pages(tmp_path):
    for name in (
        "owl.html",
        "owl_files/frame.html",
        "a.htm",
        "a-Dateien/x.html",
        "my_files/y.html",
        "owl/more.html",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"<p>{name}</p>")
    names = [item.name for item in read_html(tmp_path)]
    assert names == ["a.htm", "owl.html", "my_files/y.html", "owl/more.html"]


@pytest.mark.parametrize("name", [
    "index.php", "page.html?id=3", "index.html@id=3", "view.php?x=1", "view.php?x=1.html",
    "wiki/Owl", "wiki/St._Louis", "a.ASPX", "node?page=2",
])  # fmt: skip
@pytest.mark.parametrize("start", [
    "<!DOCTYPE html>", "\ufeff\n<html>", '<?xml version="1.0"?>\n<!DOCTYPE html>',
    "<!-- x --><html>",
])  # fmt: skip
def test_a_page_of_a_mirror_is_one_by_its_content(tmp_path, name, start):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(f"{start}<p>An owl.</p>", "utf-8")
    assert [(item.name, item.text) for item in read_html(tmp_path)] == [(name, "An owl.")]


def test_a_part_of_a_page_is_one_by_its_name_too(tmp_path):
    for name in ("a.php", "b.html?x=1", "README.md", "c.vue", "d", "e.jinja"):
        (tmp_path / name).write_text("<div>An owl.</div>")
    assert [item.name for item in read_html(tmp_path)] == ["a.php", "b.html?x=1"]


def test_what_is_no_page_of_a_mirror_is_counted(tmp_path):
    files = {
        "a.php": "<?php echo 1;", "b.html?x=1": '{"a": 1}', "empty.php": "",
        "feed.aspx": "<?xml version='1.0'?><rss>", "comments.php": "<!---->" * 500,
        "LICENSE": "Copy it.", "a.png?v=1": "<p>", "style.css?v=1": "<p>", "x.js": "<p>",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    items = list(read_html(tmp_path))
    assert {item.kind for item in items} == {"no-page"}
    names = ["a.php", "b.html?x=1", "comments.php", "empty.php", "feed.aspx"]
    assert [Path(item.where).name for item in items] == names


@pytest.mark.parametrize(("address", "name"), [
    ("a.png?v=2", "a.png?v=2"), ("a.png%3Fv=2", "a.png?v=2"), ("my%20a.png?v=2", "my a.png?v=2"),
    ("a.png?v=2", "a.png@v=2"), ("a.png?v=2", "a.png"), ("a.php?f=a%2Fb", "a.php?f=a%2Fb"),
])  # fmt: skip
def test_images_of_a_mirror(page, tmp_path, red_png, address, name):
    (tmp_path / name).write_bytes(red_png)
    assert document_of(page(f'<img src="{address}">')).images[0].source.name == name


def test_links_to_pages_outside_are_refused(tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "a.html").write_text("<p>secret</p>")
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.html").write_text("<p>owl</p>")
    (source / "b.html").symlink_to(tmp_path / "private" / "a.html")
    (source / "c").symlink_to(tmp_path / "private")
    (source / "d.html").symlink_to(source / "a.html")
    items = list(read_html(source))
    assert [item.text for item in items if isinstance(item, Document)] == ["owl", "owl"]
    assert [item.kind for item in items if isinstance(item, Rejection)] == ["outside-link"] * 2


# ── malformed pages ──────────────────────────────────────────────────────────────────────────────

NESTED = {
    "divs": "<div>" * 100_000,
    "spans": "<span>" * 100_000 + "x",
    "tables": "<table><tr><td>" * 50_000 + "x",
    "lists": "<ul><li>" * 50_000 + "x",
    "quotes": "<blockquote>" * 20_000 + "x",
    "svg groups": "<svg width=99 height=99>" + "<g>" * 50_000,
    "math": "<math>" + "<mrow>" * 50_000 + "<mn>1",
    "upper case": "<DIV CLASS='a>b'>" * 100_000,
    "fonts": "".join(f"<p><font size={i}>" for i in range(20_000)),
    "fonts and paragraphs": "<p>" + "".join(f"<b id={i}>" for i in range(900)) + "<p>x" * 20_000,
    "choices": "<select>" + "<option>x" * 200_000,
    "after a comment": "<!-- <script> -->" + "<div>" * 100_000 + "</script>",
}
HARMLESS = {
    "unclosed paragraphs": "<p>x" * 2_100,
    "unclosed items": "<ul>" + "<li>x" * 2_100,
    "unclosed rows": "<table>" + "<tr><td>x" * 2_100,
    "unclosed links": "<a href=x>x" * 2_100,
    "line breaks": "x<br>" * 2_100,
    "script text": "<p>x</p><script>" + "if (a<b) c='<div>';\n" * 2_100 + "</script>",
    "style text": "<style>" + "a>b{}\n" * 2_100 + "</style>x",
    "comments": "<!-- <div> -->x" * 2_100,
    "closed twice": "x</div></b></p>" * 2_100,
    "crossed": "<b>x<i>y</b>z</i>" * 1_100,
    "unclosed quote": "<p>x</p><p title='" + "a " * 20_000,
    "unclosed comment": "<p>x</p><!-- " + "- " * 20_000,
    "unclosed script": "<p>x</p><script>" + "a<b " * 20_000,
    "unclosed cdata": "<p>x</p><![CDATA[" + "a" * 20_000,
    "brackets": "x" + "<" * 60_000,
    "ampersands": "x" + "&" * 60_000,
    "references": "x" + "&#x110000;&#0;&#xD800;&nosuch;" * 1_100,
    "zeros": "x" + "\0" * 40_000,
    "controls": "x" + "".join(map(chr, range(1, 32))) * 1000,
    "no tags": "x " * 40_000,
    "surrogates": b"x" + b"\xed\xa0\x80" * 100,
    "half a character": "<p>x€".encode()[:-1],
    "two bodies": "<body>x</body><body>y</body>" * 1000,
    "template": "x<template><p>" * 1000,
    "plaintext": "x<plaintext><p>",
    "frames beside text": "x<frameset><frame>",
    "doctypes": "<!DOCTYPE a [<!ENTITY b 'c'>]>x&b;" * 100,
    "srcset of commas": f"x<img srcset='{',' * 40_000}'>",
    "srcset of spaces": f"x<img srcset='{'a ' * 20_000}'>",
    "style of colons": f"x<p style='{'display:' * 20_000}'>y",
    "name of a list": f"<ol start='{'9' * 5000}'><li value='{'-' * 5000}'>x</ol>",
    "negative list": "<ol start='-5' type='i'><li>x</ol>",
    "roman list": "<ol start='999999999' type='I'><li>x</ol><ol start=99999999 type=a><li>x</ol>",
    "width of digits": f"x<img width='{'9' * 40_000}' src=''>",
    "address of NUL": "x<img src='a&#0;b%00c'>",
    "address of dots": f"x<img src='{'../' * 2_100}etc/passwd'>",
    "address too long": f"x<img src='{'a' * 40_000}.png'>",
    "base of dots": f"<base href='{'../' * 2_100}'>x<img src='etc/passwd'>",
    "data of nothing": "x<img src='data:'><img src='data:,'><img src='data:image/png;base64,'>",
    "svg of nothing": "x<img src='data:image/svg+xml,'><svg width=99 height=99></svg>",
    "bad class": f"x<p class='{'a ' * 20_000}'>y",
    "id of many": "x" + "<p id=a>" * 1_100,
}


@pytest.mark.parametrize("name", NESTED)
def test_a_page_that_would_take_very_long_is_refused(page, name):
    [rejection] = page(NESTED[name])
    assert rejection.kind == "unreadable-page"
    assert rejection.reason.startswith("The page cannot be read: it")


@pytest.mark.parametrize("name", HARMLESS)
def test_a_malformed_page_is_read_with_what_it_shows(page, name):
    items = page(HARMLESS[name])
    has_text = "x" in document_of(items).text
    assert has_text  # without the text in the message, which is long
    for item in items:
        if isinstance(item, Rejection):
            assert item.kind in (
                "missing-image",
                "unreadable-image",
                "bad-base64",
                "vector-image",
                "outside-image",
                "small-image",
                "embedded",
                "bad-bytes",
                "hidden",
            )
            assert item.reason.endswith(".")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"\0" * 1000, "it is empty"),
        (b" \n\t", "it is empty"),
        (b"\xff\xfe", "it is empty"),
        (b"\xef\xbb\xbf\n", "it is empty"),
        (b"<!-- only -->", "neither text nor images"),
        (b"<script>x</script>", "neither text nor images"),
        (b"<title>x</title>", "neither text nor images"),
        (b"<frameset><frame src=a></frameset>", "neither text nor images"),
        (b"<iframe src=a>x</iframe>", "neither text nor images"),
        (b"<p hidden>x", "neither text nor images"),
    ],
)
def test_a_page_of_nothing_is_rejected(page, content, reason):
    first = page(content)[0]
    assert isinstance(first, Rejection) and reason in first.reason


def test_what_is_no_page_is_called_by_its_name(page, red_png):
    for content, kind in ((red_png, "PNG"), (gzip.compress(b"<p>x"), "gzip"), (b"%PDF-1.7", "PDF")):
        [rejection] = page(content)
        assert rejection.kind == "unreadable-page" and kind in rejection.reason


def test_pages_that_are_no_files_are_rejected(tmp_path):
    os.mkfifo(tmp_path / "pipe.html")
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "loop.html").symlink_to(tmp_path / "loop.html")
    items = list(read_html(tmp_path))
    assert [item.kind for item in items] == ["missing-file", "unreadable-page"]
