"""Drawings are rendered in bounded time, and read nothing but themselves."""

import gzip
import io

import hostile
import PIL.Image
import pytest

from pardalis.documents.svg import _fonts, _has_font, render
from pardalis.errors import DataError

NAMES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
RED = '<rect width="100%" height="100%" fill="red"/>'


@pytest.fixture(autouse=True)
def bounded():
    with hostile.limits(seconds=30):
        yield


def drawn(attributes: str, body: str = RED) -> PIL.Image.Image:
    content = f"<svg {NAMES} {attributes}>{body}</svg>".encode()
    return PIL.Image.open(io.BytesIO(render(content)))


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ('width="600" height="300"', (600, 300)),
        ('width="600px" viewBox="0 0 10 5"', (600, 300)),
        ('viewBox="0 0 100 50"', (512, 256)),
        ('width="9000" height="4500"', (1024, 512)),
        ('width="100%" height="100%" viewBox="0 0 2000,1000"', (1024, 512)),
        ('width="5cm" height="5cm" viewBox="0 0 1 1"', (512, 512)),
    ],
)
def test_sizes(attributes, size):
    image = drawn(attributes)
    assert image.size == size and image.convert("RGB").getpixel((9, 9)) == (255, 0, 0)


@pytest.mark.parametrize("font", ["", 'font-family="No Such"', 'font-family="monospace"'])
def test_text_is_drawn_in_a_font_that_there_is(font):
    if not _fonts():
        pytest.skip("the machine has no fonts")
    image = drawn('width="600" height="300"', f'<text x="9" y="200" {font}>words</text>')
    assert image.getchannel("A").getextrema() == (0, 255)


def test_a_font_is_found_by_its_own_name_alone():
    assert not _has_font("No Such")


def test_text_without_any_font_is_told(monkeypatch):
    monkeypatch.setattr("pardalis.documents.svg._fonts", dict)
    assert drawn('width="600" height="300"').size == (600, 300)
    with pytest.raises(DataError, match="has no font for it; install one"):
        drawn('width="600" height="300"', "<text>words</text>")


def test_html_within_a_drawing_needs_another_form():
    html = '<foreignObject width="9" height="9"><p>x</p></foreignObject>'
    with pytest.raises(DataError, match="holds HTML"):
        drawn('width="600" height="300"', html)
    assert drawn('width="600" height="300"', f"<switch>{html}{RED}</switch>").getpixel((9, 9))[0]


def test_parts_may_be_repeated_and_gzipped():
    body = f'<defs><g id="a">{RED}</g></defs><use xlink:href="#a"/><use href="#a"/>'
    content = f'<svg {NAMES} viewBox="0 0 9 9">{body}</svg>'.encode()
    assert render(gzip.compress(content, mtime=0)) == render(content)


USES = "".join(f'<g id="a{i + 1}">{f"""<use href="#a{i}"/>""" * 10}</g>' for i in range(12))
PATTERNS = "".join(
    f'<pattern id="a{i + 1}" width="1" height="1">{f"""<rect fill="url(#a{i})"/>""" * 10}</pattern>'
    for i in range(12)
)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not sound XML"),
        (b"<svg", "not sound XML"),
        (b"<p/>", "root is <p>"),
        (b"\x1f\x8b junk", "not sound gzip"),
        (gzip.compress(b"<svg/>", mtime=0)[:-9], "not sound gzip"),
        (gzip.compress(b" " * (17 << 20)), "more than 16 MiB"),
        ("<g>" * 5000, "not sound XML"),
        (f'<defs><g id="a0"><g/></g>{USES}</defs><use href="#a12"/>', "too many parts"),
        (f'<defs><g id="a0"/>{PATTERNS}</defs><rect fill="url(#a12)"/>', "too many parts"),
        ('<g id="a"><use href="#a"/></g>', "refer to themselves"),
        ('<g id="a"><use href="#b"/></g><g id="b"><use href="#a"/></g>', "refer to themselves"),
        ('<filter id="f">' + "<feTurbulence/>" * 300 + "</filter>", "too many parts"),
        ('<image href="/etc/hostname" width="9" height="9"/>', "only its own parts"),
        ('<image xlink:href="file:///etc/x.png"/>', "only its own parts"),
        ('<image href="https://x.example/a.png"/>', "only its own parts"),
        ('<use href="other.svg#a"/>', "only its own parts"),
        ('<image href="data:image/svg+xml,%3Csvg/%3E"/>', "only its own parts"),
        ('<image href="data:image/png;base64,AAAA"/>', "not an image"),
        ("<style>@import url(a.css);</style>", "style sheet"),
        (
            '<style>.a{fill:url(#p)}</style><pattern id="p"><rect class="b"/></pattern>',
            "refer to styled parts",
        ),
    ],
)
def test_a_hostile_drawing_is_refused(content, reason):
    if isinstance(content, str):
        content = f'<svg {NAMES} viewBox="0 0 9 9">{content}</svg>'.encode()
    with pytest.raises(DataError, match=reason):
        render(content)


def test_entities_are_not_followed():
    start = '<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/hostname">]>'
    with pytest.raises(DataError, match="cannot be rendered"):
        render(f'{start}<svg {NAMES} viewBox="0 0 9 9"><title>&a;</title></svg>'.encode())
