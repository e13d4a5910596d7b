"""The images of an evaluation, opened one at a time."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import PIL.Image

from pardalis.data.report import Rejected, count_rejection
from pardalis.data.source import read_part
from pardalis.data.split import WHOLE, Part
from pardalis.documents import Image, Rejection, named_images
from pardalis.errors import DataError
from pardalis.vq import ImageFit, ImageTokenizerConfig, open_square


class ImageSet:
    """The images of a source of documents.

    Args:
        path: a folder or a file.
        reader: a name in :data:`pardalis.documents.READERS`.
        image_fit: how images are made square.
        max_images: images to use, evenly spaced over the source; None: all.
        part: the part of the documents that is used.
        options: of the reader, by name.

    Attributes:
        rejected: the images that :meth:`squares` could not use, by kind of error.

    Raises:
        DataError: there is nothing at the path.
    """

    def __init__(
        self,
        path: Path,
        reader: str,
        image_fit: ImageFit = "crop",
        max_images: int | None = None,
        part: Part = WHOLE,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.image_fit = image_fit
        self.rejected: dict[str, Rejected] = {}
        self._reader, self._part, self._options = reader, part, options
        self._n_found = sum(not isinstance(item, Rejection) for item in self._items())
        self._n_used = self._n_found if max_images is None else min(self._n_found, max_images)

    def __len__(self) -> int:
        """Return the number of images that :meth:`squares` tries to open."""
        return self._n_used

    def squares(self, config: ImageTokenizerConfig) -> Iterator[tuple[str, PIL.Image.Image]]:
        """Yield names and preprocessed images for a tokenizer of this config."""
        self.rejected.clear()
        number = 0
        for item in self._items():
            if isinstance(item, Rejection):
                count_rejection(self.rejected, item)
                continue
            number += 1
            if not self._is_used(number):
                continue
            name, image = item
            try:
                pixels = open_square(
                    image.source, config.resolution, config.preprocessing, self.image_fit
                )
            except DataError as error:
                count_rejection(self.rejected, Rejection(name, "unreadable-image", str(error)))
            else:
                yield name, PIL.Image.fromarray(pixels)

    def _is_used(self, number: int) -> bool:
        """Tell whether the image of a number (from 1) is one of the evenly spaced ones."""
        before = (number - 1) * self._n_used // self._n_found
        return number * self._n_used // self._n_found > before

    def _items(self) -> Iterator[tuple[str, Image] | Rejection]:
        return named_images(read_part(self.path, self._reader, self._part, self._options))
