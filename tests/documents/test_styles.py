"""What style sheets hide is left out, as a desktop browser without scripts hides it."""

import os

import hostile
import PIL.Image
import pytest

from pardalis.documents import Document, Omission, PageOptions, read_html
from pardalis.documents.readers import _styles


@pytest.fixture(autouse=True)
def bounded():
    with hostile.limits(seconds=15):
        yield


@pytest.fixture
def page(tmp_path):
    """Write files and read the page; gives its text, and what was left out by rule."""

    def run(markup: str, options: PageOptions | None = None, **files: str | bytes):
        folder = tmp_path / "site"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            path = folder / name.replace("__", "/").replace("_css", ".css")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        (folder / "page.html").write_text("<!doctype html>" + markup)
        items = list(read_html(folder, options))
        counts = {item.kind: item.count for item in items if isinstance(item, Omission)}
        return "".join(i.text for i in items if isinstance(i, Document)), counts

    return run


@pytest.mark.parametrize(
    ("rules", "shown"),
    [
        (".a {display: none}", "B C"),
        (".a{DISPLAY:NONE}", "B C"),
        ("p .a { color: red; display : none ! important }", "B C"),
        (".a{visibility:hidden}.b{visibility:collapse}", "C"),
        ("#c{display:none} p>.b{display:none}", "A"),
        (".a+.b{display:none} .a~#c{display:none}", "A"),
        ("i:first-child{display:none}", "B C"),
        ("i:nth-child(2n){display:none}", "A C"),
        ("i:not(.a):not([id]){display:none}", "A C"),
        ("i:not(:hover){display:none} .a:is(.a, .q){display:inline}", "A"),
        ("main p i, .b{display:none}", "A C"),
        # The cascade.
        (".a{display:none} i{display:inline}", "B C"),
        (".a{display:none} .a{display:inline}", "A B C"),
        ("i{display:none!important} #c{display:block}", ""),
        (".a.a{display:none} p .a{display:inline}", "B C"),
        (":where(#c){display:none} i{display:inline}", "A B C"),
        ("@layer x{#c{display:none}} i{display:inline}", "A B C"),
        ("@layer x{i{display:none!important}} #c{display:inline!important}", ""),
        ("@layer y, x;@layer x{i{display:none}} @layer y{#c{display:block}}", ""),
        ("@layer x{i{display:none} @layer y{#c{display:block}}}", ""),
        ("i{display:none} i{display:inherit}", "A B C"),
        (".a{visibility:hidden} .a{visibility:inherit}", "A B C"),
        # What holds.
        ("@media print{i{display:none}}", "A B C"),
        ("@media screen, print{.a{display:none}}", "B C"),
        ("@media screen and (max-width: 600px){.a{display:none}}", "A B C"),
        ("@media (min-width:48em) and (max-width:2000px){.a{display:none}}", "B C"),
        ("@media (400px <= width < 1300px){.a{display:none}}", "B C"),
        ("@media not print{.a{display:none}}", "B C"),
        ("@media (prefers-color-scheme: dark){.a{display:none}}", "A B C"),
        ("@media (unheard-of: 1){.a{display:none}}", "A B C"),
        ("@supports (display:grid){.a{display:none}}", "B C"),
        ("@supports not (display:grid){.a{display:none}}", "A B C"),
        # What does not.
        (".a:hover, .a:target{display:none}", "A B C"),
        (".a::before{display:none}", "A B C"),
        (".a{font-display:none; backface-visibility:hidden}", "A B C"),
        ("html, body{display:none}", "A B C"),
        ("/* .a{display:none} */ .b::after{content:'} .a{'; display:none}", "A B C"),
        (".a{display:none", "B C"),
        (".a{color:red}} .b{display:none} #c{display:none}", "A B"),
        ("i:has(b){display:none} >.a{display:none} .a{{display:none}", "A B C"),
    ],
)
def test_rules(page, rules, shown):
    markup = "<p><i class=a>A</i> <i class=b>B</i> <i id=c>C</i></p>"
    text, counts = page(f"<style>{rules}</style><body>{markup}<p>end</p>")
    assert text.split() == [*shown.split(), "end"]
    assert counts.get("hidden", 0) == 3 - len(shown.split())


