"""A table of hashes that were seen, and where first: flat in memory, some 20 bytes for each."""

import numpy as np
from jaxtyping import UInt64

_FEWEST = 1 << 10
_FACTOR, _ALL = 0x9E3779B97F4A7C15, 2**64 - 1  # odd, so that no key is lost modulo 2^64
_FULL = 0.6  # share of places in use, from which the table grows


class Seen:
    """Remembers for each hash of 64 bits the number that it was seen with first.

    A table with open addressing; a dict of Python takes six times as much.
    """

    def __init__(self) -> None:
        self._size, self._count = _FEWEST, 0
        self._keys = np.zeros(_FEWEST, dtype=np.uint64)
        self._numbers = np.zeros(_FEWEST, dtype=np.uint32)

    def first(self, key: int, number: int) -> int | None:
        """Return the number that a hash was seen with first; None: it is new, and is remembered.

        Args:
            number: 0 to 2^32 - 2.
        """
        place = self._place(key := key or 1)
        if self._keys[place]:
            return int(self._numbers[place])
        self._keys[place], self._numbers[place] = key, number
        self._count += 1
        if self._count > _FULL * self._size:
            self._grow()
        return None

    def _place(self, key: int) -> int:
        """Return where a hash is, or the free place for it."""
        mask = self._size - 1
        place = (key * _FACTOR & _ALL) >> 32 & mask
        while (found := self._keys[place]) and found != key:
            place = (place + 1) & mask
        return int(place)

    def _grow(self) -> None:
        keys, numbers = self._keys, self._numbers
        self._size *= 2
        self._keys = np.zeros(self._size, dtype=np.uint64)
        self._numbers = np.zeros(self._size, dtype=np.uint32)
        self._place_all(keys[keys != 0], numbers[keys != 0])

    def _place_all(
        self, keys: UInt64[np.ndarray, " n"], numbers: "np.ndarray[tuple[int], np.dtype[np.uint32]]"
    ) -> None:
        """Enter hashes that differ: in each turn, one for each free place that is asked for."""
        mask = np.uint64(self._size - 1)
        places = (keys * np.uint64(_FACTOR)) >> np.uint64(32) & mask
        while len(keys):
            free = self._keys[places] == 0
            _, chosen = np.unique(places[free], return_index=True)
            entered = np.flatnonzero(free)[chosen]
            self._keys[places[entered]] = keys[entered]
            self._numbers[places[entered]] = numbers[entered]
            rest = np.ones(len(keys), dtype=bool)
            rest[entered] = False
            keys, numbers = keys[rest], numbers[rest]
            places = (places[rest] + np.uint64(1)) & mask
