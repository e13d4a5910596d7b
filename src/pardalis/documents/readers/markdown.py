"""Documents from Markdown: text and images in order, as a browser shows the page that it makes.

Markdown is that of GitHub, with tables and HTML. What stands between two lines ``---`` at the top
is about the file, and of it only the title is read. Images are files in the source's folder, or
``data:`` URIs.
"""

import html
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import yaml

from pardalis.documents.document import Document, Rejection
from pardalis.documents.readers._page import PageOptions
from pardalis.documents.readers._site import Content, Page, read_pages
from pardalis.documents.readers._text import read_decoded
from pardalis.documents.readers._walk import files_below, of_files
from pardalis.documents.readers.html import page_of
from pardalis.documents.readers.recognise import expect
from pardalis.files import with_line_feeds

SUFFIXES = (".md", ".markdown", ".mdown", ".mkd")

_ABOUT = re.compile(r"---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_MOST_ABOUT = 1 << 16  # characters
_EXTENSIONS = ["table", "strikethrough"]


def read_markdown(path: Path, options: PageOptions | None = None) -> Iterator[Document | Rejection]:
    """Yield a document for the file, or for each Markdown file below a folder, named by its path.

    Raises:
        DataError: there is nothing at the path.
    """
    expect(path, "a Markdown file, or a folder of such files,")
    return read_pages(partial(_pages, path), options or PageOptions())


def _pages(path: Path) -> Iterator[Page | Rejection]:
    return of_files(path, files_below(path, SUFFIXES), _of_file)


def _of_file(file: Path, root: Path) -> Iterator[Page]:
    page = page_of(file, root)

    def load() -> Content:
        markup = _page(with_line_feeds(read_decoded(file).text)).encode()
        return replace(page.load(), markup=markup, encoding="utf-8")

    yield replace(page, load=load)


def _page(text: str) -> str:
    """Return a text in Markdown as HTML."""
    title = ""
    if about := _ABOUT.match(text):
        text = text[about.end() :]
        title = _title(about[1])
    head = f"<h1>{html.escape(title)}</h1>\n" if title else ""
    # Parsers in Python take a minute for a megabyte of brackets.
    from cmarkgfm import cmark

    options = cmark.Options.CMARK_OPT_UNSAFE  # which keeps HTML and data: URIs
    page = cmark.markdown_to_html_with_extensions(text, options, extensions=_EXTENSIONS)
    return f"<body>{head}{page}</body>"


def _title(about: str) -> str:
    try:
        values = yaml.safe_load(about) if len(about) <= _MOST_ABOUT else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return ""
    title = values.get("title") if isinstance(values, dict) else None
    return title.strip() if isinstance(title, str) else ""
