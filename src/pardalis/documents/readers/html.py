"""Documents from HTML pages: text and images of the body in reading order.

Scripts, styles, navigation, headers and footers are left out. An image that cannot be used is
reported as a rejection, and its page is kept without it; so is an image that is found damaged when
its page is encoded (:mod:`pardalis.data.prepare`).
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lxml import etree, html

from pardalis.documents.document import Document, Image, Rejection, Segment, Text
from pardalis.documents.images import from_data_uri, image_size
from pardalis.documents.readers._lines import is_inside
from pardalis.errors import DataError
from pardalis.files import found_at, read_bytes

PAGE_SUFFIXES = (".html", ".htm", ".xhtml")

_SKIPPED = frozenset(
    {"script", "style", "nav", "header", "footer", "noscript", "template", "svg", "head"}
)

_LEAST_SIDE = 8  # pixels: the images that trackers and old layouts put on pages are smaller

# Elements that begin and end a line of their own.
_BLOCKS = frozenset((
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details",
    "dialog", "div", "dl", "dt", "fieldset", "figcaption", "figure", "form", "h1", "h2", "h3", "h4",
    "h5", "h6", "hr", "li", "main", "ol", "p", "pre", "section", "summary", "table", "tbody",
    "tfoot", "thead", "tr", "ul",
))  # fmt: skip


# The parser compares an attribute with all before it, so 100,000 of one tag take a minute. A small
# page cannot hold many. Comments and scripts are not told apart: parsers differ in where they end.
_MOST_ATTRIBUTES = 2000
_SMALL = 100_000  # bytes
_HIDING = ("utf-16-le", "utf-16-be", "utf-7")  # encodings in which tags are other bytes
_NAME = rb"<[a-z][^\s/>]*+"
_ATTRIBUTE = (
    rb"""(?:[\s/]*+[^\s/>][^\s/>=]*+(?:\s*+=\s*+(?:"[^"]*"|'[^']*'|[^\s>"'][^\s>]*+)?+)?+)"""
)
_TAGS = re.compile(
    rb"(?P<many>%(name)b%(attribute)b{%(most)d})|%(name)b%(attribute)b*+"
    % {b"name": _NAME, b"attribute": _ATTRIBUTE, b"most": _MOST_ATTRIBUTES + 1},
    re.IGNORECASE,
)


def read_html(path: Path, *, min_side: int = 48) -> Iterator[Document | Rejection]:
    """Yield a document for the page, or for each page below a folder in sorted order.

    Args:
        path: a page, or a folder that is searched for ``.html``, ``.htm`` and ``.xhtml`` files.
        min_side: images that declare a width or height below this many pixels are dropped, and
            images that are smaller than 8 pixels, unless this is smaller.

    Raises:
        DataError: there is no such file or folder.
    """
    if not path.is_file() and not path.is_dir():
        raise DataError(
            f"{path} {found_at(path)}; an HTML page or a folder of them was expected there."
        )
    return _read(path, min_side)


def _read(path: Path, min_side: int) -> Iterator[Document | Rejection]:
    if path.is_file():
        yield from _page(path, path.parent, min_side)
        return
    for folder, subfolders, names in os.walk(path):
        subfolders.sort()
        for name in sorted(names):
            if name.lower().endswith(PAGE_SUFFIXES):
                yield from _page(Path(folder, name), path, min_side)


def _page(page: Path, root: Path, min_side: int) -> Iterator[Document | Rejection]:
    try:
        body = _parse(read_bytes(page))
    except (OSError, ValueError, etree.LxmlError) as error:
        yield Rejection(str(page), "unreadable-page", f"The page cannot be read: {error}.")
        return
    walk = _Walk(page, root, min_side)
    if body is not None:
        walk.run(body)
    yield from walk.rejections
    document = Document(walk.segments(), name=page.relative_to(root).as_posix())
    if document.is_empty:
        yield Rejection(str(page), "empty-document", "The page's body has neither text nor images.")
    else:
        yield document


def _parse(content: bytes) -> html.HtmlElement | None:
    """Return the body of a page, if it has one; raises ValueError or LxmlError."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        encoding = None  # what the page declares
    else:
        encoding = "utf-8"  # libxml2 would take a page that declares nothing for Latin-1
    _check_attributes(content, _HIDING if encoding is None else ())
    parser = html.HTMLParser(encoding=encoding, remove_comments=True, remove_pis=True)
    return html.document_fromstring(content, parser=parser).find("body")


def _check_attributes(content: bytes, encodings: Sequence[str]) -> None:
    """Raise ValueError for a tag of too many attributes, also in one of several encodings."""
    if len(content) <= _SMALL:
        return
    others = (content.decode(each, "ignore").encode("utf-8", "ignore") for each in encodings)
    if any(tag["many"] for each in (content, *others) for tag in _TAGS.finditer(each)):
        raise ValueError(f"it has a tag of more than {_MOST_ATTRIBUTES:,} attributes")


@dataclass
class _Walk:
    """One pass over a body: what it collects, in order."""

    page: Path
    root: Path
    min_side: int
    rejections: list[Rejection] = field(default_factory=list)
    _segments: list[Segment] = field(default_factory=list)
    _texts: list[str] = field(default_factory=list)  # since the last image
    _n_open_pre: int = 0

    def run(self, body: html.HtmlElement) -> None:
        # iterwalk keeps its own stack, so a deeply nested page cannot exhaust Python's.
        events = etree.iterwalk(body, events=("start", "end"))
        for event, element in events:
            if event == "start":
                if element.tag in _SKIPPED:
                    events.skip_subtree()
                else:
                    self._open(element)
            else:
                self._close(element, is_body=element is body)

    def segments(self) -> tuple[Segment, ...]:
        """Return what was collected; no whitespace stands at either end of the page."""
        self._end_text()
        if self._segments and isinstance(self._segments[-1], Text):
            self._segments[-1] = Text(self._segments[-1].text.rstrip())
        return tuple(self._segments)

    def _open(self, element: html.HtmlElement) -> None:
        if element.tag in _BLOCKS or element.tag == "br":
            self._break_line()
        if element.tag == "pre":
            self._n_open_pre += 1
        if element.tag == "img":
            image = self._image(element)
            if image is not None:
                self._end_text()
                self._segments.append(image)
        self._write(element.text)

    def _close(self, element: html.HtmlElement, is_body: bool) -> None:
        if element.tag == "pre":
            self._n_open_pre -= 1
        if element.tag in _BLOCKS:
            self._break_line()
        elif element.tag in ("td", "th"):
            self._write(" ")
        if not is_body:
            self._write(element.tail)

    def _write(self, text: str | None) -> None:
        if text and not self._n_open_pre:
            text = re.sub(r"\s+", " ", text)
            if self._ends_with((" ", "\n")):
                text = text.removeprefix(" ")
        if text:
            self._texts.append(text)

    def _break_line(self) -> None:
        if self._texts and not self._n_open_pre:
            self._texts[-1] = self._texts[-1].rstrip(" ")
        if not self._ends_with("\n"):
            self._texts.append("\n")

    def _ends_with(self, ends: str | tuple[str, ...]) -> bool:
        """Ask for the end of the text so far; the page begins as if after a line break."""
        if self._texts:
            return self._texts[-1].endswith(ends)
        return not self._segments

    def _end_text(self) -> None:
        text = "".join(self._texts)
        self._texts = []
        if text.strip():
            self._segments.append(Text(text))

    def _image(self, element: html.HtmlElement) -> Image | None:
        """Return the image; None for one that is too small, or cannot be used and is reported."""
        if any(_declared(element, side) < self.min_side for side in ("width", "height")):
            return None
        source = (element.get("src") or "").strip()
        alt = " ".join((element.get("alt") or "").split())
        if source[:14].lower() == "data:image/svg":
            self._reject(source[:40], "vector-image", "SVG drawings are not decoded.")
            return None
        if source[:5].lower() == "data:":
            try:
                return self._readable(from_data_uri(source), alt, source[:40])
            except DataError as error:
                self._reject(source[:40], "bad-base64", str(error))
                return None
        try:
            scheme, host, address, _, _ = urlsplit(source)
        except ValueError:
            scheme = host = address = ""  # "http://[", say: no file has such a name
        if host or scheme in ("http", "https"):
            self._reject(source, "remote-image", "The image is not on this machine.")
        elif address.lower().endswith((".svg", ".svgz")):
            self._reject(source, "vector-image", "SVG drawings are not decoded.")
        elif (file := self._file(source, address)) is None:
            self._reject(source, "missing-image", "There is no such image beside the page.")
        elif not is_inside(file, self.root):
            self._reject(source, "outside-image", f"The image lies outside {self.root}.")
        else:
            return self._readable(file, alt, source)
        return None

    def _readable(self, image: Path | bytes, alt: str, source: str) -> Image | None:
        """Return the image if its header says that it can be decoded, and is more than a dot."""
        try:
            sides = image_size(image)
        except DataError as error:
            self._reject(source, "unreadable-image", str(error))
            return None
        return Image(image, alt) if min(sides) >= min(_LEAST_SIDE, self.min_side) else None

    def _file(self, source: str, address: str) -> Path | None:
        # A saved page's files may have "%" or "?" in their names, so the source is tried as it is.
        for name in (source, unquote(address)):
            base = self.root if name.startswith("/") else self.page.parent
            file = base / name.lstrip("/")
            if name and os.path.isfile(file):
                return file
        return None

    def _reject(self, source: str, kind: str, reason: str) -> None:
        self.rejections.append(Rejection(f"{self.page}: {source}", kind, reason))


def _declared(element: html.HtmlElement, side: str) -> float:
    """Return the declared side in pixels, and infinity when the page leaves it open."""
    text = (element.get(side) or "").strip()
    match = re.fullmatch(r"(\d+)(?:\.\d+)?(?:\s*px)?", text)
    return float(match[1]) if match else float("inf")
