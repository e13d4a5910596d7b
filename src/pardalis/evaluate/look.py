"""Looking at a source before anything is trained: what its reader and its rules make of it.

The first items are read as training reads them, and their images are decoded. Nothing is encoded,
so what depends on tokens, such as documents that are too long, is not known yet.
"""

import re
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pardalis.config import to_dict
from pardalis.data import Rejected, SourceConfig, read_first
from pardalis.data.report import N_EXAMPLES, count_rejection
from pardalis.data.ruled import PREFIX
from pardalis.documents import (
    Document,
    Omission,
    Rejection,
    Segment,
    Text,
    open_image,
    why_damaged,
)
from pardalis.errors import DataError
from pardalis.evaluate.templates import image_uri, render
from pardalis.progress import bar

_N_SHOWN = 24  # documents on a page
_LONGEST = 1500  # characters of a text on a page
_MOST_PARTS = 24  # texts and images of a document on a page
_PICTURES = {code: 0x2400 + code for code in range(0x20) if code not in b"\t\n"} | {0x7F: 0x2421}
# What a page would not show as it is: other controls, turns of direction, halves of pairs.
_HIDDEN = re.compile("[\x80-\x9f\u200b\u202a-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]")


@dataclass(slots=True)
class Look:
    """What was seen of a source.

    Attributes:
        is_whole: whether the source has no more than what was read.
        read: documents and rejections of the reader.
        kept: documents that are left, with their images and the characters of their text.
        roles: segments of each role; none where there are no conversations.
        rejected: what the reader or the decoding of images rejected, by kind.
        removed: what rules removed, by kind.
        left_out: what the reader left out of documents, by kind.
        documents: the first ones as :func:`_card` describes them.
        examples: the first documents of which something was removed or is damaged, by kind, with
            the reason.
    """

    source: SourceConfig
    is_whole: bool = True
    read: int = 0
    kept: int = 0
    images: int = 0
    characters: int = 0
    roles: Counter[str] = field(default_factory=Counter)
    rejected: dict[str, Rejected] = field(default_factory=dict)
    removed: dict[str, Rejected] = field(default_factory=dict)
    left_out: dict[str, Rejected] = field(default_factory=dict)
    documents: list[dict[str, Any]] = field(default_factory=list)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a program; documents have no pixels."""
        counts = ("is_whole", "read", "kept", "images", "characters")
        return {
            "source": to_dict(self.source),
            **{name: getattr(self, name) for name in counts},
            "roles": dict(self.roles),
            "rejected": {kind: asdict(each) for kind, each in self.rejected.items()},
            "removed": {kind: asdict(each) for kind, each in self.removed.items()},
            "left_out": {kind: asdict(each) for kind, each in self.left_out.items()},
            "documents": [_without_pixels(card) for card in self.documents],
            "examples": {
                kind: [_without_pixels(card) for card in cards]
                for kind, cards in self.examples.items()
            },
        }

    def add_rejection(self, rejection: Rejection) -> None:
        if rejection.kind.startswith(PREFIX):
            counts = self.removed
        else:
            counts = self.left_out if isinstance(rejection, Omission) else self.rejected
        count_rejection(counts, rejection)

    def add_example(self, rejection: Rejection, document: Document) -> None:
        """Keep what a document was before something of it was removed."""
        examples = self.examples.setdefault(rejection.kind, [])
        if len(examples) < N_EXAMPLES:
            examples.append(_card(document) | {"reason": visible(rejection.reason)})

    def add_document(self, document: Document) -> None:
        """Count a document; one with a damaged image as training does."""
        damaged = [
            (image, Rejection(document.name, "unreadable-image", reason))
            for image in document.images
            if (reason := why_damaged(image.source))
        ]
        rest = document
        for image, rejection in damaged:
            self.add_rejection(rejection)
            segments = tuple(segment for segment in rest.segments if segment is not image)
            rest = replace(rest, segments=segments)
        if damaged:
            self.add_example(damaged[0][1], document)
            if rest.is_empty or not self.source.has_pages:
                return
        self.kept += 1
        self.images += len(rest.images)
        self.characters += len(rest.text)
        self.roles.update(segment.role for segment in rest.segments if segment.role)
        if len(self.documents) < _N_SHOWN:
            self.documents.append(_card(rest))


def look_at(source: SourceConfig, limit: int) -> Look:
    """Read the first items of a source and decode their images.

    Args:
        limit: documents and rejections that are read at most.

    Raises:
        ConfigError: a rule cannot be applied.
        DataError: there is nothing at the path of the source.
    """
    look = Look(source)

    with bar(f"Looking at {source.name}", limit, "documents") as advance:

        def read() -> None:
            look.read += 1
            advance(1)

        for item in read_first(source, limit, look.add_example, read):
            if isinstance(item, Rejection):
                look.add_rejection(item)
            else:
                look.add_document(item)
    look.is_whole = look.read < limit
    return look


def look_page(look: Look) -> str:
    """Return a self-contained page without scripts; everything of the documents is escaped.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    of_rules = {kind: cards for kind, cards in look.examples.items() if kind.startswith(PREFIX)}
    damaged = {kind: cards for kind, cards in look.examples.items() if kind not in of_rules}
    values = {
        "look": look,
        "path": visible(str(look.source.path)),
        "rejected": _visible_examples(look.rejected),
        "removed": _visible_examples(look.removed),
        "left_out": _visible_examples(look.left_out),
        "n_rejected": sum(each.count for each in look.rejected.values()),
        "n_removed": sum(each.count for each in look.removed.values()),
        "of_rules": of_rules,
        "damaged": damaged,
        "prefix": PREFIX,
    }
    return render(Path(__file__).with_name("look_page.html.jinja"), values)


def visible(text: str) -> str:
    """Return a text in which characters that control a page are seen and do nothing."""
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text.translate(_PICTURES))


def _visible_examples(rejected: dict[str, Rejected]) -> dict[str, Rejected]:
    return {
        visible(kind): Rejected(
            each.count,
            [{key: visible(text) for key, text in example.items()} for example in each.examples],
        )
        for kind, each in rejected.items()
    }


def _card(document: Document) -> dict[str, Any]:
    """Return what a page shows of a document: its parts in order, long ones cut."""
    n_more = max(0, len(document.segments) - _MOST_PARTS)
    return {
        "name": visible(document.name),
        "licence": visible(document.licence),
        "parts": [*map(_part, islice(document.segments, _MOST_PARTS))],
        "n_more": n_more,
        "n_images": len(document.images),
        "n_characters": len(document.text),
    }


def _part(segment: Segment) -> dict[str, Any]:
    about: dict[str, Any] = {"role": segment.role}
    if segment.weight != 1:
        about["weight"] = segment.weight
    if isinstance(segment, Text):
        text = segment.text
        about["text"] = visible(text[:_LONGEST])
        return about | ({"n_cut": len(text) - _LONGEST} if len(text) > _LONGEST else {})
    about["alt"] = visible(segment.alt[:_LONGEST])
    if isinstance(segment.source, Path):
        about["file"] = visible(segment.source.name)
    try:
        image = open_image(segment.source)
    except DataError as error:
        return about | {"image": "", "error": visible(str(error))}
    return about | {"image": image_uri(image), "width": image.width, "height": image.height}


def _without_pixels(card: dict[str, Any]) -> dict[str, Any]:
    parts = [
        {key: value for key, value in part.items() if key != "image" and value is not None}
        for part in card["parts"]
    ]
    return card | {"parts": parts}
