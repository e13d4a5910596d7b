"""Lists of tokens of style sheets, as tinycss2 gives them."""

from collections.abc import Iterable, Sequence
from typing import Any

import tinycss2


def split(tokens: Iterable[Any], sign: str) -> list[list[Any]]:
    """Return the parts between a sign."""
    parts: list[list[Any]] = [[]]
    for token in tokens:
        if token == sign:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def stripped(tokens: Iterable[Any]) -> list[Any]:
    """Return tokens without comments, and without whitespace at either end."""
    found = [token for token in tokens if token.type != "comment"]
    while found and found[0].type == "whitespace":
        del found[0]
    while found and found[-1].type == "whitespace":
        del found[-1]
    return found


def written(tokens: Iterable[Any]) -> str:
    """Return tokens as text."""
    return str(tinycss2.serialize(stripped(tokens)))


def is_word(tokens: Sequence[Any], word: str) -> bool:
    """Whether tokens begin with a word."""
    return bool(tokens) and tokens[0].type == "ident" and tokens[0].lower_value == word


def is_function(tokens: Sequence[Any], name: str) -> bool:
    """Whether tokens begin with a function of a name."""
    return bool(tokens) and tokens[0].type == "function" and tokens[0].lower_name == name
