"""Rule ``duplicate_images``: images that were seen before, nearly or wholly."""

from array import array
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from pardalis.config import check_at_least
from pardalis.data.rules.names import Names
from pardalis.data.rules.rule import Others, Removal
from pardalis.documents import Document, Image, open_image
from pardalis.documents.likeness import difference_hash, thumbnail
from pardalis.errors import ConfigError, DataError

_BITS = 64
_MOST_BITS = 15
_THUMBNAIL = 8 * 8 * 3  # bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class DuplicateImages:
    """Removes all but the first of images that look the same.

    Two images do if their difference hashes differ in at most ``bits`` of 64, and their 8 x 8
    pixels in RGB by at most ``levels`` of 255 on average (:mod:`pardalis.documents.likeness`). So
    copies in another size, format or quality are found, but no crops. Images that cannot be read
    are left to the encoding, which says what is wrong with them.
    """

    kind: Literal["duplicate_images"] = "duplicate_images"
    bits: int = 3
    levels: float = 12.0
    against: tuple[Others, ...] = ()  # documents whose images count as seen

    def __post_init__(self) -> None:
        check_at_least(self, bits=0, levels=0)
        if self.bits > _MOST_BITS:
            raise ConfigError(f"bits must be at most {_MOST_BITS}, got {self.bits}.")

    def begin(self) -> "_Images":
        return _Images(self)


class _Images:
    """The images that were seen.

    Hashes that differ in few bits agree in one of as many equal parts and one more, so only those
    that share a part are compared (Manku et al. 2007, "Detecting near-duplicates for web
    crawling").
    """

    def __init__(self, rule: DuplicateImages) -> None:
        self._rule = rule
        edges = np.linspace(0, _BITS, rule.bits + 2).round().astype(int).tolist()
        self._parts = [(start, (1 << stop - start) - 1) for start, stop in pairwise(edges)]
        self._of_part: list[dict[int, array[int]]] = [{} for _ in self._parts]
        self._hashes: array[int] = array("Q")
        self._thumbnails = bytearray()
        self._names = Names()
        for others in rule.against:
            for document in others.documents():
                for image in document.images:
                    self._first(image, f"{document.name} of {others.path.name}")

    def removal(self, document: Document) -> Removal | None:
        firsts = {
            number: first
            for number, image in enumerate(document.images)
            if (first := self._first(image, document.name)) is not None
        }
        if not firsts:
            return None
        name = self._names[next(iter(firsts.values()))]
        return Removal(f"The image looks the same as one of {name}.", tuple(firsts))

    def _first(self, image: Image, name: str) -> int | None:
        """Return the number of the first image that looks the same; a new one is remembered."""
        try:
            opened = open_image(image.source)
        except DataError:
            return None
        look, pixels = difference_hash(opened), thumbnail(opened)
        keys = [look >> start & mask for start, mask in self._parts]
        near = {n for of, key in zip(self._of_part, keys, strict=True) for n in of.get(key, ())}
        for number in sorted(near):
            if (self._hashes[number] ^ look).bit_count() <= self._rule.bits:
                at = number * _THUMBNAIL
                other = np.frombuffer(self._thumbnails, np.uint8, _THUMBNAIL, at)
                levels = np.abs(other.astype(np.int16) - pixels.reshape(-1)).mean()
                del other  # a view would keep the bytes from growing
                if levels <= self._rule.levels:
                    return number
        number = self._names.add(name)
        self._hashes.append(look)
        self._thumbnails += pixels.tobytes()
        for of, key in zip(self._of_part, keys, strict=True):
            of.setdefault(key, array("I")).append(number)
        return None
