"""Selectors of style sheets in parts: names that an element needs, and what lexbor compares."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import tinycss2

from pardalis.documents.readers._tokens import split, stripped, written

Names: TypeAlias = frozenset[str]
"""What an element has: "p", ".class", "#id", "[attribute" and, all of them, "*"."""

_MOST_TOKENS = 250  # of a selector

# Of elements whatever their user does. Others, such as :hover, hold for none.
_STATIC = frozenset((
    "root", "empty", "first-child", "last-child", "only-child", "first-of-type", "last-of-type",
    "only-of-type", "checked", "disabled", "enabled", "required", "optional", "read-only",
    "read-write", "link", "any-link",
))  # fmt: skip
_COUNTING = ("nth-child", "nth-last-child", "nth-of-type", "nth-last-of-type")
_COUNTED = re.compile(r"-of-type|:nth-")
_NTH = re.compile(r"[-+\d\sn]+|odd|even", re.IGNORECASE)

Specificity: TypeAlias = tuple[int, int, int]


class _NeverError(Exception):
    """A selector that no element fits, or that is not understood."""


@dataclass(frozen=True, slots=True)
class Compound:
    """A part of a selector, which tells of one element."""

    names: Names  # an element that fits has all of them
    rest: str  # what lexbor compares
    n_counting: int  # times that it counts siblings
    specificity: Specificity


@dataclass(frozen=True, slots=True)
class Selector:
    last: Compound
    # The parts before it, the nearest first, each after the sign that binds it to the next one.
    before: tuple[tuple[str, Compound], ...]

    @property
    def specificity(self) -> Specificity:
        return _sum([self.last, *(compound for _, compound in self.before)])

    @property
    def key(self) -> str:
        """The rarest name that an element has if the selector fits it."""
        return min(self.last.names, key=lambda name: ("#.[".find(name[0]) % 4, name), default="*")


def _sum(compounds: Iterable[Compound]) -> Specificity:
    ids, classes, tags = zip(*(each.specificity for each in compounds), strict=True)
    return sum(ids), sum(classes), sum(tags)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def selectors(prelude: Iterable[Any]) -> Iterator[Selector]:
    """Yield the selectors before the block of a rule, without those that fit nothing."""
    for tokens in split(prelude, ","):
        try:
            yield _selector(stripped(tokens))
        except _NeverError:
            continue


def _selector(tokens: list[Any]) -> Selector:
    if len(tokens) > _MOST_TOKENS:
        raise _NeverError
    groups = [(is_sign, list(group)) for is_sign, group in groupby(tokens, _is_combinator)]
    if not groups or groups[0][0] or groups[-1][0]:
        raise _NeverError
    signs = []
    for _, group in groups[1::2]:
        of_group = [token.value for token in group if token.type == "literal"] or [" "]
        if len(of_group) > 1:
            raise _NeverError
        signs += of_group
    compounds = [_compound(group) for _, group in groups[::2]]
    return Selector(compounds[-1], tuple(zip(signs[::-1], compounds[-2::-1], strict=True)))


def _is_combinator(token: Any) -> bool:
    return token.type == "whitespace" or token == ">" or token == "+" or token == "~"


def _compound(tokens: list[Any]) -> Compound:
    names: list[str] = []
    rest: list[str] = []
    total = [0, 0, 0]
    remaining = iter(tokens)
    for token in remaining:
        if token.type == "ident":
            names.append(token.lower_value)
            total[2] += 1
        elif token.type == "hash":
            names.append(f"#{token.value}")
            total[0] += 1
        elif token.type == "[] block":
            content = stripped(token.content)
            if not content or content[0].type != "ident":
                raise _NeverError
            names.append(f"[{content[0].lower_value}")
            if len(content) > 1:
                rest.append(tinycss2.serialize([token]))
            total[1] += 1
        elif token == ".":
            following = next(remaining, None)
            if following is None or following.type != "ident":
                raise _NeverError
            names.append(f".{following.value}")
            total[1] += 1
        elif token == ":":
            text, specificity = _pseudo_class(next(remaining, None))
            rest.append(text)
            total = [a + b for a, b in zip(total, specificity, strict=True)]
        elif token != "*":
            raise _NeverError  # a pseudo-element, a namespace, "&"
    text = "".join(rest)
    n_counting = len(_COUNTED.findall(text))
    return Compound(frozenset(names), text, n_counting, (total[0], total[1], total[2]))


def _pseudo_class(token: Any) -> tuple[str, Specificity]:
    if token is not None and token.type == "ident" and token.lower_value in _STATIC:
        return f":{token.lower_value}", (0, 1, 0)
    if token is None or token.type != "function":
        raise _NeverError
    name = token.lower_name
    if name in _COUNTING and _NTH.fullmatch(argument := written(token.arguments)):
        return f":{name}({argument})", (0, 1, 0)
    if name in ("is", "not", "where"):
        return _list_class(name, token.arguments)
    raise _NeverError


def _list_class(name: str, arguments: Sequence[Any]) -> tuple[str, Specificity]:
    """Return ``:is()``, ``:not()`` or ``:where()`` of compound selectors."""
    texts: list[str] = []
    highest = (0, 0, 0)
    for argument in map(stripped, split(arguments, ",")):
        try:
            if not argument or any(map(_is_combinator, argument)):
                raise _NeverError
            highest = max(highest, _compound(argument).specificity)
            texts.append(tinycss2.serialize(argument))
        except _NeverError:
            if name == "not" and not _is_dynamic(argument):
                raise
    if not texts and name != "not":
        raise _NeverError
    # ":not()" of :hover and the like holds for all.
    return f":{name}({', '.join(texts)})" if texts else "", (
        (0, 0, 0) if name == "where" else highest if texts else (0, 1, 0)
    )


def _is_dynamic(tokens: Sequence[Any]) -> bool:
    """Whether it is one pseudo-class that holds only while a user does something."""
    return len(tokens) == 2 and tokens[0] == ":" and tokens[1].type == "ident"
