"""Media queries: whether they hold for a desktop's window that nobody has set up specially."""

import re
from collections.abc import Sequence
from typing import Any

import tinycss2

from pardalis.documents.readers._tokens import is_word, split, stripped

WIDTH = 1280  # pixels

_LENGTH = re.compile(r"(\d{1,6}(?:\.\d{1,6})?|\.\d{1,6})(px|r?em)?")
_PIXELS = {None: 1.0, "px": 1.0, "em": 16.0, "rem": 16.0}
_RANGES = {
    "<": float.__lt__, "<=": float.__le__, ">": float.__gt__, ">=": float.__ge__,
    "=": float.__eq__,
}  # fmt: skip
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "="}
_FEATURES = {
    "hover": ("hover", ""), "any-hover": ("hover", ""), "pointer": ("fine", ""),
    "any-pointer": ("fine", ""), "orientation": ("landscape",), "color": ("",),
    "prefers-color-scheme": ("light",), "prefers-reduced-motion": ("no-preference",),
    "prefers-contrast": ("no-preference",), "scripting": ("none",), "update": ("fast", ""),
}  # fmt: skip


def text_holds(media: str) -> bool:
    """Whether the attribute ``media`` of an element holds."""
    try:
        return holds(tinycss2.parse_component_value_list(media[:1000], skip_comments=True))
    except RecursionError:
        return False


def holds(tokens: Sequence[Any]) -> bool:
    """Whether one of a list of queries holds; an empty list does."""
    queries = [stripped(query) for query in split(tokens, ",")]
    return queries == [[]] or any(map(_query_holds, queries))


def _query_holds(tokens: list[Any]) -> bool:
    is_negated = is_word(tokens, "not")
    found = True
    for token in tokens[is_negated:]:
        if token.type == "ident":
            word = token.lower_value
            if word == "or":
                return found != is_negated  # (a) or (b): rare, the first one
            found = found and word in ("and", "only", "all", "screen")
        elif token.type == "() block":
            found = found and _feature_holds(stripped(token.content))
        elif token.type != "whitespace":
            return False
    return bool(tokens) and found != is_negated


def _feature_holds(tokens: list[Any]) -> bool:
    if tokens and tokens[0].type == "() block":
        return _query_holds(tokens)
    text = tinycss2.serialize(tokens).lower()
    parts = re.split(r"\s*(<=|>=|<|>|=)\s*", text)
    if len(parts) in (3, 5):
        return all(_range_holds(*parts[at : at + 3]) for at in range(0, len(parts) - 2, 2))
    name, _, value = (part.strip() for part in text.partition(":"))
    if name in ("min-width", "max-width", "width") and value:
        sign = {"min-width": ">=", "max-width": "<=", "width": "="}[name]
        return _range_holds("width", sign, value)
    return value in _FEATURES.get(name, ())


def _range_holds(first: str, sign: str, second: str) -> bool:
    if second == "width":
        first, sign, second = second, _FLIPPED[sign], first
    length = _LENGTH.fullmatch(second)
    if first != "width" or length is None:
        return False
    return _RANGES[sign](float(WIDTH), float(length[1]) * _PIXELS[length[2]])
