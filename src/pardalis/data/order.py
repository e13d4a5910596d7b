"""Order: which row of a source stands at a position of its endless sequence.

It is a pure function of (seed, source, position): nothing is stored to resume, and any rank can ask
for any position at any time.
"""

import numpy as np

from pardalis.seeds import numpy_generator


class Order:
    """The rows of one source, freshly shuffled in every epoch.

    Args:
        n_rows: rows of the source, which is also the number of positions of an epoch.
        seed: the root seed of the run.
        source: name of the source, so that sources of equal size are shuffled differently.
    """

    def __init__(self, n_rows: int, seed: int, source: str) -> None:
        self.n_rows = n_rows
        self._names = (seed, "order", source)
        self._shuffled: tuple[int, np.ndarray] = (-1, np.empty(0))  # the epoch asked last

    def at(self, position: int) -> tuple[int, int]:
        """Return the epoch and the row at a position; each epoch has every row exactly once."""
        epoch, index = divmod(position, self.n_rows)
        cached_epoch, rows = self._shuffled
        if epoch != cached_epoch:
            rows = numpy_generator(*self._names, epoch).permutation(self.n_rows)
            self._shuffled = (epoch, rows)
        return epoch, int(rows[index])
