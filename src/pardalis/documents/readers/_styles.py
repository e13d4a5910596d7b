"""What the style sheets of a page say of its elements: what is hidden, and where lines end.

Sheets in the page, and those beside it that it links to or that these import, are read as a desktop
browser without scripts reads them. Rules for print and for narrow windows do not hold, and the
cascade decides (``!important``, layers, specificity, order). tinycss2 parses the sheets.

Every limit is one of sizes and counts, never of time, so that documents do not depend on the
machine. What follows in a page after its limit is read as if it had no sheets.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urljoin

import tinycss2
from selectolax.lexbor import LexborNode

from pardalis.documents.readers._cascade import (
    Cascade,
    Import,
    Layers,
    Rule,
    Style,
    TooMuchError,
    Tree,
    below,
)
from pardalis.documents.readers._media import holds, text_holds
from pardalis.documents.readers._selectors import selectors
from pardalis.documents.readers._tokens import is_function, is_word, stripped, written
from pardalis.documents.readers._values import TELLING, declared
from pardalis.files import byte_order_mark, read_bytes

FindSheet: TypeAlias = Callable[[str, str], Path | bytes | None]
"""What lies at an address, given the page's base address; None if there is nothing to read."""

_MOST_BYTES = 4 << 20  # of a sheet
_MOST_KEPT = 1 << 17  # characters of it that bear on what is read
_MOST_OF_PAGE = 1 << 18  # of these of all sheets of a page
_MOST_SHEETS = 64  # of a page
_MOST_DEPTH = 8  # of imports and of blocks within blocks
_CACHED = 64  # sheets, and lists of the sheets of a page

_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*+"|\'(?:[^\'\\\n]|\\.)*+\'', re.DOTALL)

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")
# ── parsing ──────────────────────────────────────────────────────────────────────────────────────


_Item: TypeAlias = Rule | Import | Layers


@dataclass(frozen=True, slots=True)
class _Sheet:
    items: tuple[_Item, ...]
    size: int  # characters that were parsed


def _parsed(content: bytes) -> _Sheet:
    """Return what a sheet has to say; raises ValueError."""
    if len(content) > _MOST_BYTES:
        raise ValueError("it is too large")
    mark = byte_order_mark(content)
    encoding, skipped = (mark[0], len(mark[1])) if mark else ("utf-8", 0)
    text = _trimmed(content[skipped:].decode(encoding, "replace"))
    if len(text) > _MOST_KEPT:
        raise ValueError("too much of it hides something")
    rules = tinycss2.parse_stylesheet(text, skip_comments=True, skip_whitespace=True)
    try:
        return _Sheet(tuple(_items(rules, "", 0)), len(text))
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def _trimmed(text: str) -> str:
    """Return a sheet without the rules that say nothing of text, which are nearly all."""
    text = _STRING.sub(_without_braces, _COMMENT.sub(" ", text))
    kept = []
    *chunks, last = text.split("}")
    for chunk in chunks:
        head, brace, body = chunk.rpartition("{")
        if brace and not TELLING.search(body):
            kept.append(head[: max(head.rfind("{"), head.rfind(";")) + 1])
        else:
            kept.append(chunk + "}")
    return "".join((*kept, last if TELLING.search(last) or "@" in last else ""))


def _without_braces(string: re.Match[str]) -> str:
    return '""' if "{" in string[0] or "}" in string[0] or ";" in string[0] else string[0]


def _items(rules: Iterable[Any], layer: str, depth: int) -> Iterator[_Item]:
    for rule in rules:
        if rule.type == "qualified-rule":
            values, important = declared(rule.content)
            for selector in selectors(rule.prelude) if values or important else ():
                yield Rule(selector, layer, values, important)
        elif rule.type == "at-rule":
            yield from _of_at_rule(rule, layer, depth)


def _of_at_rule(rule: Any, layer: str, depth: int) -> Iterator[_Item]:
    name, prelude = rule.lower_at_keyword, stripped(rule.prelude)
    if rule.content is None:
        if name == "import":
            yield from _import(prelude, layer)
        elif name == "layer":
            yield Layers(tuple(below(layer, each.strip()) for each in written(prelude).split(",")))
        return
    is_read = (
        (name == "media" and holds(prelude))
        or (name == "supports" and not is_word(prelude, "not"))
        or name == "layer"
    )
    if is_read and depth < _MOST_DEPTH:
        if name == "layer":
            place = f"-{rule.source_line}:{rule.source_column}"
            layer = below(layer, written(prelude) or place)
            yield Layers((layer,))
        content = tinycss2.parse_rule_list(rule.content, skip_comments=True, skip_whitespace=True)
        yield from _items(content, layer, depth + 1)


