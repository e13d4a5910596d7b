"""Where a document lies in its source, by a hash of its content, so that a source can be divided.

Every document has a place in [0, 1). A part of a source is a range of places, so two parts that do
not overlap have no document in common. Nothing but its content moves a document: neither other
documents, nor the order, the folder or the machine.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, takewhile
from typing import TypeAlias

from pardalis.documents import Document, Image, Rejection, Segment, Text

Part: TypeAlias = tuple[float, float]
"""Places from the first number on, below the second."""

WHOLE: Part = (0.0, 1.0)

_BITS = 53  # of a double, which holds every place exactly
_LAST = 1 - 2.0**-_BITS  # of rejections, which have no content: one part alone reports them


def placed(
    items: Iterable[Document | Rejection], together: int = 1
) -> Iterator[tuple[float, Document | Rejection]]:
    """Yield items with their places; each ``together`` documents in succession have the same."""
    group: list[Document] = []
    for item in items:
        if isinstance(item, Rejection):
            yield _LAST, item
            continue
        group.append(item)
        if len(group) == together:
            place = place_of(*group)
            yield from ((place, document) for document in group)
            group = []


def place_of(*documents: Document) -> float:
    """Return the place of a document, or the one place of the two documents of a pair.

    A document is placed by its text, whatever the white space in it, so copies and equal captions
    have one place. A pair is placed by the text of its prompt, and a conversation by that of the
    user's first turn, unless it has images; then by all text of both completions, or of the
    conversation. What has no text is placed by its images if it holds them
    itself, and otherwise by its name.
    """
    segments = _of_one(*documents) if len(documents) == 1 else _of_pair(*documents)
    words = "".join(each.text for each in segments if isinstance(each, Text)).split()
    inside = [
        hashlib.sha256(each.source).hexdigest()
        for each in segments
        if isinstance(each, Image) and isinstance(each.source, bytes)
    ]
    content = " ".join(words) if words else inside or [documents[0].name]
    digest = hashlib.sha256(repr(content).encode(errors="surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") >> (64 - _BITS)) / 2.0**_BITS


def _of_pair(chosen: Document, rejected: Document) -> tuple[Segment, ...]:
    """Return the segments that place a pair."""
    both = zip(chosen.segments, rejected.segments, strict=False)
    shared = takewhile(lambda pair: pair[0] == pair[1] and pair[0].weight == 0, both)
    prompt = tuple(segment for segment, _ in shared)
    return prompt if _tells_apart(prompt) else (*chosen.segments, *rejected.segments)


def _of_one(document: Document) -> tuple[Segment, ...]:
    """Return the segments that place a document: of a conversation, what the user asks first."""
    turns = [(role, tuple(turn)) for role, turn in groupby(document.segments, lambda s: s.role)]
    if turns and turns[0][0] == "system":
        turns = turns[1:]
    if [role for role, _ in turns[:2]] == ["user", "assistant"] and _tells_apart(turns[0][1]):
        return turns[0][1]
    return document.segments


def _tells_apart(prompt: Sequence[Segment]) -> bool:
    """Whether a prompt has text and no images: questions about images may all be the same."""
    has_text = any(isinstance(each, Text) and each.text.strip() for each in prompt)
    return has_text and not any(isinstance(each, Image) for each in prompt)
