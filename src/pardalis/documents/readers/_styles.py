"""What the style sheets of a page hide: ``display: none`` and ``visibility: hidden``.

Sheets in the page, and those beside it that it links to or that these import, are read as a desktop
browser without scripts reads them. Rules for print and for narrow windows do not hold, and the
cascade decides (``!important``, layers, specificity, order). tinycss2 parses the sheets; parts of
selectors are matched by lexbor, whose time grows with the page, and put together here, since
matching whole selectors may take as many steps as there are chains of elements.

Every limit is one of sizes and counts, never of time, so that documents do not depend on the
machine. Of a page that exceeds them nothing is hidden by its sheets.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import urljoin

import tinycss2
from selectolax.lexbor import LexborHTMLParser, LexborNode, SelectolaxError

from pardalis.files import byte_order_mark, read_bytes

FindSheet: TypeAlias = Callable[[str, str], Path | bytes | None]
"""What lies at an address, given the page's base address; None if there is nothing to read."""

WIDTH = 1280  # pixels: the window for which media queries hold

_MOST_BYTES = 4 << 20  # of a sheet
_MOST_KEPT = 1 << 17  # characters of it that bear on what is hidden
_MOST_OF_PAGE = 1 << 18  # of these of all sheets of a page
_MOST_SHEETS = 64  # of a page
_MOST_PARTS = 64  # of a selector
_MOST_DEPTH = 8  # of imports and of blocks within blocks
_MOST_STEPS = 10_000_000  # of the comparison of a page's elements, some seconds
_OF_NTH = 40  # siblings that are counted in a step
_OF_CHAIN = 4  # steps for an element of which the one above or before is looked at
_CACHED = 64  # sheets

Property = Literal["display", "visibility"]
_Hides: TypeAlias = bool | None  # None: as the element around it
Nodes: TypeAlias = dict[int, LexborNode]

_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*+"|\'(?:[^\'\\\n]|\\.)*+\'', re.DOTALL)
_TELLING = re.compile(r"(?<![\w-])(?:display|visibility)\s*:", re.IGNORECASE)
_IN_STYLE = re.compile(
    r"(?<![\w-])(display|visibility)\s*:\s*([a-z-]+)(\s*!\s*important)?", re.IGNORECASE
)
_WORD = re.compile(r"[\w-]+")
_LENGTH = re.compile(r"([\d.]{1,9})(px|r?em)?")
_PIXELS = {None: 1.0, "px": 1.0, "em": 16.0, "rem": 16.0}
_RANGES = {
    "<": float.__lt__, "<=": float.__le__, ">": float.__gt__, ">=": float.__ge__,
    "=": float.__eq__,
}  # fmt: skip
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "="}
# Of a desktop that nobody has set up in a special way.
_FEATURES = {
    "hover": ("hover", ""), "any-hover": ("hover", ""), "pointer": ("fine", ""),
    "any-pointer": ("fine", ""), "orientation": ("landscape",), "color": ("",),
    "prefers-color-scheme": ("light",), "prefers-reduced-motion": ("no-preference",),
    "prefers-contrast": ("no-preference",), "scripting": ("none",), "update": ("fast", ""),
}  # fmt: skip

# Of elements whatever their user does. Others, such as :hover, hold for none.
_STATIC = frozenset((
    "root", "empty", "first-child", "last-child", "only-child", "first-of-type", "last-of-type",
    "only-of-type", "checked", "disabled", "enabled", "required", "optional", "read-only",
    "read-write", "link", "any-link",
))  # fmt: skip
_INHERITED = ("inherit", "unset", "revert", "revert-layer")
_COUNTING = ("nth-child", "nth-last-child", "nth-of-type", "nth-last-of-type")
_LISTS = ("is", "not", "where")


