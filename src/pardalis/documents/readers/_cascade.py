"""What the rules of a page's style sheets say of its elements.

An element's tag, classes, id and attributes are looked up among the names that the last part of a
selector needs, and a selector is compared from there, as browsers do. What follows from parts that
are bound to each other is put together on the set of all elements that fit so far, since matching
whole selectors may take as many steps as there are chains of elements.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from selectolax.lexbor import LexborHTMLParser, LexborNode, SelectolaxError

from pardalis.documents.readers._selectors import Compound, Names, Selector
from pardalis.documents.readers._values import Values, of_attribute

Attributes: TypeAlias = Mapping[str, str | None]
Tree: TypeAlias = LexborHTMLParser | LexborNode  # the latter: of what a page keeps beside its own

_MOST_STEPS = 5_000_000  # of the comparison of a page's elements, some seconds
_OF_CHAIN = 2  # steps for an element above or before
_OF_REST = 4  # elements that lexbor compares in a step with a selector of few ...
_CHARACTERS = 32  # ... characters,
_SIBLINGS = 40  # of which it may count so many siblings for each
_BITS = 512
_MOST_KEPT = 1_000_000  # candidates of kinds of elements


class TooMuchError(Exception):
    """The sheets of a page exceed a limit."""


@dataclass(frozen=True, slots=True)
class Rule:
    selector: Selector
    layer: str  # "": none
    values: Values
    important: Values


@dataclass(frozen=True, slots=True)
class Import:
    address: str
    layer: str


@dataclass(frozen=True, slots=True)
class Layers:
    """Names of layers in the order in which the later ones win."""

    names: tuple[str, ...]


def below(layer: str, name: str) -> str:
    """Return the name of a layer in another."""
    return f"{layer}.{name}" if layer and name else layer or name


class _Candidate(NamedTuple):
    """Values, after their place: of several that fit an element, the first win."""

    place: int
    selector: Selector | None  # None: they are of the element's own style
    values: Values
    needs: int = 0  # bits of the names that the elements above must have


_OWN_IMPORTANT, _OWN = -(1 << 40), -1  # between important ones, from -2 down, and others, from 0
_LAST = float("inf")  # what stands in no layer wins over layers
_NOTHING: Values = {}


class _Kind(NamedTuple):
    """What elements of the same tag, classes and so on have in common."""

    names: Names
    bits: int  # of those names that some selector needs above an element
    candidates: tuple[_Candidate, ...]  # in the order of their places


class Cascade:
    """The rules of a page's sheets, by a name that an element has if they fit it."""

    def __init__(self, items: Iterable[tuple[Rule | Layers, str]] = ()) -> None:
        """Put rules in order.

        Args:
            items: rules and names of layers, each with the layer of the sheet that it stands in.
        """
        self._by_name: dict[str, list[_Candidate]] = {}
        self._bits: dict[str, int] = {}
        self._kinds: dict[tuple[str, ...], _Kind] = {}
        self._n_kept = 0
        self._needed: set[str] = set()  # ids and attributes
        order_of: dict[str, int] = {}  # of layers
        normal: list[tuple[Any, Rule]] = []
        important: list[tuple[Any, Rule]] = []
        for number, (item, around) in enumerate(items):
            for name in item.names if isinstance(item, Layers) else (item.layer,):
                path = _path(below(around, name), order_of)
            if isinstance(item, Rule):
                rank = item.selector.specificity, number
                normal.append((((*path, _LAST), *rank), item))
                important.append((((*(-each for each in path), -_LAST), *rank), item))
        normal.sort(key=lambda each: each[0], reverse=True)
        important.sort(key=lambda each: each[0], reverse=True)
        for place, (_, rule) in enumerate(important, start=-1 - len(important)):
            self._add(place, rule.selector, rule.important)
        for place, (_, rule) in enumerate(normal):
            self._add(place, rule.selector, rule.values)
        self._ids = {name for name in self._needed if name.startswith("#")}
        self._attributes = {name[1:] for name in self._needed if name.startswith("[")}

    @property
    def is_empty(self) -> bool:
        return not self._by_name

    def _add(self, place: int, selector: Selector, values: Values) -> None:
        if not values:
            return
        needs = 0
        self._needed |= selector.last.names
        for sign, compound in selector.before:
            self._needed |= compound.names
            for name in compound.names if sign in (" ", ">") else ():
                needs |= 1 << self._bits.setdefault(name, len(self._bits) % _BITS)
        candidate = _Candidate(place, selector, values, needs)
        self._by_name.setdefault(selector.key, []).append(candidate)

    def kind_of(self, tag: str, attributes: Attributes) -> _Kind:
        """Return what may fit an element, and what it has that may matter."""
        if not attributes:
            key: tuple[str, ...] = (tag,)
        else:
            key = (tag, attributes.get("class") or "")
            for name in self._attributes & attributes.keys():
                key += (f"[{name}",)
            if (identity := attributes.get("id")) and f"#{identity}" in self._ids:
                key += (f"#{identity}",)
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kind(*key)
            self._n_kept += 1 + len(kind.candidates)
            if self._n_kept > _MOST_KEPT:
                self._kinds.clear()
                self._n_kept = 1 + len(kind.candidates)
            self._kinds[key] = kind
        return kind

    def _kind(self, tag: str, classes: str = "", *others: str) -> _Kind:
        names = {tag, "*", *others, *(f".{each}" for each in classes.split())}
        candidates = [
            each
            for name in names & self._by_name.keys()
            for each in self._by_name[name]
            if each.selector is not None and each.selector.last.names <= names
        ]
        bits = 0
        for name in names & self._bits.keys():
            bits |= 1 << self._bits[name]
        return _Kind(frozenset(names), bits, tuple(sorted(candidates)))


