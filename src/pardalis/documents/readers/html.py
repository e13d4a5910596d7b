"""Documents from HTML pages: text and images in reading order, as a browser shows them.

An image that cannot be used is reported as a rejection, and its page is kept without it; so is an
image that is found damaged when its page is encoded (:mod:`pardalis.data.prepare`). What a rule
leaves out, such as navigation, is an omission of the page, one for each rule.
"""

import mimetypes
import os
import re
from collections.abc import Container, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pardalis.documents.document import Document, Omission, Rejection
from pardalis.documents.readers._lines import is_inside
from pardalis.documents.readers._page import PageOptions
from pardalis.documents.readers._page_images import NoImageError
from pardalis.documents.readers._site import Content, Page, read_pages
from pardalis.documents.readers._walk import files_where, find_below, of_files
from pardalis.documents.readers.recognise import hint_at
from pardalis.errors import DataError
from pardalis.files import found_at, read_bytes

PAGE_SUFFIXES = (".html", ".htm", ".xhtml", ".xht")

_SUFFIXES = {"html": PAGE_SUFFIXES, "mhtml": (".mhtml", ".mht"), "epub": (".epub",)}

# What a mirror of a site has in a name behind that of the file; Windows allows no question mark.
_QUERY = re.compile(r"[?].*|@[^@=]*=.*", re.DOTALL)
# The endings of pages that a server makes.
_SERVED = (
    ".php", ".php3", ".php4", ".php5", ".phtml", ".asp", ".aspx", ".jsp", ".jspx", ".cfm", ".cgi",
    ".shtml", ".shtm",
)  # fmt: skip
_OF_OTHERS = frozenset(mimetypes.MimeTypes().types_map[True])  # endings that are no pages'
_BEGINNING = 4096  # bytes
# What a page begins with, as browsers find it out; a prologue and comments may stand before. The
# first two are those of whole pages: Markdown and templates begin with others.
_BEGINS = re.compile(
    rb"(?:\xef\xbb\xbf|\xff\xfe|\xfe\xff)?(?:\s|<!--(?>.*?-->)|<\?xml[^>]*+>)*+"
    rb"<(?:(!doctype\s+html|html)|head|body|title|meta|link|script|style|table|div|p|h[1-6]|a|b|br|"
    rb"font|iframe|center)(?:[\s/>])",
    re.DOTALL | re.IGNORECASE,
)

# What browsers add to the name of a page for the folder of its files, in several languages.
_OF_FILES = re.compile(
    r"(?:_files|\.files|-Dateien|_fichiers|_archivos|_arquivos|_ficheiros|_bestanden|_file|_filer|"
    r"-filer|-tiedostot|_pliki|_soubory|_elemei|_dosyalar|_data)\Z"
)


def read_html(path: Path, options: PageOptions | None = None) -> Iterator[Document | Rejection]:
    """Yield a document for the page, or for each page below a folder in sorted order.

    Args:
        path: a page, or a folder that is searched for ``.html``, ``.htm`` and ``.xhtml`` files,
            and for what a mirror of a site has under other names, such as ``view.php?id=3``.

    Raises:
        DataError: there is no such file or folder.
    """
    if not path.is_file() and not path.is_dir():
        raise DataError(
            f"{path} {found_at(path)}; an HTML page or a folder of them was expected there."
        )
    return read_pages(partial(_pages, path), options or PageOptions())


def _pages(path: Path) -> Iterator[Page | Rejection]:
    return of_files(path, page_files(path, "html"), lambda file, root: iter((page_of(file, root),)))


def page_files(path: Path, reader: str) -> Iterator[Path | Rejection]:
    """Yield a file, or those below a folder, without the frames that a browser saved of a page.

    Pages of another format are left out, each with the name of its reader.
    """
    suffixes = tuple(suffix for each in _SUFFIXES.values() for suffix in each)

    def is_wanted(name: str) -> bool:
        return name.lower().endswith(suffixes) or (reader == "html" and _may_be_page(name))

    for file in files_where(path, is_wanted, lambda name, beside: not _is_of_page(name, beside)):
        if (
            isinstance(file, Rejection)
            or file == path
            or file.name.lower().endswith(_SUFFIXES[reader])
        ):
            yield file
        elif file.name.lower().endswith(suffixes):
            yield Omission(str(file), "other-reader", hint_at(file, reader).strip())
        elif is_page(file):
            yield file
        elif _is_served(file.name):
            reason = "The name is that of a page, and the file does not begin as one."
            yield Omission(str(file), "no-page", reason)


def is_page(file: Path) -> bool:
    """Whether a file is a page, by its name, or by its first bytes if the name leaves it open.

    A file whose name is not that of a page begins as a whole one.
    """
    if file.name.lower().endswith(PAGE_SUFFIXES):
        return True
    if not _may_be_page(file.name) or not file.is_file():
        return False
    try:
        with open(file, "rb") as content:
            beginning = content.read(_BEGINNING)
    except OSError:
        return False
    found = _BEGINS.match(beginning.replace(b"\0", b""))
    return found is not None and (_is_served(file.name) or found[1] is not None)


def _ending(name: str) -> str:
    """Return the ending of the name of a file, in lower case, without the query of a mirror."""
    return os.path.splitext(_QUERY.sub("", name))[1].lower()


def _may_be_page(name: str) -> bool:
    ending = _ending(name)
    return ending in PAGE_SUFFIXES or ending not in _OF_OTHERS


def _is_served(name: str) -> bool:
    ending = _ending(name)
    return ending in _SERVED or ending in PAGE_SUFFIXES


def _is_of_page(folder: str, beside: Container[str]) -> bool:
    """Whether a folder has the files of a page that a browser has saved beside it."""
    ending = _OF_FILES.search(folder)
    page = folder[: ending.start()] if ending else ""
    return bool(page) and any(f"{page}{suffix}" in beside for suffix in PAGE_SUFFIXES)


def page_of(file: Path, root: Path) -> Page:
    """Return a page whose images may lie anywhere in a folder."""

    def load() -> Content:
        is_xml = _ending(file.name) in (".xhtml", ".xht")
        return Content(read_bytes(file), partial(_image_file, file, root), is_xml=is_xml)

    return Page(file.relative_to(root).as_posix(), str(file), load)


def _image_file(page: Path, root: Path, source: str, base: str) -> Path:
    """Return the file that an address of a page means; raises NoImageError."""
    try:
        scheme, host, address, _, _ = urlsplit(source)
        base_scheme, base_host, base_path, _, _ = urlsplit(base)
    except ValueError:  # "http://[", say: no file has such a name
        scheme = host = address = base_scheme = base_host = base_path = ""
    if not scheme and not host:
        scheme, host = base_scheme, base_host
    if host or scheme in ("http", "https"):
        raise NoImageError("remote-image", "The image is not on this machine.")
    start = root if base_path.startswith("/") else page.parent
    start = start / unquote(base_path.rpartition("/")[0]).lstrip("/")
    # A saved page's files may have "%" or "?" in their names, so the source is tried as it is.
    whole = unquote(source)
    for name in dict.fromkeys((source, whole, whole.replace("?", "@"), unquote(address))):
        folder = root if name.startswith("/") else start
        file = find_below(folder, name.lstrip("/")) if name and "\0" not in name else None
        if file is not None:
            if is_inside(file, root):
                return file
            raise NoImageError("outside-image", f"The image lies outside {root}.")
    raise NoImageError("missing-image", "There is no such image beside the page.")
