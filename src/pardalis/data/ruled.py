"""Applying the rules of a source to its items, and remembering what was decided about them.

What a rule removes becomes a :class:`~pardalis.documents.Rejection` in its place, of the kind
``rule:KIND``, so that it is counted with examples wherever rejections are. Of a page, images are
removed and the rest is kept; so it is with any document but a conversation, or one text with
images, which say something about their images and are removed as a whole.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from pardalis.config import fingerprint, to_dict
from pardalis.data.rules import DocumentRule, Removal, Rule, SourceRule
from pardalis.documents import Document, Omission, Rejection, Text
from pardalis.errors import ConfigError

logger = logging.getLogger(__name__)

_REPORT_EVERY_S = 10.0
PREFIX = "rule:"  # of the kinds of rejections

Placed: TypeAlias = tuple[float, Document | Rejection]
Removed: TypeAlias = Callable[[Rejection, Document], None]
"""Told of each removal, with what the document was before."""


@dataclass(frozen=True, slots=True)
class FirstPass:
    """What the rules that compare documents removed: by the number of the item, and of the rule."""

    removed: dict[tuple[int, int], Removal] = field(default_factory=dict)


_known: dict[str, FirstPass] = {}


def key_of(reader: str, options: Mapping[str, Any], path: object, rules: Iterable[Rule]) -> str:
    """Return what a first pass is remembered by."""
    return fingerprint(
        reader, dict(options), os.path.abspath(str(path)), [to_dict(rule) for rule in rules]
    )


def remember(key: str, found: FirstPass) -> None:
    """Keep a first pass for later readings by this process, such as one that another made."""
    _known[key] = found


def taken(key: str) -> FirstPass | None:
    """Return a first pass and forget it, in a process that reads for another one."""
    return _known.pop(key, None)


def first_pass(
    key: str, rules: tuple[Rule, ...], items: Callable[[], Iterator[Placed]], is_page: bool
) -> FirstPass:
    """Return what the rules that compare documents remove, by reading the source if need be."""
    if not any(isinstance(rule, SourceRule) for rule in rules):
        return FirstPass()
    if key not in _known:
        for _ in judged(key, rules, items(), is_page):
            pass
    return _known[key]


def judged(
    key: str | None,
    rules: tuple[Rule, ...],
    items: Iterable[Placed],
    is_page: bool,
    removed: Removed | None = None,
) -> Iterator[Placed]:
    """Yield what is left of items, and what is removed; remember the pass when all were read.

    Args:
        key: what the pass is remembered by; None: it is not, since the items are not all.
        is_page: whether documents are pages, which are kept without an image that is removed.
    """
    found = FirstPass()
    judges = {n: rule.begin() for n, rule in enumerate(rules) if isinstance(rule, SourceRule)}

    def ask(item: int, number: int, document: Document) -> Removal | None:
        removal = judges[number].removal(document)
        if removal is not None:
            found.removed[item, number] = removal
        return removal

    yield from _applied(rules, _told(items) if judges else items, is_page, ask, removed)
    if judges and key is not None:
        remember(key, found)


def _told(items: Iterable[Placed]) -> Iterator[Placed]:
    """Yield items, and say now and then how many were compared: nobody knows yet how many come."""
    last = time.monotonic()
    for number, item in enumerate(items):
        if (now := time.monotonic()) - last > _REPORT_EVERY_S:
            last = now
            logger.info("Rules have compared %d documents with each other.", number)
        yield item


def replayed(
    rules: tuple[Rule, ...], items: Iterable[Placed], is_page: bool, found: FirstPass
) -> Iterator[Placed]:
    """Yield what :func:`judged` yields, after the first pass."""
    return _applied(rules, items, is_page, lambda item, n, _: found.removed.get((item, n)))


def _applied(
    rules: tuple[Rule, ...],
    items: Iterable[Placed],
    is_page: bool,
    ask: Callable[[int, int, Document], Removal | None],
    removed: Removed | None = None,
) -> Iterator[Placed]:
    for item_number, (place, item) in enumerate(items):
        if isinstance(item, Rejection):
            yield place, item
            continue
        rest = item
        for number, rule in enumerate(rules):
            if isinstance(rule, SourceRule):
                removal = ask(item_number, number, rest)
            elif isinstance(rule, DocumentRule):
                removal = rule.removal(rest)
            else:
                raise ConfigError(
                    f"The rule {type(rule).__name__} needs a method `removal`, or one `begin`."
                )
            if removal is None:
                continue
            left, rejections = _without(rest, rule.kind, removal, is_page)
            if removed is not None:
                removed(rejections[0], rest)
            yield from ((place, rejection) for rejection in rejections)
            if left is None:
                break
            rest = left
        else:
            yield place, rest


def _without(
    document: Document, kind: str, removal: Removal, is_page: bool
) -> tuple[Document | None, list[Rejection]]:
    """Return what is left of a document, and what is removed."""
    kind = f"{PREFIX}{kind}"
    if removal.images is None:
        return None, [Rejection(document.name, kind, removal.reason)]
    gone = {id(document.images[number]) for number in removal.images}
    rest = replace(document, segments=tuple(s for s in document.segments if id(s) not in gone))
    if rest.is_empty or (not is_page and _is_about_images(document)):
        reason = removal.reason
        if not rest.is_empty:
            reason += " The text with it is removed too."
        return None, [Rejection(document.name, kind, reason)]
    return rest, [Omission(document.name, kind, removal.reason, count=len(gone))]


def _is_about_images(document: Document) -> bool:
    """Whether a document is a conversation, or one text with images alone."""
    if any(segment.role for segment in document.segments):
        return True
    return sum(isinstance(segment, Text) for segment in document.segments) == 1
