"""Documents from pages that a browser saved into one file each (MHTML, RFC 2557).

Such a file holds a page and its images as parts of a mail message, each with the address that it
was loaded from. What a page is stands in :mod:`pardalis.documents.readers.html`.
"""

import email
import email.policy
from collections.abc import Iterator
from email.message import Message
from functools import partial
from pathlib import Path
from urllib.parse import urljoin

from pardalis.documents.document import Document, Rejection
from pardalis.documents.readers._page import PageOptions
from pardalis.documents.readers._page_images import NoImageError
from pardalis.documents.readers._site import Content, Page, read_pages
from pardalis.documents.readers._walk import of_files
from pardalis.documents.readers.html import page_files
from pardalis.errors import DataError
from pardalis.files import found_at, read_bytes

_PAGES = ("text/html", "application/xhtml+xml")
_MOST_DEPTH = 50  # of parts within parts


def read_mhtml(path: Path, options: PageOptions | None = None) -> Iterator[Document | Rejection]:
    """Yield a document for the file, or for each ``.mhtml`` and ``.mht`` file below a folder.

    Raises:
        DataError: there is no such file or folder.
    """
    if not path.is_file() and not path.is_dir():
        raise DataError(
            f"{path} {found_at(path)}; an MHTML page or a folder of them was expected there."
        )
    return read_pages(partial(_pages, path), options or PageOptions())


def _pages(path: Path) -> Iterator[Page | Rejection]:
    return of_files(path, page_files(path, "mhtml"), _page)


def _page(file: Path, root: Path) -> Iterator[Page]:
    yield Page(file.relative_to(root).as_posix(), str(file), partial(_load, file))


def _load(file: Path) -> Content:
    content = read_bytes(file)
    if content.lower().count(b"multipart/") > _MOST_DEPTH:
        raise ValueError("its parts are nested too deeply")
    try:
        message = email.message_from_bytes(content, policy=email.policy.compat32)
        parts = [part for part in message.walk() if not part.is_multipart()]
    except RecursionError:
        raise ValueError("its parts are nested too deeply") from None
    pages = [part for part in parts if part.get_content_type() in _PAGES]
    if not pages or not (message.is_multipart() or "MIME-Version" in message):
        raise ValueError("it is not MHTML, or holds no HTML page")
    address = str(message.get("Snapshot-Content-Location", ""))
    start = str(message.get_param("start", "") or "")
    page = next(
        (
            part
            for part in pages
            if str(part.get("Content-Location", "")) == address
            or (start and str(part.get("Content-ID", "")).strip() == start)
        ),
        pages[0],
    )
    place = str(page.get("Content-Location", "")).strip() or address
    files: dict[str, Message] = {}
    for part in parts:
        if part is not page:
            if name := str(part.get("Content-Location", "")).strip():
                files.setdefault(urljoin(place, name), part)
            if name := str(part.get("Content-ID", "")).strip().strip("<>"):
                files.setdefault(f"cid:{name}", part)
    return Content(
        _payload(page),
        partial(_image, files, place),
        encoding=page.get_content_charset("") or "",
        is_xml=page.get_content_type() == "application/xhtml+xml",
    )


def _payload(part: Message) -> bytes:
    content = part.get_payload(decode=True)
    return content if isinstance(content, bytes) else b""


def _image(files: dict[str, Message], place: str, source: str, base: str) -> bytes:
    """Return the image of an address from the file; raises NoImageError."""
    try:
        address = urljoin(urljoin(place, base), source)
    except ValueError:
        address = source
    part = files.get(address) or files.get(source)
    if part is None:
        kind = "remote-image" if address.startswith(("http:", "https:")) else "missing-image"
        raise NoImageError(kind, "The page was saved without this image.")
    return _payload(part)
