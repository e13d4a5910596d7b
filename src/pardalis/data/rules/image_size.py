"""Rule ``image_size``: images that are too small, too large or too narrow."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import PIL.Image

from pardalis.config import check_at_least
from pardalis.data.rules.rule import Removal
from pardalis.documents import Document, ImageSource
from pardalis.documents.images import image_size
from pardalis.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSize:
    """Removes images by the size that their headers state.

    An image that cannot be read is left to the encoding, which says what is wrong with it.
    """

    kind: Literal["image_size"] = "image_size"
    min_side: int = 0  # pixels of the shorter side
    max_side: int | None = None  # pixels of the longer side
    max_aspect: float = math.inf  # longer side by shorter side

    def __post_init__(self) -> None:
        check_at_least(self, min_side=0, max_aspect=1)
        if self.max_side is not None:
            check_at_least(self, max_side=1)

    def removal(self, document: Document) -> Removal | None:
        sizes = [_size(image.source) for image in document.images]
        wrong = {n: why for n, size in enumerate(sizes) if size and (why := self._why(*size))}
        return Removal(next(iter(wrong.values())), tuple(wrong)) if wrong else None

    def _why(self, width: int, height: int) -> str:
        size = f"The image has {width} x {height} pixels"
        short, long = sorted((width, height))
        if short < self.min_side:
            return f"{size}; the shorter side must have at least {self.min_side}."
        if self.max_side is not None and long > self.max_side:
            return f"{size}; the longer side may have at most {self.max_side}."
        if long > self.max_aspect * short:
            return (
                f"{size}; the longer side may be at most {self.max_aspect:g} times the shorter one."
            )
        return ""


def _size(source: ImageSource) -> tuple[int, int] | None:
    if isinstance(source, PIL.Image.Image):
        return source.size
    if not isinstance(source, Path | bytes):
        return None
    try:
        return image_size(source)
    except DataError:
        return None
