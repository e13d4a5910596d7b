"""Infilling: spans of a document move to its end, and masks stand in their places (CM3).

    a b c d e f      with the span b c        a <mask_0> d e f <mask_0> b c

A model that predicts the next token then writes each span with both sides of it in its context.
:func:`rotate` moves the spans and :func:`restore` undoes it. There are two published forms:

    CM3 (arXiv 2201.07520)    a <mask_0> c <mask_1> f <mask_0> b <mask_1> d e
    metaseq, CM3Leon          a <mask_0> c <mask_1> f <mask_0> b <end_mask> <mask_1> d e <end_mask>

In both, a final ``eos`` stays at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from pardalis.errors import GrammarError
from pardalis.tokens.encoded import Encoded, Ids
from pardalis.tokens.vocabulary import Vocabulary

TokenSpan: TypeAlias = tuple[int, int]
"""The tokens from the first position on and before the second."""


def rotate(
    document: Encoded,
    spans: Sequence[TokenSpan],
    vocabulary: Vocabulary,
    *,
    own_ends: bool = False,
    learns_masks: bool = True,
) -> Encoded:
    """Move spans of a document to its end, before a final eos.

    Every token keeps its weight. A mask has the weight of its span's first token, and an end that
    of its last.

    Args:
        spans: none of them empty, ascending, without overlaps.
        own_ends: each span is followed by ``end_mask``.
        learns_masks: False: masks have the weight 0.
    """
    n = len(document) - _ends_with_eos(document.ids, vocabulary)
    cuts = [0, *(place for span in spans for place in span), n]
    parts = [document[start:stop] for start, stop in pairwise(cuts)]
    kept, moved = parts[::2], parts[1::2]
    masks = [
        _one(mask, float(part.weights[0]) if learns_masks else 0.0)
        for mask, part in zip(vocabulary.masks, moved, strict=False)
    ]
    body = [part for pair in zip(masks, kept[1:], strict=True) for part in pair]
    tail: list[Encoded] = []
    for mask, part in zip(masks, moved, strict=True):
        tail += [mask, part]
        if own_ends:
            assert vocabulary.end_mask_id is not None
            tail.append(_one(vocabulary.end_mask_id, float(part.weights[-1])))
    return Encoded.joined(kept[0], *body, *tail, document[n:])


def restore(ids: Ids, vocabulary: Vocabulary) -> list[int]:
    """Return the ids of the document that was rotated: the inverse of :func:`rotate`.

    Ids without a mask are returned as they are. The last span may lack its end.

    Raises:
        GrammarError: the ids are no rotated document.
    """
    rotated = Rotated.of(ids, vocabulary)
    if missing := sorted(rotated.places.keys() - rotated.gaps.keys()):
        place = rotated.places[missing[0]]
        name = vocabulary.name_of(rotated.body[place])
        raise GrammarError(f"Found {name} at position {place}; its content does not follow.", place)
    return rotated.filled()


@dataclass(frozen=True, slots=True)
class Rotated:
    """A rotated document, or the first ids of one, taken apart.

    Attributes:
        body: the ids up to the first mask that occurs again.
        places: the position in the body of each mask, by its number.
        gaps: what follows a mask where it occurs again, by its number, without ``end_mask``.
        rest: what stands behind all gaps: eos, or nothing.
    """

    body: list[int]
    places: dict[int, int]
    gaps: dict[int, list[int]]
    rest: list[int]

    @classmethod
    def of(cls, ids: Ids, vocabulary: Vocabulary) -> "Rotated":
        """Take ids apart; raises GrammarError unless masks are in order and occur twice at most."""
        numbers = {mask: number for number, mask in enumerate(vocabulary.masks)}
        plain = [int(i) for i in ids]
        n = len(plain) - _ends_with_eos(plain, vocabulary)
        found = [(place, numbers[i]) for place, i in enumerate(plain[:n]) if i in numbers]
        order = [number for _, number in found]
        n_masks = next((at for at, k in enumerate(order) if k in order[:at]), len(order))
        if wrong := [
            (place, plain[place])
            for at, (place, number) in enumerate(found)
            if number != (at if at < n_masks else at - n_masks) or at >= 2 * n_masks
        ]:
            place, mask = wrong[0]
            raise GrammarError(
                f"Found {vocabulary.name_of(mask)} at position {place}; masks must be numbered "
                "from 0 in their order, and occur again in the same order, each once.",
                place,
            )
        tail = [place for place, _ in found[n_masks:]]
        gaps = {
            number: _without_end(plain[start + 1 : stop], vocabulary)
            for number, (start, stop) in enumerate(pairwise([*tail, n]))
        }
        places = {number: place for place, number in found[:n_masks]}
        return cls(plain[: tail[0] if tail else n], places, gaps, plain[n:])

    def filled(self, before: int | None = None) -> list[int]:
        """Return the document with the gaps in their places.

        Args:
            before: only what precedes the mask of this number.
        """
        ids: list[int] = []
        start = 0
        for number, place in self.places.items():
            ids += self.body[start:place]
            if number == before:
                return ids
            ids += self.gaps.get(number, [self.body[place]])
            start = place + 1
        return [*ids, *self.body[start:], *self.rest]


def open_gap(ids: Ids, vocabulary: Vocabulary) -> int | None:
    """Return the number of the mask whose content comes next: the last id, if it occurs twice."""
    masks = vocabulary.masks
    last = int(ids[-1]) if len(ids) else -1
    if last not in masks or last not in (int(i) for i in ids[:-1]):
        return None
    return masks.index(last)


def _ends_with_eos(ids: Ids, vocabulary: Vocabulary) -> int:
    return int(len(ids) > 0 and int(ids[-1]) == vocabulary.eos_id)


def _without_end(ids: list[int], vocabulary: Vocabulary) -> list[int]:
    return ids[:-1] if ids and ids[-1] == vocabulary.end_mask_id else ids


def _one(token_id: int, weight: float) -> Encoded:
    return Encoded(np.array([token_id]), np.array([weight], dtype=np.float32))