def _path(layer: str, order_of: dict[str, int]) -> tuple[int, ...]:
    """Return the places of a layer, and of those around it, in the order of their appearance."""
    names = layer.split(".") if layer else []
    paths = (".".join(names[: n + 1]) for n in range(len(names)))
    return tuple(order_of.setdefault(each, len(order_of)) for each in paths)


class Style:
    """What rules say of each element of one page, in bounded time."""

    def __init__(self, tree: Tree, n_tags: int, cascade: Cascade | None = None) -> None:
        """Begin a page.

        Args:
            n_tags: at least as many as it has elements.
        """
        self._tree, self._n_tags = tree, n_tags
        self._cascade = cascade or Cascade()
        self._is_empty = self._cascade.is_empty
        self._n_steps = 0
        self._fitting: dict[str, frozenset[int]] = {}  # elements that lexbor finds
        self._names: dict[int, Names] = {}  # of elements that stand above and before others
        self._bits: dict[int, int] = {}  # of elements with all that stand above them

    def of(self, node: LexborNode, tag: str, attributes: Attributes) -> Values:
        """Return what is said of an element; raises TooMuchError."""
        style = attributes.get("style")
        if self._is_empty and not style:
            return _NOTHING
        candidates: tuple[_Candidate, ...] = ()
        if not self._is_empty:
            candidates = self._cascade.kind_of(tag, attributes).candidates
        if style:
            normal, important = of_attribute(style)
            own = _Candidate(_OWN, None, normal), _Candidate(_OWN_IMPORTANT, None, important)
            candidates = tuple(sorted((*candidates, *own)))
        if not candidates:
            return _NOTHING
        self._spend(len(candidates))
        found: Values = {}
        above = -1
        for _, selector, values, needs in candidates:
            if values.keys() <= found.keys():
                continue
            if needs:
                above = self._above(node) if above < 0 else above
                if needs & ~above:
                    continue
            if selector is None or self._fits(selector, node):
                found = {**values, **found}
        return found

    def _above(self, node: LexborNode) -> int:
        """Return the bits of all elements above one."""
        path: list[LexborNode] = []
        above = node.parent
        while above is not None and above.mem_id not in self._bits:
            path.append(above)
            above = above.parent
        bits = self._bits[above.mem_id] if above is not None else 0
        for each in reversed(path):
            bits |= self._cascade.kind_of(each.tag or "", each.attributes).bits
            self._bits[each.mem_id] = bits
        return bits

    def _fits(self, selector: Selector, node: LexborNode) -> bool:
        """Whether a selector fits an element that has the names of its last part."""
        if selector.last.rest and not self._fits_rest(selector.last, node):
            return False
        nodes = [node]
        for sign, compound in selector.before:
            nodes = self._bound(nodes, sign, compound)
            if not nodes:
                return False
        return True

    def _bound(self, nodes: list[LexborNode], sign: str, compound: Compound) -> list[LexborNode]:
        """Return the elements that fit, of those that a sign binds to one of some others."""
        is_above, is_near = sign in (" ", ">"), sign in (">", "+")
        found: list[LexborNode] = []
        seen: set[int] = set()
        for node in nodes:
            other = node.parent if is_above else node.prev
            while other is not None and (key := other.mem_id) not in seen:
                seen.add(key)
                if other.is_element_node:
                    if compound.names <= self._names_of(other) and (
                        not compound.rest or self._fits_rest(compound, other)
                    ):
                        found.append(other)
                    if is_near:
                        break
                other = other.parent if is_above else other.prev
        self._spend(_OF_CHAIN * len(seen))
        return found

    def _names_of(self, node: LexborNode) -> Names:
        key = node.mem_id
        names = self._names.get(key)
        if names is None:
            names = self._cascade.kind_of(node.tag or "", node.attributes).names
            self._names[key] = names
        return names

    def _fits_rest(self, compound: Compound, node: LexborNode) -> bool:
        rest = compound.rest
        if rest not in self._fitting:
            n_siblings = compound.n_counting * self._n_tags
            n_each = 1 + len(rest) // _CHARACTERS + n_siblings // _SIBLINGS
            self._spend(self._n_tags * n_each // _OF_REST)
            try:
                found = self._tree.css(rest)
            except SelectolaxError:
                found = []
            self._spend(len(found))
            self._fitting[rest] = frozenset(each.mem_id for each in found)
        return node.mem_id in self._fitting[rest]

    def _spend(self, n_steps: int) -> None:
        self._n_steps += n_steps
        if self._n_steps > _MOST_STEPS:
            self._is_empty = True
            raise TooMuchError("rules for more elements than are compared")
