"""Documents from EPUB books: each chapter a page, in the order in which they are read.

A book is a zip archive, which may claim any size and name any path: what is unpacked is counted,
and nothing outside the archive is read. What a page is stands in
:mod:`pardalis.documents.readers.html`. The rights that a book states are the licence of its pages.
"""

import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lxml import etree

from pardalis.documents.document import Document, Omission, Rejection
from pardalis.documents.readers._page import PageOptions
from pardalis.documents.readers._page_images import NoImageError
from pardalis.documents.readers._site import Content, Page, read_pages
from pardalis.documents.readers._walk import Names, of_files
from pardalis.documents.readers.html import page_files
from pardalis.errors import DataError
from pardalis.files import found_at, require_file

_MOST_FILES = 20_000  # of a book
_MOST_BYTES = 64 << 20  # of one of them, unpacked
_MOST_OF_BOOK = 8 << 30  # unpacked, each time that a page shows it
_PAGES = ("application/xhtml+xml", "text/html")
_ENCRYPTION = "META-INF/encryption.xml"
_CONTAINER = "META-INF/container.xml"


def read_epub(path: Path, options: PageOptions | None = None) -> Iterator[Document | Rejection]:
    """Yield a document for each chapter of the book, or of each ``.epub`` file below a folder.

    Raises:
        DataError: there is no such file or folder.
    """
    if not path.is_file() and not path.is_dir():
        raise DataError(
            f"{path} {found_at(path)}; an EPUB book or a folder of them was expected there."
        )
    return read_pages(partial(_pages, path), options or PageOptions())


def _pages(path: Path) -> Iterator[Page | Rejection]:
    return of_files(path, page_files(path, "epub"), _of_book)


def _of_book(file: Path, root: Path) -> Iterator[Page | Rejection]:
    try:
        require_file(file)
        yield from _chapters(_Book(file), file.relative_to(root).as_posix())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        yield Rejection(str(file), "unreadable-book", f"The book cannot be read: {error}.")


@dataclass(slots=True)
class _Book:
    """The files of a book, which is not kept open; what is read of them is counted."""

    file: Path
    licence: str = ""
    _names: dict[str, zipfile.ZipInfo] = field(default_factory=dict)
    _found: Names = field(default_factory=lambda: Names(()))
    _encrypted: frozenset[str] = frozenset()  # by a shop, as a rule, or to protect fonts
    _n_bytes: int = 0

    def __post_init__(self) -> None:
        with zipfile.ZipFile(self.file) as archive:
            entries = archive.infolist()
        if len(entries) > _MOST_FILES:
            raise ValueError(f"it has more than {_MOST_FILES:,} files")
        for entry in entries:
            self._names.setdefault(entry.filename, entry)

        self._found = Names(self._names)
        if _ENCRYPTION in self:
            listed = _named(_xml(self.read(_ENCRYPTION)), "CipherReference")
            self._encrypted = frozenset(_inside("", each.get("URI", "")) for each in listed)

    def __contains__(self, name: str) -> bool:
        return self._found.find(name) is not None

    def named(self, name: str) -> str:
        """Return the name that the archive has for a file that is in it."""
        return self._found.find(name) or name

    def read(self, name: str) -> bytes:
        """Return the content of a file; raises ValueError."""
        entry = self._names.get(self.named(name))
        if entry is None:
            raise ValueError(f"it has no file {name[:200]!r}")
        if entry.flag_bits & 1 or entry.filename in self._encrypted:
            raise ValueError("it is encrypted")
        try:
            with zipfile.ZipFile(self.file) as archive, archive.open(entry) as file:
                content = file.read(_MOST_BYTES + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise ValueError(f"its file {name[:200]!r} is damaged ({error})") from error
        self._n_bytes += len(content)
        if len(content) > _MOST_BYTES or self._n_bytes > _MOST_OF_BOOK:
            raise ValueError(f"its file {name[:200]!r} unpacks to too many bytes")
        return content


def _chapters(book: _Book, name: str) -> Iterator[Page | Rejection]:
    package = _package(book)
    root = _xml(book.read(package))
    folder = posixpath.dirname(package)
    rights = next(iter(_named(root, "rights")), None)
    book.licence = " ".join("".join(rights.itertext()).split()) if rights is not None else ""
    items = {item.get("id", ""): item for item in _named(root, "item")}
    references = _named(root, "itemref")
    if not references:
        raise ValueError("its package lists no chapters")
    seen: set[str] = set()
    for reference in references:
        item = items.get(reference.get("idref", ""))
        place = _inside(folder, item.get("href", "").partition("#")[0]) if item is not None else ""
        where = f"{book.file}: {place or reference.get('idref', '')}"
        if item is None or place not in book:
            reason = "The book lists a chapter that it does not hold."
            yield Rejection(where, "missing-chapter", reason)
        elif (place := book.named(place)) in seen:
            continue
        elif (kind := item.get("media-type", "")) not in _PAGES:
            reason = f"The chapter is of the type {kind[:60]!r}; pages are read."
            yield Rejection(where, "unread-chapter", reason)
        elif "nav" in item.get("properties", "").split():
            yield Omission(where, "navigation", "The table of contents is left out.")
        else:
            yield Page(f"{name}/{place}", where, partial(_load, book, place))
        seen.add(place)


def _load(book: _Book, place: str) -> Content:
    find = partial(_image, book, posixpath.dirname(place))
    return Content(book.read(place), find, is_xml=True, licence=book.licence)


def _package(book: _Book) -> str:
    """Return the name of the file that lists the chapters."""
    if _CONTAINER not in book:
        raise ValueError(f"it is a zip archive without {_CONTAINER}, and no EPUB")
    for each in _named(_xml(book.read(_CONTAINER)), "rootfile"):
        return _inside("", each.get("full-path", ""))
    raise ValueError(f"its {_CONTAINER} names no package")


def _xml(content: bytes) -> etree._Element:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        return etree.fromstring(content, parser)
    except etree.XMLSyntaxError as error:
        raise ValueError(f"one of its lists is not sound XML ({error})") from error


def _named(root: etree._Element, name: str) -> list[etree._Element]:
    return [each for each in root.iter(etree.Element) if etree.QName(each).localname == name]


def _inside(folder: str, address: str) -> str:
    """Return the name in the archive that an address of a file in a folder means."""
    return posixpath.normpath(posixpath.join(folder, unquote(address))).lstrip("/")


def _image(book: _Book, folder: str, source: str, base: str) -> bytes:
    """Return the image of an address from the book; raises NoImageError."""
    try:
        scheme, host, address, _, _ = urlsplit(source)
        base_path = urlsplit(base).path
    except ValueError:
        scheme = host = address = base_path = ""
    if host or scheme in ("http", "https"):
        raise NoImageError("remote-image", "The image is not in the book.")
    name = _inside(posixpath.join(folder, posixpath.dirname(base_path)), address)
    if name.startswith(".."):
        raise NoImageError("outside-image", "The image lies outside the book.")
    if not address or name not in book:
        raise NoImageError("missing-image", "There is no such image in the book.")
    try:
        return book.read(name)
    except ValueError as error:
        raise NoImageError("unreadable-image", f"The book is damaged: {error}.") from error
