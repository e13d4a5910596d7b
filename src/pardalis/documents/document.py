"""What a mixed-modal document is: text and images in reading order.

Every reader yields :class:`Document`, or :class:`Rejection` for an item it could not use. Nothing
here opens a file or decodes an image; that is :mod:`pardalis.documents.images`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import PIL.Image

Role = Literal["system", "user", "assistant"]

ROLES: tuple[str, ...] = get_args(Role)

ImageSource: TypeAlias = Path | bytes | PIL.Image.Image

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text; ``role`` says who speaks it in a conversation."""

    text: str
    role: Role | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """A box of an image that matters more than the rest; ``kind`` says what it shows."""

    box: Box  # of the upright image
    kind: str = ""  # "face", "object", ...
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Image:
    """An image: the path of its file, the bytes of one, or the image already decoded."""

    source: ImageSource
    alt: str = ""
    role: Role | None = None
    regions: tuple[Region, ...] = ()


Segment: TypeAlias = Text | Image


@dataclass(frozen=True, slots=True)
class Document:
    """Segments in reading order; ``name`` is a stable key, unique in the document's source."""

    segments: tuple[Segment, ...]
    name: str = ""
    licence: str = ""

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(segment for segment in self.segments if isinstance(segment, Image))

    @property
    def text(self) -> str:
        """All text of the document, joined as it stands."""
        return "".join(segment.text for segment in self.segments if isinstance(segment, Text))

    @property
    def is_empty(self) -> bool:
        """True when there is nothing to learn from: no image, and no text but whitespace."""
        return not self.images and not self.text.strip()


def named_images(
    items: Iterable["Document | Rejection"],
) -> Iterator["tuple[str, Image] | Rejection"]:
    """Yield every image of what a reader yields under a name of its own, and the rejections.

    A document's first image bears its name; those after it ``name#2`` and so on.
    """
    for item in items:
        if isinstance(item, Rejection):
            yield item
            continue
        for number, image in enumerate(item.images, start=1):
            yield (item.name if number == 1 else f"{item.name}#{number}"), image


@dataclass(frozen=True, slots=True)
class Rejection:
    """An item that a reader could not use.

    Attributes:
        where: the file, with the line or the image inside it.
        kind: a short slug to count by, such as ``missing-image``.
        reason: what was found and what was needed, as a sentence.
    """

    where: str
    kind: str
    reason: str
