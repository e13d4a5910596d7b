"""Documents from HTML pages: text and images of the body in reading order.

Scripts, styles, navigation, headers and footers are left out. An image that cannot be used is
reported as a rejection, and its page is kept without it.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lxml import etree, html

from pardalis.documents.document import Document, Image, Rejection, Segment, Text
from pardalis.documents.images import from_data_uri
from pardalis.documents.readers._lines import is_inside
from pardalis.errors import DataError
from pardalis.files import found_at

PAGE_SUFFIXES = (".html", ".htm", ".xhtml")

_SKIPPED = frozenset(
    {"script", "style", "nav", "header", "footer", "noscript", "template", "svg", "head"}
)

# Elements that begin and end a line of their own.
_BLOCKS = frozenset((
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details",
    "dialog", "div", "dl", "dt", "fieldset", "figcaption", "figure", "form", "h1", "h2", "h3", "h4",
    "h5", "h6", "hr", "li", "main", "ol", "p", "pre", "section", "summary", "table", "tbody",
    "tfoot", "thead", "tr", "ul",
))  # fmt: skip


def read_html(path: Path, *, min_side: int = 48) -> Iterator[Document | Rejection]:
    """Yield a document for the page, or for each page below a folder in sorted order.

    Args:
        path: a page, or a folder that is searched for ``.html``, ``.htm`` and ``.xhtml`` files.
        min_side: images that declare a width or height below this many pixels are dropped.

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
        body = _parse(page.read_bytes())
    except (OSError, etree.LxmlError) as error:
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
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        encoding = None  # what the page declares
    else:
        encoding = "utf-8"  # libxml2 would take a page that declares nothing for Latin-1
    parser = html.HTMLParser(encoding=encoding, remove_comments=True, remove_pis=True)
    return html.document_fromstring(content, parser=parser).find("body")


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
                return Image(from_data_uri(source), alt)
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
            return Image(file, alt)
        return None

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
    match = re.fullmatch(r"\s*(\d+)(?:\.\d+)?\s*(?:px)?\s*", element.get(side) or "")
    return float(match[1]) if match else float("inf")
