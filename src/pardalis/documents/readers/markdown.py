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
from urllib.parse import quote, unquote

import yaml

from pardalis.documents.document import Document, Rejection
from pardalis.documents.readers._page import PageOptions
from pardalis.documents.readers._page_images import Find, NoImageError
from pardalis.documents.readers._site import Content, Page, read_pages
from pardalis.documents.readers._text import read_decoded
from pardalis.documents.readers._walk import Folder, Names, files_below, of_files, walk
from pardalis.documents.readers.folder import is_image
from pardalis.documents.readers.html import page_of
from pardalis.documents.readers.recognise import expect
from pardalis.files import parse_toml, with_line_feeds

SUFFIXES = (".md", ".markdown", ".mdown", ".mkd")

_TOML = re.compile(r"\+\+\+[ \t]*\n(.*?)\n\+\+\+[ \t]*(?:\n|\Z)", re.DOTALL)
_ABOUT = re.compile(r"---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_MOST_BRACKETS = 2000
_OF_WIKI = "wiki"  # in place of the scheme of an address
_MOST_ABOUT = 1 << 16  # characters
_EXTENSIONS = ["table", "strikethrough"]

# Images as Obsidian and wikis name them, by the names of their files: ![[owl.png|300]].
_WIKI = re.compile(r"!\[\[([^\[\]|\n]{1,300}+)(?:\|([^\[\]\n]*+))?\]\]")
_SIZE = re.compile(r"\d+(?:x\d+)?")
# Formulas, which GitHub shows as TeX: their signs are none of Markdown.
_FORMULA = re.compile(
    r"\$\$[^$`]{1,4000}?\$\$|(?<![\w$\\])\$(?=\S)[^$`\n]{1,1000}?(?<=[^\s\\])\$(?![\w$])"
)
_SIGNS = {ord(sign): 0x10F000 + ord(sign) for sign in "\\*_{}[]<>&|~^`#+-!()"}
_SIGNS_BACK = {code: html.escape(chr(sign)) for sign, code in _SIGNS.items()}


class _Wiki:
    """The images of a source by their names alone, wherever they lie."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._found: dict[str, Path] = {}
        self._names: Names | None = None

    def find(self, name: str) -> Path | None:
        if self._names is None:
            for folder in walk(self._root, is_image):
                if isinstance(folder, Folder):
                    for each in folder.names:
                        self._found.setdefault(each, folder.path / each)
            self._names = Names(self._found)
        found = self._names.find(name.rpartition("/")[2])
        return self._found[found] if found else None


def read_markdown(path: Path, options: PageOptions | None = None) -> Iterator[Document | Rejection]:
    """Yield a document for the file, or for each Markdown file below a folder, named by its path.

    Raises:
        DataError: there is nothing at the path.
    """
    expect(path, "a Markdown file, or a folder of such files,")
    return read_pages(partial(_pages, path), options or PageOptions())


def _pages(path: Path) -> Iterator[Page | Rejection]:
    wiki = _Wiki(path if path.is_dir() else path.parent)
    return of_files(path, files_below(path, SUFFIXES), partial(_of_file, wiki=wiki))


def _of_file(file: Path, root: Path, wiki: _Wiki) -> Iterator[Page]:
    page = page_of(file, root)

    def load() -> Content:
        content = page.load()
        markup = _page(with_line_feeds(read_decoded(file).text)).encode()
        find = partial(_image, content.find, wiki)
        return replace(content, markup=markup, encoding="utf-8", find=find)

    yield replace(page, load=load)


def _image(find: Find, wiki: _Wiki, source: str, base: str) -> Path | bytes:
    scheme, _, name = source.partition(":")
    if scheme != _OF_WIKI:
        return find(source, base)
    try:
        return find(name, base)
    except NoImageError:
        if found := wiki.find(unquote(name)):
            return found
        raise


def _page(text: str) -> str:
    """Return a text in Markdown as HTML."""
    title = ""
    if about := _ABOUT.match(text) or _TOML.match(text):
        text = text[about.end() :]
        title = _title(about[1], is_toml=about[0].startswith("+"))
    text = _FORMULA.sub(lambda found: found[0].translate(_SIGNS), text)
    text = _WIKI.sub(_of_wiki, text)
    head = f"<h1>{html.escape(title)}</h1>\n" if title else ""
    # Parsers in Python take a minute for a megabyte of brackets.
    from cmarkgfm import cmark

    options = cmark.Options.CMARK_OPT_UNSAFE  # which keeps HTML and data: URIs
    # With notes the time for brackets grows with their square, or faster.
    if "[^" in text and text.count("[") <= _MOST_BRACKETS:
        options |= cmark.Options.CMARK_OPT_FOOTNOTES
    page = cmark.markdown_to_html_with_extensions(text, options, extensions=_EXTENSIONS)
    return f"<body>{head}{page.translate(_SIGNS_BACK)}</body>"


def _of_wiki(link: re.Match[str]) -> str:
    """Return an image of a wiki in the form that all readers of Markdown know."""
    target, label = link[1].strip(), (link[2] or "").strip()
    alt = "" if _SIZE.fullmatch(label) else label
    return f"![{alt}]({_OF_WIKI}:{quote(target)})" if is_image(target) else link[0]


def _title(about: str, *, is_toml: bool) -> str:
    try:
        parse = parse_toml if is_toml else yaml.safe_load
        values = parse(about) if len(about) <= _MOST_ABOUT else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return ""
    title = values.get("title") if isinstance(values, dict) else None
    return title.strip() if isinstance(title, str) else ""
