"""What a mixed-modal document is: text and images in reading order.

Every reader yields :class:`Document`, or :class:`Rejection` for an item that it could not use.
Images are opened and decoded by :mod:`pardalis.documents.images`.
"""

import re
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

MAX_WEIGHT = 65_504.0  # the largest number of 16 bits, in which shards store weights


@dataclass(frozen=True, slots=True)
class Text:
    """Text; ``role`` is whose turn of a conversation it belongs to."""

    text: str
    role: Role | None = None
    weight: float = 1.0  # of its tokens in the loss, 0 to MAX_WEIGHT; 0: they are not learnt


@dataclass(frozen=True, slots=True)
class Region:
    """A box of an image that matters more than the rest; ``kind`` is what it shows."""

    box: Box  # in the upright image
    kind: str = ""  # "face", "object", ...
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Image:
    """An image: the path of its file, the bytes of one, or the image already decoded."""

    source: ImageSource
    alt: str = ""
    role: Role | None = None
    regions: tuple[Region, ...] = ()
    weight: float = 1.0  # of its tokens in the loss, as of a text

    def _repr_html_(self) -> str:
        from pardalis.documents.notebook import image_html

        return image_html(self)


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
        """Whether there is no image and no text other than whitespace."""
        return not self.images and not self.text.strip()

    def _repr_html_(self) -> str:
        from pardalis.documents.notebook import document_html

        return document_html(self)


def named_images(
    items: Iterable["Document | Rejection"],
) -> Iterator["tuple[str, Image] | Rejection"]:
    """Yield every image with a unique name, and the rejections, of the items of a reader.

    What is left out of a document is not yielded. The first image of a document has the document's
    name, the next ``name#2`` and so on.
    """
    for item in items:
        if isinstance(item, Rejection):
            if not isinstance(item, Omission):
                yield item
            continue
        for number, image in enumerate(item.images, start=1):
            yield (item.name if number == 1 else f"{item.name}#{number}"), image


def is_unicode(text: str) -> bool:
    r"""Return False for text with half of a surrogate pair, which JSON can spell (``"\ud800"``)."""
    return not re.search(r"[\ud800-\udfff]", text)


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


@dataclass(frozen=True, slots=True)
class Omission(Rejection):
    """What a rule leaves out of an item that is used without it, such as a page's navigation.

    Attributes:
        count: how often the rule did so in the item; ``reason`` shows the first.
    """

    count: int = 1