# ── sheets ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Selector:
    """Compound selectors, each after what binds it to the one before: " ", ">", "+" or "~"."""

    steps: tuple[tuple[str, str], ...]
    specificity: tuple[int, int, int]
    names: frozenset[str]  # of classes and the like, in lower case; a page has them all if it fits


@dataclass(frozen=True, slots=True)
class _Rule:
    selector: _Selector
    layer: str  # "": none
    declarations: tuple[tuple[Property, _Hides, bool], ...]  # the last: whether it is important


@dataclass(frozen=True, slots=True)
class _Import:
    address: str
    layer: str


@dataclass(frozen=True, slots=True)
class _Sheet:
    items: tuple[_Rule | _Import, ...] = ()
    size: int = 0  # characters that were parsed


class Sheets:
    """Reads style sheets; those that were read last are kept, as a site has few."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, _Sheet] = OrderedDict()

    def hidden_in(
        self, tree: LexborHTMLParser, text: str, find: FindSheet, base: str
    ) -> tuple[dict[int, bool], list[str]]:
        """Return whether sheets hide elements, and the addresses of sheets that were not read.

        Elements of which no sheet says anything are left out; so are all if the sheets are too
        large or their selectors take too long, which the second part tells then.

        Args:
            text: the markup of the tree.
            find: returns what lies at an address.
        """
        reading = _Reading(self, find)
        try:
            for node in tree.css("style, link[rel]"):
                reading.add(node, base)
            if not reading.rules:
                return {}, reading.unread
            return _Matching(tree, text).decided(reading.rules), reading.unread
        except _TooMuchError as error:
            return {}, [*reading.unread, str(error)]

    def parsed(self, content: bytes) -> _Sheet:
        """Return the rules of a sheet that bear on what is hidden; raises ValueError."""
        key = blake2b(content).digest()
        if key not in self._kept:
            self._kept[key] = _parsed(content)
            if len(self._kept) > _CACHED:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


class _TooMuchError(Exception):
    """The sheets of a page exceed a limit."""


@dataclass(slots=True)
class _Reading:
    """The rules of a page's sheets in order."""

    sheets: Sheets
    find: FindSheet
    rules: list[_Rule] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    _n_sheets: int = 0
    _n_characters: int = 0

    def add(self, node: LexborNode, base: str) -> None:
        """Read the sheet of an element of the page."""
        attributes = node.attributes
        kind = (attributes.get("type") or "text/css").strip().lower()
        if kind != "text/css" or not _text_holds(attributes.get("media") or ""):
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
        self._n_sheets += 1
        if self._n_sheets > _MOST_SHEETS:
            raise _TooMuchError(f"more than {_MOST_SHEETS} sheets")
        try:
            sheet = self.sheets.parsed(content)
        except ValueError:
            self.unread.append(name)
            return
        self._n_characters += sheet.size
        if self._n_characters > _MOST_OF_PAGE:
            raise _TooMuchError(f"more than {_MOST_OF_PAGE >> 10} KiB of rules")
        for item in sheet.items:
            below = _below(layer, item.layer)
            if isinstance(item, _Import):
                self._load(item.address, place, below, above)
            else:
                self.rules.append(replace(item, layer=below) if below != item.layer else item)