@pytest.mark.parametrize(
    ("rules", "markup", "shown"),
    [
        # Where lines end.
        ("span{display:block}", "<p><span>A</span><span>B</span>C", "A\nB\nC"),
        ("p>span{display:flex}", "<p><span>A</span><span>B</span>C", "A\nB\nC"),
        ("p{display:grid}", "<p><span>A</span><b>B <i>b</i><i>c</i></b>C", "A\nB bc\nC"),
        ("p{display:inline-flex}", "<p><b>A</b><b>B</b>", "A\nB"),
        ("li{display:inline}", "<ol><li>A</li> <li>B</li></ol>", "A B"),
        ("span{display:table-cell}", "<p><span>A</span><span>B</span>", "A\tB"),
        ("div{display:table-row}span{display:table-cell}",
         "<div><span>A</span><span>B</span></div><div><span>C</span></div>", "A\tB\nC"),
        ("td{display:block}", "<table><tr><td>A<td>B</table>", "A\nB"),
        ("span{display:nonsense}", "<p><span>A</span><span>B</span>", "AB"),
        ("span{display:block}", "<p><span style='display:inline'>A</span><i>B</i>", "AB"),
        ("br{display:none}", "<p>A<br>B", "AB"),
        ("b{float:right} i{position:absolute}", "<p>A<b>B</b>C<i>D</i>", "A\nB\nC\nD"),
        ("b{float:right} i{position:relative}", "<p>A<b style='float:none'>B</b><i>C</i>", "ABC"),
        # Which spaces are part of the text.
        (".c{white-space:pre}", "<div class=c>A\n  B</div><p>C\nD", "A\n  B\nC D"),
        (".c{white-space:pre-wrap}", "<div class=c><p>A\n  B</p></div>", "A\n  B"),
        ("pre{white-space:normal}", "<pre>A\n  B</pre>C", "A B\nC"),
        ("b{white-space:normal}", "<pre>A\n  <b>B\n C</b>\n D</pre>", "A\n  B C\n D"),
    ],
)  # fmt: skip
def test_lines_and_spaces(page, rules, markup, shown):
    assert page(f"<style>{rules}</style><body>{markup}")[0] == shown


@pytest.mark.parametrize(
    ("rules", "shown"),
    [
        # Text for screen readers.
        (".a{position:absolute;clip:rect(1px, 1px, 1px, 1px)}", "B C"),
        (".a{clip:rect(0 0 0 0)} .b{clip-path:inset(50%)}", "C"),
        (".a{clip:rect(0,0,0,0)} .a{clip:auto}", "A B C"),
        (".a{clip:rect(0,9px,9px,0)} .b{clip-path:inset(5%)}", "A B C"),
    ],
)
def test_clips(page, rules, shown):
    markup = "<p><i class=a>A</i> <i class=b>B</i> <i id=c>C</i></p>"
    assert page(f"<style>{rules}</style>{markup}")[0] == shown


def test_formulas_for_screen_readers_are_read(page):
    rules = ".katex-mathml{clip:rect(1px,1px,1px,1px)}"
    assert (
        page(f"<style>{rules}</style><p><span class=katex-mathml><math><mi>x</mi></math></span>")[0]
        == "x"
    )


def test_the_elements_own_style_takes_part(page):
    rules = ".a{display:none} .b{display:none!important} .c{display:inline!important}"
    text, _ = page(
        f"<style>{rules}</style><p><i class=a style='display:inline'>A</i>"
        "<i class=b style='display:inline'>B</i><i class=c style='display:none'>C</i>"
    )
    assert text == "AC"


def test_a_rule_shows_what_an_attribute_hides_as_in_browsers(page):
    text, _ = page("<style>.a{display:flex}</style><p hidden class=a>A</p><p hidden>B</p><p>C</p>")
    assert text == "A\nC"


def test_what_is_visible_in_the_invisible_is_read(page):
    rules = ".a{visibility:hidden} .b{visibility:visible}"
    markup = "<ol><li class=a>A<p class=b>B</p>C<li>D</ol><p class=a>E<sup>2</sup><q>F</q></p>G"
    text, counts = page(f"<style>{rules}</style>{markup}")
    assert text == "B\n2. D\nG" and counts["hidden"] == 2


