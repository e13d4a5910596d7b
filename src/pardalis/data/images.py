"""Images for training an image tokenizer: those of each step, decoded in advance.

The images of a step, with their crops and mirrorings, are a pure function of the seed and the step,
as rows are. So nothing is stored to resume, and processes take their shares of the same batch.
"""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from pardalis.data.order import Order
from pardalis.documents import Box, Image, open_image
from pardalis.errors import ConfigError, DataError
from pardalis.seeds import numpy_generator
from pardalis.vq.config import ImageTokenizerConfig
from pardalis.vq.preprocessing import CONVENTIONS, CropBox, place_in_square, to_square

logger = logging.getLogger(__name__)

_KEPT_BYTES = 4 << 30  # cache of decoded squares: 350,000 of 64 pixels, 5,400 of 512
_STEPS_AHEAD = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentationConfig:
    """Random changes of an image each time that it is seen."""

    # Smallest side of a random square crop, relative to the shorter side; 1: the central crop.
    smallest_crop: float = 1.0
    mirror: bool = False  # mirrored left to right half of the time; not for images of text

    def __post_init__(self) -> None:
        if not 0 < self.smallest_crop <= 1:
            raise ConfigError(f"smallest_crop must lie in (0, 1], got {self.smallest_crop}.")


class WeightedBox(NamedTuple):
    """A region in pixels of the square."""

    box: Box
    kind: str
    weight: float


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """The images of one step on one process."""

    bytes: UInt8[Tensor, "B 3 Y X"]
    regions: list[list[WeightedBox]]  # regions of each image


@dataclass(frozen=True, slots=True)
class _Square:
    bytes: UInt8[np.ndarray, "Y X 3"]
    regions: list[WeightedBox]


def check_shared(batch_images: int, size: int) -> None:
    """Raise ConfigError unless processes can share the images of a step evenly."""
    if batch_images % size:
        raise ConfigError(
            f"batch_images is {batch_images}, which {size} processes cannot share evenly; choose "
            "a multiple."
        )


class ImageFeed:
    """The images of each step, as squares.

    Every epoch has all images in a new order. An image that cannot be read is logged once, and the
    next readable one replaces it. Squares without augmentation are kept in memory up to a limit;
    others are decoded by threads, two steps ahead.

    Args:
        images: the training images; one that is listed twice is seen twice as often.
        batch_images: images of a step, over all processes.
        share: (rank, size) of the process.

    Raises:
        DataError: there is no image.
        ConfigError: the batch cannot be divided evenly.
    """

    def __init__(
        self,
        images: Sequence[Image],
        config: ImageTokenizerConfig,
        batch_images: int,
        seed: int,
        augmentation: AugmentationConfig | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        rank, size = share
        if not images:
            raise DataError("There is no image to train the image tokenizer with.")
        check_shared(batch_images, size)
        self.images = images
        self.config = config
        self.batch_images = batch_images
        self.seed = seed
        self.augmentation = augmentation or AugmentationConfig()
        self._mine = range(rank * (batch_images // size), (rank + 1) * (batch_images // size))
        self._order = Order(len(images), seed, "pictures")  # decides the order: never rename
        self._kept: dict[int, _Square | None] = {}
        self._max_kept = max(1, _KEPT_BYTES // (3 * config.resolution**2))
        self._lock = Lock()
        self._threads = ThreadPoolExecutor(min(16, os.cpu_count() or 1), "images")
        self._ahead: dict[int, list[Future[_Square]]] = {}

    def batch(self, step: int) -> ImageBatch:
        """Return this process's images of a step.

        Raises:
            DataError: no image can be read.
        """
        wanted = range(step, step + 1 + _STEPS_AHEAD)
        self._ahead = {now: self._ahead.get(now) or self._begin(now) for now in wanted}
        squares = [future.result() for future in self._ahead.pop(step)]
        stacked = torch.from_numpy(np.stack([each.bytes for each in squares]))
        return ImageBatch(stacked.permute(0, 3, 1, 2), [each.regions for each in squares])

    def members(self, step: int) -> list[int]:
        """Return the indices of this process's images of a step."""
        return [self._order.at(position)[1] for position in self._positions(step)]

    def _positions(self, step: int) -> range:
        first = step * self.batch_images
        return range(first + self._mine.start, first + self._mine.stop)

    def _begin(self, step: int) -> list[Future[_Square]]:
        positions = self._positions(step)
        return [
            self._threads.submit(self._readable, index, position)
            for index, position in zip(self.members(step), positions, strict=True)
        ]

    def _readable(self, index: int, position: int) -> _Square:
        """Return the image of an index, or the first readable one after it."""
        for i in range(len(self.images)):
            found = self._square((index + i) % len(self.images), position)
            if found is not None:
                return found
        raise DataError(f"None of the {len(self.images)} images can be read; look at the sources.")

    def _square(self, index: int, position: int) -> _Square | None:
        if index in self._kept:
            return self._kept[index]
        changes = self.augmentation != AugmentationConfig()
        image = self.images[index]
        try:
            generator = numpy_generator(self.seed, "augmentation", position) if changes else None
            made = _cut(image, self.config, self.augmentation, generator)
        except DataError as error:
            self._skip(index, error)
            return None
        if not changes and len(self._kept) < self._max_kept:
            self._kept[index] = made
        return made

    def _skip(self, index: int, error: DataError) -> None:
        with self._lock:  # several threads may find it at once
            if index not in self._kept:
                logger.warning("An image is skipped: %s", error)
            self._kept[index] = None


def _cut(
    image: Image,
    config: ImageTokenizerConfig,
    augmentation: AugmentationConfig,
    generator: np.random.Generator | None,
) -> _Square:
    """Open an image and crop its square, with the regions that lie in it."""
    side, preprocessing = config.resolution, config.preprocessing
    opened = open_image(image.source, CONVENTIONS[preprocessing].blend)
    window = None
    if generator is not None and augmentation.smallest_crop < 1:
        window = _window(opened.size, augmentation.smallest_crop, generator)
    pixels = to_square(opened, side, preprocessing, window=window)
    place = place_in_square(opened.size, side, preprocessing, window=window)
    regions = [
        WeightedBox(box, region.kind, region.weight)
        for region in image.regions
        if (box := place.box(region.box)) is not None
    ]
    if generator is not None and augmentation.mirror and generator.random() < 0.5:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
        regions = [
            each._replace(box=(side - each.box[2], each.box[1], side - each.box[0], each.box[3]))
            for each in regions
        ]
    return _Square(pixels, regions)


def _window(size: tuple[int, int], smallest: float, generator: np.random.Generator) -> CropBox:
    """Sample a square of an image, in whole pixels: its side, then its place."""
    side = max(1, round(min(size) * generator.uniform(smallest, 1.0)))
    left, top = (int(generator.integers(0, length - side, endpoint=True)) for length in size)
    return left, top, left + side, top + side