def _import(tokens: list[Any], layer: str) -> Iterator[Import]:
    if not tokens:
        return
    first, rest = tokens[0], stripped(tokens[1:])
    address = ""
    if first.type in ("string", "url"):
        address = first.value
    elif is_function(tokens, "url"):
        address = next((each.value for each in first.arguments if each.type == "string"), "")
    if is_word(rest, "layer"):
        rest, layer = stripped(rest[1:]), below(layer, f"-{address}")
    elif is_function(rest, "layer"):
        rest, layer = stripped(rest[1:]), below(layer, written(rest[0].arguments))
    if is_function(rest, "supports"):
        rest = stripped(rest[1:])
    if address and holds(rest):
        yield Import(address.strip(), layer)


# ── the sheets of a page ─────────────────────────────────────────────────────────────────────────


class Sheets:
    """Reads style sheets; those that were read last are kept, as a site has few."""

    def __init__(self) -> None:
        self._parsed: OrderedDict[bytes, _Sheet] = OrderedDict()
        self._cascades: OrderedDict[tuple[tuple[bytes, str], ...], Cascade] = OrderedDict()

    def style_of(
        self, tree: Tree, n_tags: int, find: FindSheet, base: str
    ) -> tuple[Style, list[str]]:
        """Return what the sheets of a page say, and the addresses of those that were not read.

        Sheets that are too large say nothing, which the second part tells then.

        Args:
            n_tags: at least as many as it has elements.
            find: returns what lies at an address.
        """
        reading = _Reading(self.parsed, find)
        try:
            for node in tree.css("style, link[rel]"):
                reading.add(node, base)
        except TooMuchError as error:
            return Style(tree, n_tags), [*reading.unread, str(error)]
        cascade = _kept(self._cascades, tuple(reading.keys), lambda: Cascade(reading.items))
        return Style(tree, n_tags, cascade), reading.unread

    def parsed(self, key: bytes, content: bytes) -> _Sheet:
        """Return what a sheet has to say; raises ValueError."""
        return _kept(self._parsed, key, lambda: _parsed(content))


def _kept(cache: OrderedDict[_Key, _Value], key: _Key, make: Callable[[], _Value]) -> _Value:
    if key not in cache:
        cache[key] = make()
        if len(cache) > _CACHED:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]


@dataclass(slots=True)
class _Reading:
    """What a page's sheets say, in order."""

    parsed: Callable[[bytes, bytes], _Sheet]
    find: FindSheet
    items: list[tuple[Rule | Layers, str]] = field(default_factory=list)  # each in a layer
    keys: list[tuple[bytes, str]] = field(default_factory=list)  # of the sheets, and their layers
    unread: list[str] = field(default_factory=list)
    _n_characters: int = 0

    def add(self, node: LexborNode, base: str) -> None:
        """Read the sheet of an element of the page."""
        attributes = node.attributes
        kind = (attributes.get("type") or "text/css").strip().lower()
        if kind != "text/css" or not text_holds(attributes.get("media") or ""):
            return
        if node.tag == "style":
            self._read((node.text() or "").encode("utf-8", "replace"), "<style>", base, "", ())
            return
        relations = (attributes.get("rel") or "").lower().split()
        address = (attributes.get("href") or "").strip()
        is_other = "alternate" in relations or "disabled" in attributes
        if "stylesheet" in relations and not is_other and address:
            self._load(address, base, "", ())

    def _load(self, address: str, base: str, layer: str, above: tuple[str, ...]) -> None:
        """Read a sheet beside the page; ``above`` are the addresses of those that import it."""
        try:
            place = urljoin(base, address)
        except ValueError:
            place = address
        if place in above:
            return
        content = self.find(address, base) if len(above) < _MOST_DEPTH else None
        try:
            if isinstance(content, Path):
                content = read_bytes(content, _MOST_BYTES)
        except OSError:
            content = None
        if content is None:
            self.unread.append(address)
        else:
            self._read(content, address, place, layer, (*above, place))

    def _read(
        self, content: bytes, name: str, place: str, layer: str, above: tuple[str, ...]
    ) -> None:
        key = blake2b(content).digest()
        self.keys.append((key, layer))
        if len(self.keys) > _MOST_SHEETS:
            raise TooMuchError(f"more than {_MOST_SHEETS} sheets")
        try:
            sheet = self.parsed(key, content)
        except ValueError:
            self.unread.append(name)
            return
        self._n_characters += sheet.size
        if self._n_characters > _MOST_OF_PAGE:
            raise TooMuchError(f"more than {_MOST_OF_PAGE >> 10} KiB of rules")
        for item in sheet.items:
            if isinstance(item, Import):
                self._load(item.address, place, below(layer, item.layer), above)
            else:
                self.items.append((item, layer))