def test_sheets_beside_the_page_and_what_they_import(page):
    text, counts = page(
        '<link rel="StyleSheet" href="css/main.css?v=3">'
        "<link rel=stylesheet media=print href=p.css>"
        '<link rel="alternate stylesheet" href=p.css><p class=a>A<p class=b>B<p class=c>C<p>D',
        css__main_css='@charset "utf-8"; @import "b.css"; @import url(../c.css) screen;'
        "@import 'main.css'; .a{display:none}",
        css__b_css=".b{display:none}",
        c_css=".c{display:none}",
        p_css="p{display:none}",
    )
    assert text == "D" and counts["hidden"] == 3
    assert "unread-style" not in counts


def test_sheets_of_elsewhere_are_not_read_and_counted(page, tmp_path):
    (tmp_path / "out.css").write_text("p{display:none}")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "site").mkdir()
    os.symlink(tmp_path / "out.css", tmp_path / "site" / "link.css")
    os.symlink("/dev/zero", tmp_path / "site" / "zero.css")
    names = (
        "../out.css",
        "link.css",
        "zero.css",
        "https://a.org/a.css",
        "none.css",
        "//[",
        "data:,",
    )
    text, counts = page("".join(f"<link rel=stylesheet href='{n}'>" for n in names) + "<p>A")
    assert text == "A" and counts == {"unread-style": len(names)}


def test_a_sheet_of_another_encoding(page):
    rules = ".ä{display:none}"
    markup = "<link rel=stylesheet href=a.css><p class=ä>A<p>B"
    assert page("<meta charset=utf-8>" + markup, a_css=rules.encode("utf-16"))[0] == "B"


def test_an_image_that_is_loaded_late_is_shown_by_a_script(page, tmp_path):
    (tmp_path / "site").mkdir()
    PIL.Image.new("RGB", (99, 99)).save(tmp_path / "site" / "owl.png")
    page("<style>img{display:none}</style><p>A<img data-src=owl.png><img src=owl.png alt=b>")
    [document] = [i for i in read_html(tmp_path / "site") if type(i) is Document]
    assert [image.alt for image in document.images] == [""]


def test_without_style_sheets(page):
    options = PageOptions(style_sheets=False)
    assert page("<style>.a{display:none}</style><p class=a>A<p>B", options)[0] == "A\nB"


def nested(sign: str, end: str = "") -> str:
    return sign * 40_000 + end * 40_000 + "p{display:none}"


@pytest.mark.parametrize(
    "rules",
    [
        nested("a{"), nested("a("), nested("["), nested("@media screen{"), nested('"'),
        nested("/*"), nested("\\\n"), nested("{"), nested("}"), nested("a:not("),
        ":not(" * 9000 + "a" + ")" * 9000 + "{display:none}",
        "@media " + "(" * 9000 + ")" * 9000 + "{p{display:none}}",
        " ".join(["*"] * 50_000) + "{display:none}",
        " ~ ".join(["*"] * 50_000) + "{display:none}",
        "".join(f"i:nth-child({n}n+7)," for n in range(5000)) + "b{display:none}",
        "".join(f"*{'[x]' * n}," for n in range(300)) + "b{display:none}",
        "* b *{display:none}" * 5000,
        "p{" + "display:none;" * 9000 + "}",
        "display:" * 15_000,
        "x" * (10 << 20) + "{display:none}",
        ".q{color:red}" * 800_000,
        "@import 'a.css';" * 7000,
    ],
)  # fmt: skip
def test_hostile_sheets_take_bounded_time(page, rules):
    body = "<i>" * 500 + "<p>x" * 5_000
    text, _ = page(f"<link rel=stylesheet href=b.css><body>{body}<p>end", b_css=rules)
    assert text.endswith("end") or not text


def test_a_page_of_too_many_sheets_is_read_whole(page):
    n = _styles._MOST_SHEETS + 1
    text, counts = page("<style>p{display:none}</style>" * n + "<p>A")
    assert text == "A" and counts == {"unread-style": 1}
