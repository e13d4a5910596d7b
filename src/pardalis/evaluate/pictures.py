"""The pictures to evaluate with: opened one at a time, those that cannot be counted and named."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from pardalis.data.report import Rejected, count_rejection
from pardalis.documents import READERS, Picture, Rejection, named_pictures
from pardalis.errors import DataError
from pardalis.vq import Fit, ImageTokenizerConfig, open_square


class Pictures:
    """The pictures of a source of documents.

    Args:
        path: a folder or a file.
        reader: of :data:`pardalis.documents.READERS`.
        fit: how a picture becomes a square.
        most: pictures to take, evenly spaced over the source; None: all.

    Attributes:
        rejected: by kind, what :meth:`squares` could not use.

    Raises:
        DataError: there is nothing at the path.
    """

    def __init__(self, path: Path, reader: str, fit: Fit = "crop", most: int | None = None) -> None:
        self.path = path
        self.fit = fit
        self.rejected: dict[str, Rejected] = {}
        self._reader = READERS[reader]
        self._n_found = sum(not isinstance(item, Rejection) for item in self._items())
        self._n_taken = self._n_found if most is None else min(self._n_found, most)

    def __len__(self) -> int:
        """Return how many pictures will be tried."""
        return self._n_taken

    def squares(self, config: ImageTokenizerConfig) -> Iterator[tuple[str, Image.Image]]:
        """Yield names, and pictures as a tokenizer of this config sees them."""
        self.rejected.clear()
        n_passed = 0
        for item in self._items():
            if isinstance(item, Rejection):
                count_rejection(self.rejected, item)
                continue
            n_passed += 1
            if not self._is_taken(n_passed):
                continue
            name, picture = item
            try:
                pixels = open_square(
                    picture.source, config.resolution, config.preprocessing, self.fit
                )
            except DataError as error:
                count_rejection(self.rejected, Rejection(name, "unreadable-picture", str(error)))
            else:
                yield name, Image.fromarray(pixels)

    def _is_taken(self, number: int) -> bool:
        """Tell whether the picture of a number, from 1, is one of those evenly spaced."""
        before = (number - 1) * self._n_taken // self._n_found
        return number * self._n_taken // self._n_found > before

    def _items(self) -> Iterator[tuple[str, Picture] | Rejection]:
        return named_pictures(self._reader(self.path))
