"""The pages of a source as documents, and what all of them repeat.

What a site shows on most pages, such as the links and arrows to the next one, is found by reading
a sample of the pages first, and left out of all.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pardalis.documents.document import Document, Rejection
from pardalis.documents.readers._assemble import Key, segments
from pardalis.documents.readers._encoding import decode
from pardalis.documents.readers._page import PageOptions, Walk
from pardalis.documents.readers._page_images import Find
from pardalis.documents.readers._styles import Sheets
from pardalis.documents.readers._tree import parse
from pardalis.errors import DataError
from pardalis.files import kind_of

_SAMPLED = 1000  # pages in which what all repeat is looked for
_FEWEST = 4  # pages: what fewer share may be chance


@dataclass(frozen=True, slots=True)
class Content:
    """What is read of one page."""

    markup: bytes
    find: Find  # its images
    encoding: str = ""  # as stated beside the page; "": not stated
    is_xml: bool = False
    licence: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a source; ``load`` raises OSError or ValueError if it cannot be read."""

    name: str
    where: str
    load: Callable[[], Content]


Pages = Callable[[], Iterator[Page | Rejection]]


def read_pages(pages: Pages, options: PageOptions) -> Iterator[Document | Rejection]:
    """Yield a document for each page, after what is rejected of it; then what rules left out."""
    sheets = Sheets()
    left_out = _repeated(pages, options, sheets) if options.repeated < 1 else frozenset()
    for page in pages():
        if isinstance(page, Rejection):
            yield page
        else:
            yield from _read(page, options, sheets, left_out)


def _read(
    page: Page, options: PageOptions, sheets: Sheets, left_out: frozenset[Key]
) -> Iterator[Document | Rejection]:
    try:
        content = page.load()
        walk = _walk(page, content, options, sheets)
        blocks = walk.run()
    except (OSError, ValueError, DataError) as error:
        yield Rejection(page.where, "unreadable-page", f"The page cannot be read: {error}.")
        return
    yield from walk.counts.rejections
    for block in blocks:
        if not block.is_verbatim and block.key in left_out:
            shown = block.key[1] if isinstance(block.content, str) else "an image"
            walk.counts.add("repeated", shown)
    document = Document(segments(blocks, left_out), page.name, content.licence)
    if document.is_empty:
        reason = "The page's body has neither text nor images."
        yield Rejection(page.where, "empty-document", reason)
    else:
        yield document
    yield from walk.counts.omissions()


def _walk(page: Page, content: Content, options: PageOptions, sheets: Sheets) -> Walk:
    if kind := kind_of(content.markup[:32]):
        raise ValueError(f"it is {kind} and no page")
    text = decode(content.markup, content.encoding)
    walk = Walk(parse(text, is_xml=content.is_xml), content.find, options, page.where)
    if options.style_sheets:
        walk.read_sheets(sheets, text.count("<"))
    # Those that the page's author wrote are none.
    if (n_bad := text.count("\ufffd") - content.markup.count("\ufffd".encode())) > 0:
        walk.counts.add("bad-bytes", "", n_bad)
    return walk


def _repeated(pages: Pages, options: PageOptions, sheets: Sheets) -> frozenset[Key]:
    """Return what stands on more than a share of the pages, of a sample of them."""
    found = (page for page in pages() if isinstance(page, Page))
    sample = heapq.nsmallest(
        _SAMPLED,
        found,
        key=lambda page: hashlib.sha256(page.name.encode(errors="replace")).digest(),
    )
    counts: Counter[Key] = Counter()
    n_read = 0
    for page in sample:
        try:
            blocks = _walk(page, page.load(), options, sheets).run()
        except (OSError, ValueError, DataError):
            continue
        n_read += 1
        counts.update({block.key for block in blocks if not block.is_verbatim and block.content})
    least = max(_FEWEST - 1, options.repeated * n_read)
    return frozenset(key for key, count in counts.items() if count > least)
