"""The images to evaluate with: opened one at a time, those that cannot be counted and named."""

from collections.abc import Iterator
from pathlib import Path

import PIL.Image

from pardalis.data.report import Rejected, count_rejection
from pardalis.documents import READERS, Image, Rejection, named_images
from pardalis.errors import DataError
from pardalis.vq import ImageFit, ImageTokenizerConfig, open_square


class Images:
    """The images of a source of documents.

    Args:
        path: a folder or a file.
        reader: of :data:`pardalis.documents.READERS`.
        fit: how an image becomes a square.
        most: images to take, evenly spaced over the source; None: all.

    Attributes:
        rejected: by kind, what :meth:`squares` could not use.

    Raises:
        DataError: there is nothing at the path.
    """

    def __init__(
        self, path: Path, reader: str, fit: ImageFit = "crop", most: int | None = None
    ) -> None:
        self.path = path
        self.fit = fit
        self.rejected: dict[str, Rejected] = {}
        self._reader = READERS[reader]
        self._n_found = sum(not isinstance(item, Rejection) for item in self._items())
        self._n_taken = self._n_found if most is None else min(self._n_found, most)

    def __len__(self) -> int:
        """Return how many images will be tried."""
        return self._n_taken

    def squares(self, config: ImageTokenizerConfig) -> Iterator[tuple[str, PIL.Image.Image]]:
        """Yield names, and images as a tokenizer of this config sees them."""
        self.rejected.clear()
        n_passed = 0
        for item in self._items():
            if isinstance(item, Rejection):
                count_rejection(self.rejected, item)
                continue
            n_passed += 1
            if not self._is_taken(n_passed):
                continue
            name, image = item
            try:
                pixels = open_square(
                    image.source, config.resolution, config.preprocessing, self.fit
                )
            except DataError as error:
                count_rejection(self.rejected, Rejection(name, "unreadable-image", str(error)))
            else:
                yield name, PIL.Image.fromarray(pixels)

    def _is_taken(self, number: int) -> bool:
        """Tell whether the image of a number, from 1, is one of those evenly spaced."""
        before = (number - 1) * self._n_taken // self._n_found
        return number * self._n_taken // self._n_found > before

    def _items(self) -> Iterator[tuple[str, Image] | Rejection]:
        return named_images(self._reader(self.path))
