"""Pages as trees, by a parser that follows the HTML standard, and in bounded time.

What the standard asks of a parser can take time and memory that grow with the square of a page:
tags that nest deeply, unclosed tags of style that every later paragraph repeats, tags of very many
attributes. Such pages are refused here before they are parsed; no browser shows them whole either.
"""

import re
from collections import Counter, defaultdict

from selectolax.lexbor import LexborHTMLParser, SelectolaxError

_MOST_DEPTH = 3000  # of nested tags; browsers stop at 512
_MOST_ATTRIBUTES = 2000  # of one tag, each of which is compared with all before it
_MOST_STEPS = 100_000_000  # of the parser up its stack of open tags, some seconds
_MOST_COPIES = 1_000_000  # tags of style that the parser opens again
_MOST_OPTIONS = 5000  # of one list of choices

_SMALL = 100_000  # characters: a smaller page cannot hold many attributes
_FEW = 2000  # tags: fewer cannot nest deeply

_VALUE = r"""(?:"[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z)|[^\s>"'][^\s>]*+)?+"""
_ATTRIBUTE = rf"(?:[\s/]*+[^\s/>][^\s/>=]*+(?:\s*+=\s*+{_VALUE})?+)"
_ATTRIBUTES = re.compile(f"(?P<many>{_ATTRIBUTE}{{{_MOST_ATTRIBUTES + 1}}})|{_ATTRIBUTE}*+/*+")
_TAG = re.compile(r"<(?:(!--)|(/?)([a-zA-Z][^\s/>]*+))")
_COMMENT_END = re.compile(r"--!?>")

# Tags that close by themselves, or hold nothing.
_FLAT = frozenset((
    "html", "body", "head", "p", "li", "dt", "dd", "tr", "td", "th", "tbody", "thead",
    "tfoot", "colgroup", "caption", "rp", "rt", "optgroup", "option", "a", "area", "base",
    "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track",
    "wbr",
))  # fmt: skip
_STYLES = frozenset((
    "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u",
))  # fmt: skip
_RAW = {
    name: re.compile(f"</{name}", re.IGNORECASE)
    for name in ("script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes")
}

_XML_NAME = r"[A-Za-z][\w:.-]*+"
_EMPTY_TAG = re.compile(rf"""<({_XML_NAME})((?:[^<>"']++|"[^"]*+"|'[^']*+')*+)>""")
# XHTML that is served as HTML: after an <iframe/> that never ends all would be lost.
_EMPTY_RAW = re.compile(
    r"""<(iframe|script|textarea|title|style|noframes)((?:\s[^<>"'/]*+|"[^"<>]*+"|'[^'<>]*+'|/(?!>))*+)/>"""
)
_CDATA = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
_VOID = frozenset((
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param",
    "source", "track", "wbr",
))  # fmt: skip


def parse(text: str, *, is_xml: bool = False) -> LexborHTMLParser:
    """Return the tree of a page.

    Args:
        is_xml: the page is XHTML, in which ``<script/>`` and ``<a id="x"/>`` are whole elements.

    Raises:
        ValueError: the page has nothing in it, or would take too long.
    """
    if not text.strip("\0 \t\r\n\f"):
        raise ValueError("it is empty")
    if is_xml:
        text = _EMPTY_TAG.sub(_closed, _CDATA.sub(_escaped, text))
    else:
        text = _EMPTY_RAW.sub(lambda tag: _closed_raw(tag, text), text)
    if len(text) > _SMALL or text.count("<") > _FEW:
        _check_tags(text)
    try:
        return LexborHTMLParser(text)
    except SelectolaxError as error:
        raise ValueError(f"its HTML cannot be parsed ({error})") from error


def _closed(tag: re.Match[str]) -> str:
    name, attributes = tag[1], tag[2]
    if not attributes.endswith("/") or name.lower() in _VOID:
        return tag[0]
    return f"<{name}{attributes[:-1]}></{name}>"


def _closed_raw(tag: re.Match[str], page: str) -> str:
    """Return a tag of a raw element with its end, if the page has no end of one."""
    end = f"</{tag[1]}"
    return tag[0] if end in page else f"<{tag[1]}{tag[2]}>{end}>"


def _escaped(section: re.Match[str]) -> str:
    return section[1].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _check_tags(text: str) -> None:
    """Raise ValueError for tags that would keep the parser busy; counts tags, builds nothing."""
    opened: Counter[str] = Counter()
    styles = _Styles()
    depth = steps = copies = n_options = 0
    at = 0
    while (tag := _TAG.search(text, at)) is not None:
        at = tag.end()
        is_comment, is_end, name = tag.groups()
        if is_comment:
            end = _COMMENT_END.search(text, tag.start() + 2)
            at = end.end() if end else len(text)
            continue
        name = name.lower()
        if is_end:
            styles.end(name)
            if opened[name]:
                opened[name] -= 1
                depth -= 1
            continue
        found = _ATTRIBUTES.match(text, at)
        assert found is not None  # it matches nothing, too
        if found["many"]:
            raise ValueError(f"it has a tag of more than {_MOST_ATTRIBUTES:,} attributes")
        attributes, at = found[0], found.end()
        if name in _RAW and not (opened["svg"] or opened["math"]):
            end = _RAW[name].search(text, at)
            at = end.start() if end else len(text)
            continue
        n_options = n_options + 1 if name == "option" else 0 if name == "select" else n_options
        copies += styles.start(name, attributes)
        if name not in _FLAT and not (attributes.endswith("/") and opened["svg"]):
            opened[name] += 1
            depth += 1
        steps += depth
        if depth > _MOST_DEPTH:
            raise ValueError(f"its tags are nested more than {_MOST_DEPTH:,} deep")
        if steps > _MOST_STEPS or copies > _MOST_COPIES:
            raise ValueError("its unclosed tags would take very long to read")
        if n_options > _MOST_OPTIONS:
            raise ValueError(f"it has a list of more than {_MOST_OPTIONS:,} choices")


class _Styles:
    """The tags of style that are open, which the parser opens again in each later block."""

    def __init__(self) -> None:
        self._open: defaultdict[str, list[str]] = defaultdict(list)  # whole tags, by name
        self._same: Counter[str] = Counter()  # of equal ones at most three are opened again
        self._n = 0

    def start(self, name: str, attributes: str) -> int:
        """Begin an element; return how many tags may be opened again in it."""
        if name not in _STYLES:
            return self._n
        tag = name + attributes
        self._open[name].append(tag)
        self._same[tag] += 1
        self._n += self._same[tag] <= 3
        return 0

    def end(self, name: str) -> None:
        """End an element."""
        if name in _STYLES and self._open[name]:
            tag = self._open[name].pop()
            self._n -= self._same[tag] <= 3
            self._same[tag] -= 1