def _below(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer and name else layer or name


def _parsed(content: bytes) -> _Sheet:
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
    """Return a sheet without the rules that neither hide nor show, which are nearly all."""
    text = _STRING.sub(_without_braces, _COMMENT.sub(" ", text))
    kept = []
    *chunks, last = text.split("}")
    for chunk in chunks:
        head, brace, body = chunk.rpartition("{")
        if brace and not _TELLING.search(body):
            kept.append(head[: max(head.rfind("{"), head.rfind(";")) + 1])
        else:
            kept.append(chunk + "}")
    return "".join((*kept, last if _TELLING.search(last) or "@" in last else ""))


def _without_braces(string: re.Match[str]) -> str:
    return '""' if "{" in string[0] or "}" in string[0] or ";" in string[0] else string[0]


def _items(rules: Iterable[Any], layer: str, depth: int) -> Iterator[_Rule | _Import]:
    for rule in rules:
        if rule.type == "qualified-rule":
            declarations = _declarations(rule.content)
            for selector in _selectors(rule.prelude) if declarations else ():
                yield _Rule(selector, layer, declarations)
        elif rule.type == "at-rule":
            yield from _of_at_rule(rule, layer, depth)


def _of_at_rule(rule: Any, layer: str, depth: int) -> Iterator[_Rule | _Import]:
    name = rule.lower_at_keyword
    prelude = _stripped([token for token in rule.prelude if token.type != "comment"])
    if name == "import" and rule.content is None:
        yield from _import(prelude, layer)
    if rule.content is None or depth >= _MOST_DEPTH:
        return
    is_read = (
        (name == "media" and _holds(prelude))
        or (name == "supports" and not _is_word(prelude, "not"))
        or name == "layer"
    )
    if is_read:
        inner = layer
        if name == "layer":
            inner = _below(layer, _written(prelude) or f"-{rule.source_line}:{rule.source_column}")
        content = tinycss2.parse_rule_list(rule.content, skip_comments=True, skip_whitespace=True)
        yield from _items(content, inner, depth + 1)


def _import(tokens: Sequence[Any], layer: str) -> Iterator[_Import]:
    if not tokens:
        return
    first, rest = tokens[0], _stripped(tokens[1:])
    address = ""
    if first.type in ("string", "url"):
        address = first.value
    elif first.type == "function" and first.lower_name == "url":
        address = next((each.value for each in first.arguments if each.type == "string"), "")
    if _is_word(rest, "layer"):
        rest, layer = _stripped(rest[1:]), _below(layer, f"-{address}")
    elif rest and rest[0].type == "function" and rest[0].lower_name == "layer":
        layer = _below(layer, _written(rest[0].arguments))
        rest = _stripped(rest[1:])
    if rest and rest[0].type == "function" and rest[0].lower_name == "supports":
        rest = _stripped(rest[1:])
    if address and _holds(rest):
        yield _Import(address.strip(), layer)


def _declarations(content: Sequence[Any]) -> tuple[tuple[Property, _Hides, bool], ...]:
    """Return what a block says of each property in the end."""
    found: dict[tuple[Property, bool], _Hides] = {}
    for each in tinycss2.parse_blocks_contents(content, skip_comments=True, skip_whitespace=True):
        if each.type == "declaration" and each.lower_name in ("display", "visibility"):
            words = [token.lower_value for token in each.value if token.type == "ident"]
            if words:
                found[each.lower_name, each.important] = _hides(each.lower_name, words[0])
    return tuple((name, hides, important) for (name, important), hides in found.items())


def _hides(name: str, word: str) -> _Hides:
    """Return whether a value of a property hides the element."""
    if name == "display":
        return word == "none"
    return None if word in _INHERITED else word in ("hidden", "collapse")


# ── media queries ────────────────────────────────────────────────────────────────────────────────


def _text_holds(media: str) -> bool:
    try:
        return _holds(tinycss2.parse_component_value_list(media[:1000], skip_comments=True))
    except RecursionError:
        return False


def _holds(tokens: Sequence[Any]) -> bool:
    """Whether a list of media queries holds for a desktop's window."""
    queries = [_stripped(query) for query in _split(tokens, ",")]
    return queries == [[]] or any(map(_query_holds, queries))


def _query_holds(tokens: list[Any]) -> bool:
    is_negated = _is_word(tokens, "not")
    found = True
    for token in tokens[is_negated:]:
        if token.type == "ident":
            word = token.lower_value
            if word == "or":
                return found != is_negated or _query_holds([])  # (a) or (b): rare, the first one
            found = found and word in ("and", "only", "all", "screen")
        elif token.type == "() block":
            found = found and _feature_holds(_stripped(token.content))
        elif token.type != "whitespace":
            return False
    return bool(tokens) and found != is_negated


def _feature_holds(tokens: list[Any]) -> bool:
    text = tinycss2.serialize(tokens).lower()
    if tokens and tokens[0].type == "() block":
        return _query_holds(tokens)
    parts = re.split(r"\s*(<=|>=|<|>|=)\s*", text)
    if len(parts) in (3, 5):
        pairs = [parts[i : i + 3] for i in range(0, len(parts) - 2, 2)]
        return all(_range_holds(*pair) for pair in pairs)
    name, _, value = (part.strip() for part in text.partition(":"))
    if name in ("min-width", "max-width", "width") and value:
        sign = {"min-width": ">=", "max-width": "<=", "width": "="}[name]
        return _range_holds("width", sign, value)
    return value in _FEATURES.get(name, ())


def _range_holds(first: str, sign: str, second: str) -> bool:
    if second == "width":
        first, sign, second = second, _FLIPPED[sign], first
    length = _LENGTH.fullmatch(second)
    if first != "width" or length is None or length[1].count(".") > 1 or length[1] == ".":
        return False
    return _RANGES[sign](float(WIDTH), float(length[1]) * _PIXELS[length[2]])


# ── selectors ────────────────────────────────────────────────────────────────────────────────────


class _NeverError(Exception):
    """A selector that no element fits, or that is not understood."""


def _selectors(prelude: Sequence[Any]) -> Iterator[_Selector]:
    for tokens in _split([each for each in prelude if each.type != "comment"], ","):
        try:
            yield _selector(_stripped(tokens))
        except _NeverError:
            continue


def _selector(tokens: list[Any]) -> _Selector:
    steps: list[tuple[str, str]] = []
    total = (0, 0, 0)
    names: set[str] = set()
    combinator = ""
    for is_compound, group in groupby(tokens, lambda token: not _is_combinator(token)):
        part = list(group)
        if is_compound:
            compound, specificity = _compound(part, names)
            steps.append((combinator, compound))
            total = _sum(total, specificity)
        else:
            signs = [token.value for token in part if token.type == "literal"]
            if len(signs) > 1 or not steps:
                raise _NeverError
            combinator = signs[0] if signs else " "
    if not 0 < len(steps) <= _MOST_PARTS or _is_combinator(tokens[-1]):
        raise _NeverError
    return _Selector(tuple(steps), total, frozenset(names))


def _is_combinator(token: Any) -> bool:
    return token.type == "whitespace" or (
        token.type == "literal" and token.value in (">", "+", "~")
    )


def _compound(tokens: list[Any], names: set[str] | None) -> tuple[str, tuple[int, int, int]]:
    """Return a compound selector as lexbor takes it, and its specificity.

    Args:
        names: gets the names without which nothing fits; None within ``:not()`` and the like.
    """
    text: list[str] = []
    total = (0, 0, 0)
    at = 0
    while at < len(tokens):
        token = tokens[at]
        at += 1
        following = tokens[at] if at < len(tokens) else None
        if token.type == "ident":
            total = _sum(total, (0, 0, 1))
        elif token.type == "hash":
            total = _sum(total, (1, 0, 0))
            _note(names, token.value)
        elif token.type == "[] block":
            total = _sum(total, (0, 1, 0))
        elif token == "*":
            pass
        elif token == "." and following is not None and following.type == "ident":
            total = _sum(total, (0, 1, 0))
            _note(names, following.value)
            text.append(".")
            token, at = following, at + 1
        elif token == ":" and following is not None:
            at += 1
            written, specificity = _pseudo_class(following)
            text.append(written)
            total = _sum(total, specificity)
            continue
        else:
            raise _NeverError  # a pseudo-element, a namespace, "&"
        text.append(tinycss2.serialize([token]))
    return "".join(text) or "*", total


def _pseudo_class(token: Any) -> tuple[str, tuple[int, int, int]]:
    if token.type == "ident" and token.lower_value in _STATIC:
        return f":{token.lower_value}", (0, 1, 0)
    if token.type != "function":
        raise _NeverError
    name = token.lower_name
    if name in _COUNTING:
        argument = _written(token.arguments)
        if not re.fullmatch(r"[-+\d\sn]+|odd|even", argument, re.IGNORECASE):
            raise _NeverError
        return f":{name}({argument})", (0, 1, 0)
    if name not in _LISTS:
        raise _NeverError
    return _list_class(name, token.arguments)


def _list_class(name: str, arguments: Sequence[Any]) -> tuple[str, tuple[int, int, int]]:
    """Return ``:is()``, ``:not()`` or ``:where()`` of compound selectors."""
    written, highest = [], (0, 0, 0)
    for each in _split(arguments, ","):
        argument = _stripped(each)
        try:
            if not argument or any(map(_is_combinator, argument)):
                raise _NeverError
            text, specificity = _compound(argument, None)
        except _NeverError:
            if name == "not" and not _is_dynamic(argument):
                raise
            continue
        written.append(text)
        highest = max(highest, specificity)
    if name == "where":
        highest = (0, 0, 0)
    if not written:
        if name == "not":
            return "", (0, 1, 0)  # of :hover and the like: it holds for all
        raise _NeverError
    return f":{name}({', '.join(written)})", highest


def _is_dynamic(tokens: Sequence[Any]) -> bool:
    """Whether it is one pseudo-class that holds only while a user does something."""
    return len(tokens) == 2 and tokens[0] == ":" and tokens[1].type == "ident"


def _note(names: set[str] | None, name: str) -> None:
    if names is not None and _WORD.fullmatch(name):
        names.add(name.lower())


def _sum(first: tuple[int, int, int], second: tuple[int, int, int]) -> tuple[int, int, int]:
    return first[0] + second[0], first[1] + second[1], first[2] + second[2]


def _split(tokens: Iterable[Any], sign: str) -> list[list[Any]]:
    parts: list[list[Any]] = [[]]
    for token in tokens:
        if token == sign:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _stripped(tokens: Sequence[Any]) -> list[Any]:
    found = list(tokens)
    while found and found[0].type == "whitespace":
        del found[0]
    while found and found[-1].type == "whitespace":
        del found[-1]
    return found


def _written(tokens: Sequence[Any]) -> str:
    return str(tinycss2.serialize(tokens)).strip()


def _is_word(tokens: Sequence[Any], word: str) -> bool:
    return bool(tokens) and tokens[0].type == "ident" and tokens[0].lower_value == word


# ── elements ─────────────────────────────────────────────────────────────────────────────────────

_Key: TypeAlias = tuple[bool, bool, int, tuple[int, int, int], int]


class _Matching:
    """Finds which elements of a page the rules decide about."""

    def __init__(self, tree: LexborHTMLParser, text: str) -> None:
        self._tree = tree
        self._text = text.lower()
        self._has: dict[str, bool] = {}  # whether a name stands anywhere in it
        self._n_tags = text.count("<")
        self._n_steps = 0
        self._of: dict[str, Nodes] = {}

    def decided(self, rules: Sequence[_Rule]) -> dict[int, bool]:
        """Return whether an element is hidden, of those that a rule decides about."""
        layers: dict[str, int] = {}
        for rule in rules:
            if rule.layer:
                layers.setdefault(rule.layer, len(layers))
        best: dict[Property, dict[int, tuple[_Key, _Hides]]] = {"display": {}, "visibility": {}}
        styled: Nodes = {}
        for order, rule in enumerate(rules):
            if not all(map(self._is_there, rule.selector.names)):
                continue
            rank = layers[rule.layer] if rule.layer else len(layers)
            nodes = self._matched(rule.selector.steps)
            self._spend(len(nodes))
            for name, hides, is_important in rule.declarations:
                of_layer = -rank if is_important else rank
                key = (is_important, False, of_layer, rule.selector.specificity, order)
                _set(best[name], nodes, key, hides)
            styled.update(nodes)
        for node in styled.values():
            _add_own(node, best)
        return _joined(best, styled)

    def _is_there(self, name: str) -> bool:
        if name not in self._has:
            self._has[name] = name in self._text
        return self._has[name]

    def _matched(self, steps: Sequence[tuple[str, str]]) -> Nodes:
        found: Nodes = {}
        for combinator, compound in steps:
            nodes = self._fitting(compound)
            if combinator:
                self._spend(len(nodes) * _OF_CHAIN)
                follows = _Following(combinator, found)
                nodes = {key: node for key, node in nodes.items() if follows(node)}
                self._spend(len(follows.known) * _OF_CHAIN)
            found = nodes
            if not found:
                break
        return found

    def _fitting(self, compound: str) -> Nodes:
        if compound not in self._of:
            is_counting = ":nth-" in compound
            self._spend(self._n_tags * (1 + is_counting * self._n_tags // _OF_NTH))
            try:
                found = self._tree.css(compound)
            except SelectolaxError:
                found = []
            self._of[compound] = {node.mem_id: node for node in found}
        return self._of[compound]

    def _spend(self, n_steps: int) -> None:
        self._n_steps += n_steps
        if self._n_steps > _MOST_STEPS:
            raise _TooMuchError("rules for more elements than are compared")


def _set(
    best: dict[int, tuple[_Key, _Hides]], ids: Iterable[int], key: _Key, hides: _Hides
) -> None:
    for each in ids:
        if each not in best or best[each][0] <= key:
            best[each] = key, hides


def _add_own(node: LexborNode, best: Mapping[Property, dict[int, tuple[_Key, _Hides]]]) -> None:
    """Let what the element's own attribute says take part."""
    for name, word, important in _IN_STYLE.findall(node.attributes.get("style") or ""):
        key = (bool(important), True, 0, (0, 0, 0), 0)
        hides = _hides(name.lower(), word.lower())
        _set(best[name.lower()], (node.mem_id,), key, hides)


def _joined(
    best: Mapping[Property, Mapping[int, tuple[_Key, _Hides]]], nodes: Nodes
) -> dict[int, bool]:
    shown_again = [nodes[key] for key, (_, hides) in best["visibility"].items() if hides is False]
    decided = {key: True for key, (_, hides) in best["visibility"].items() if hides}
    # An element that is visible in an invisible one is seen, and so all of the latter is read.
    known: set[int] = set()
    for node in shown_again:
        above = node.parent
        while above is not None and above.mem_id not in known:
            known.add(above.mem_id)
            decided.pop(above.mem_id, None)
            above = above.parent
    for key, (_, hides) in best["display"].items():
        decided[key] = bool(hides) or decided.get(key, False)
    return decided


class _Following:
    """Whether an element stands below or after one of some others; each step is made once."""

    def __init__(self, combinator: str, found: Nodes) -> None:
        self.known: dict[int, bool] = {}
        self._found = found
        self._is_near = combinator in (">", "+")
        self._next = _parent if combinator in (" ", ">") else _before

    def __call__(self, node: LexborNode) -> bool:
        other = self._next(node)
        if self._is_near:
            return other is not None and other.mem_id in self._found
        passed = []
        answer = False
        while other is not None:
            key = other.mem_id
            if key in self._found or key in self.known:
                answer = self.known.get(key, False) or key in self._found
                break
            passed.append(key)
            other = self._next(other)
        self.known.update(dict.fromkeys(passed, answer))
        return answer


def _parent(node: LexborNode) -> LexborNode | None:
    return node.parent


def _before(node: LexborNode) -> LexborNode | None:
    other = node.prev
    while other is not None and not other.is_element_node:
        other = other.prev
    return other
