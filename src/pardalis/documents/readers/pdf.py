"""Documents from PDF: each page is one, its text with its images in place, or as it looks.

The library is pypdfium2 (the extra ``pdf``) or, where its licence fits, PyMuPDF. An image stands
before the first line that lies below its middle in its columns. Drawings that are no images, such
as most plots, are in no document unless pages are rendered (``pages = "rendered"``).
"""

import importlib
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import PIL.Image

from pardalis.config import check_at_least
from pardalis.documents.document import Document, Image, Rejection, Segment, Text, is_unicode
from pardalis.documents.images import MAX_PIXELS
from pardalis.documents.readers._walk import files_below, of_files
from pardalis.documents.readers.recognise import expect
from pardalis.errors import DataError, PardalisError
from pardalis.files import MOST_BYTES, read_bytes
from pardalis.imports import optional_package

SUFFIXES = (".pdf",)

_POINTS_PER_INCH = 72
_MOST_CHARACTERS = 1 << 20  # of a page
_MOST_IMAGES = 1000  # of a page

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in points from the upper left corner of a page."""

_NOWHERE: Box = (0.0, 0.0, 0.0, 0.0)
_ABOVE: Box = (-math.inf, -math.inf, math.inf, -math.inf)


@dataclass(frozen=True, kw_only=True, slots=True)
class PdfOptions:
    """How the pages of a PDF become documents."""

    library: Literal["pypdfium2", "pymupdf"] = "pypdfium2"
    # "text": the text of a page with its images; "rendered": the page as an image, and its text.
    pages: Literal["text", "rendered"] = "text"
    dots_per_inch: int = 144  # of rendered pages
    min_side: int = 32  # pixels: images that have fewer in width or height are left out

    def __post_init__(self) -> None:
        check_at_least(self, dots_per_inch=1, min_side=1)


class Line(NamedTuple):
    text: str
    box: Box


class Figure(NamedTuple):
    """An image on a page, or the reason why it cannot be used."""

    image: PIL.Image.Image | bytes | str
    box: Box


def read_pdf(path: Path, options: PdfOptions | None = None) -> Iterator[Document | Rejection]:
    """Yield a document for each page of a file, or of all files below a folder.

    Raises:
        DataError: there is nothing at the path.
        ConfigError: the library is not installed.
    """
    expect(path, "a PDF file, or a folder of such files,")
    options = options or PdfOptions()
    with optional_package("Reading PDF", "pdf"):
        importlib.import_module(options.library)
    return of_files(path, files_below(path, SUFFIXES), partial(_read, options=options))


def _read(file: Path, root: Path, options: PdfOptions) -> Iterator[Document | Rejection]:
    opened = _Pdfium if options.library == "pypdfium2" else _Mupdf
    name = file.relative_to(root).as_posix()
    try:
        with closing(opened(read_bytes(file, MOST_BYTES))) as pages:
            for number in range(pages.n_pages):
                place = f"{name}:{number + 1}", f"{file}, page {number + 1}"
                yield from _page(pages, number, *place, options)
    except (OSError, DataError) as error:
        reason = f"The file cannot be read: {str(error).rstrip('.')}."
        yield Rejection(str(file), "unreadable-file", reason)


def _page(
    pages: Any, number: int, name: str, where: str, options: PdfOptions
) -> Iterator[Document | Rejection]:
    try:
        with closing(pages.page(number)) as page:
            lines = _cleaned(page.lines())
            if options.pages == "rendered":
                figures = [Figure(page.rendered(options.dots_per_inch), _ABOVE)]
            else:
                figures = list(page.figures(options.min_side))
    except DataError as error:
        yield Rejection(where, "unreadable-page", f"The page cannot be read: {error}.")
        return
    segments: list[Segment] = []
    placed: dict[int, list[Image]] = {}
    for figure in figures:
        if isinstance(figure.image, str):
            kind = "small-image" if figure.image.startswith("The image is small") else "bad-image"
            yield Rejection(where, kind, figure.image)
        else:
            placed.setdefault(_place(figure.box, lines), []).append(Image(figure.image))
    words: list[str] = []
    for index in range(len(lines) + 1):
        if index in placed:
            segments += [Text("\n".join(words))] if any(map(str.strip, words)) else []
            segments += placed[index]
            words = []
        words += [lines[index].text] if index < len(lines) else []
    segments += [Text("\n".join(words))] if any(map(str.strip, words)) else []
    if segments:
        yield Document(tuple(segments), name)
    else:
        yield Rejection(where, "empty-document", "The page has neither text nor images.")


def _place(box: Box, lines: list[Line]) -> int:
    """Return the index of the line before which an image stands."""
    left, top, right, bottom = box
    middle = (top + bottom) / 2
    for index, line in enumerate(lines):
        is_beside = line.box[0] < right and left < line.box[2]
        if is_beside and line.box[1] >= middle:
            return index
    return len(lines)


def _cleaned(lines: Iterator[Line]) -> list[Line]:
    """Return lines with what they mean, and words whole that a hyphen divided."""
    found: list[Line] = []
    for text, box in lines:
        text = text.replace("\0", "").replace("\x02", "\ufffe").strip()
        if not is_unicode(text):
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if found and found[-1].text.endswith("\ufffe"):
            found[-1] = Line(found[-1].text[:-1] + text, found[-1].box)
        elif text:
            found.append(Line(text, box))
    return [Line(text.replace("\ufffe", ""), box) for text, box in found]


def _small(width: int, height: int) -> str:
    return f"The image is small, {width} x {height} pixels, and is left out."


# ── pypdfium2 ────────────────────────────────────────────────────────────────────────────────────


class _Pdfium:
    """A document that pypdfium2 reads."""

    def __init__(self, content: bytes) -> None:
        import pypdfium2

        try:
            self._document = pypdfium2.PdfDocument(content)
            self.n_pages = len(self._document)
        except pypdfium2.PdfiumError as error:
            if "password" in str(error).lower():
                raise DataError("it needs a password") from error
            raise DataError(f"it is no PDF that can be opened ({error})") from error

    def page(self, number: int) -> "_PdfiumPage":
        import pypdfium2

        try:
            return _PdfiumPage(self._document[number])
        except pypdfium2.PdfiumError as error:
            raise DataError(str(error).rstrip(".")) from error

    def close(self) -> None:
        self._document.close()


class _PdfiumPage:
    def __init__(self, page: Any) -> None:
        self._page = page
        self._height = page.get_height()

    def close(self) -> None:
        self._page.close()

    def _box(self, left: float, bottom: float, right: float, top: float) -> Box:
        return left, self._height - top, right, self._height - bottom

    def lines(self) -> Iterator[Line]:
        import pypdfium2
        from pypdfium2 import raw

        try:
            texts = self._page.get_textpage()
        except pypdfium2.PdfiumError as error:
            raise DataError(str(error).rstrip(".")) from error
        with closing(texts):
            letters: list[str] = []
            boxes: list[Box] = []
            for index in range(min(texts.count_chars(), _MOST_CHARACTERS)):
                letter = chr(raw.FPDFText_GetUnicode(texts, index))
                if letter not in "\r\n":
                    letters.append(letter)
                    if not letter.isspace():
                        boxes.append(self._box(*texts.get_charbox(index)))
                elif letters:
                    yield from _line(letters, boxes)
                    letters, boxes = [], []
            yield from _line(letters, boxes)

    def figures(self, min_side: int) -> Iterator[Figure]:
        import pypdfium2
        from pypdfium2 import raw

        for number, each in enumerate(self._page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE])):
            if number == _MOST_IMAGES:
                reason = f"The page has more than {_MOST_IMAGES} images; the others are left out."
                yield Figure(reason, _NOWHERE)
                return
            try:
                box = self._box(*each.get_bounds())
                width, height = each.get_px_size()
                if min(width, height) < min_side:
                    yield Figure(_small(width, height), box)
                elif width * height > MAX_PIXELS:
                    reason = f"The image has {width} x {height} pixels, more than are decoded."
                    yield Figure(reason, box)
                else:
                    bitmap = each.get_bitmap(render=True)
                    yield Figure(bitmap.to_pil().copy(), box)
                    bitmap.close()
            except (pypdfium2.PdfiumError, ValueError, RuntimeError) as error:
                yield Figure(f"An image of the page cannot be decoded: {error}.", _NOWHERE)

    def rendered(self, dots_per_inch: int) -> PIL.Image.Image:
        import pypdfium2

        width, height = self._page.get_size()
        scale = _scale(width, height, dots_per_inch)
        try:
            return self._page.render(scale=scale).to_pil().convert("RGB")
        except pypdfium2.PdfiumError as error:
            raise DataError(str(error).rstrip(".")) from error


def _line(letters: list[str], boxes: list[Box]) -> Iterator[Line]:
    if boxes:
        left, top, right, bottom = zip(*boxes, strict=True)
        yield Line("".join(letters), (min(left), min(top), max(right), max(bottom)))


def _scale(width: float, height: float, dots_per_inch: int) -> float:
    """Return the pixels of a point, so that a page is not larger than what is decoded."""
    area = width * height
    if not 0 < area < float("inf"):
        raise DataError(f"it is {width:g} x {height:g} points, which is no page")
    return min(dots_per_inch / _POINTS_PER_INCH, (MAX_PIXELS / area) ** 0.5 * 0.99)


# ── PyMuPDF ──────────────────────────────────────────────────────────────────────────────────────


class _Mupdf:
    """A document that PyMuPDF reads."""

    def __init__(self, content: bytes) -> None:
        import pymupdf

        pymupdf.TOOLS.mupdf_display_errors(False)
        pymupdf.TOOLS.mupdf_display_warnings(False)
        try:
            self._document = pymupdf.open(stream=content, filetype="pdf")
            if self._document.needs_pass:
                raise DataError("it needs a password")
            self.n_pages = self._document.page_count
        except PardalisError:
            raise
        except Exception as error:  # as many classes as the library has layers
            raise DataError(f"it is no PDF that can be opened ({error})") from error

    def page(self, number: int) -> "_MupdfPage":
        try:
            return _MupdfPage(self._document[number])
        except Exception as error:
            raise DataError(str(error).rstrip(".")) from error

    def close(self) -> None:
        self._document.close()


class _MupdfPage:
    def __init__(self, page: Any) -> None:
        self._page = page
        self._blocks = page.get_text("dict")["blocks"]

    def close(self) -> None:
        pass

    def lines(self) -> Iterator[Line]:
        for block in self._blocks:
            for line in block.get("lines", ()):
                yield Line("".join(span["text"] for span in line["spans"]), tuple(line["bbox"]))

    def figures(self, min_side: int) -> Iterator[Figure]:
        for block in self._blocks:
            if block["type"] != 1:
                continue
            width, height, box = block["width"], block["height"], tuple(block["bbox"])
            if min(width, height) < min_side:
                yield Figure(_small(width, height), box)
            else:
                yield Figure(block["image"], box)

    def rendered(self, dots_per_inch: int) -> PIL.Image.Image:
        scale = _scale(self._page.rect.width, self._page.rect.height, dots_per_inch)
        import pymupdf

        try:
            pixels = self._page.get_pixmap(matrix=pymupdf.Matrix(scale, scale), alpha=False)
            size = (pixels.width, pixels.height)
            return PIL.Image.frombytes("RGB", size, pixels.samples)
        except Exception as error:
            raise DataError(str(error).rstrip(".")) from error
