"""Mixture: which source serves a position, and how many positions that source served before.

The weights become whole shares of a cycle: 0.5, 0.3, 0.2 are 5, 3 and 2 positions of every 10. The
cycle is laid out once as a table, so any position is a table look-up: position p has the offset
``p % cycle`` in cycle ``p // cycle``.

Within the cycle the sources are interleaved as evenly as can be. A source of weight w must have
been served at least floor(w·P) and at most ceil(w·P) times after any P positions, so its j-th
service (from 0) has an offset in floor(j/w) ≤ offset < ceil((j+1)/w). Since the weights sum to one,
serving the earliest deadline among the sources whose window is open always meets every window (the
Pfair schedule of Baruah et al., "Proportionate progress", 1996, on one processor).
"""

import heapq
import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from pardalis.errors import ConfigError

LONGEST_CYCLE = 65_536  # weights that have no shorter cycle are rounded to multiples of 1/65,536


class Mixture:
    """An endless interleaving; after any P positions each source was served within 1 of weight·P.

    Args:
        weights: by source, above 0, in any unit: only their ratios matter.

    Attributes:
        weights: the exact weight of every source; they sum to 1.

    Raises:
        ConfigError: there is no source, or a weight is not a positive number, or is too small
            compared with the others to get one position of the longest cycle.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._sources = sorted(weights)  # the order in which a recipe names them does not matter
        self._shares = _whole_shares([weights[name] for name in self._sources], self._sources)
        self._cycle = sum(self._shares)
        self._schedule = _interleave(self._shares)
        served = self._schedule[:, None] == np.arange(len(self._sources))
        # How often the source at each offset was served earlier in the cycle.
        self._earlier = np.cumsum(served, axis=0)[np.arange(self._cycle), self._schedule] - 1
        self.weights = {
            name: Fraction(share, self._cycle)
            for name, share in zip(self._sources, self._shares, strict=True)
        }

    def at(self, position: int) -> tuple[str, int]:
        """Return the source that serves a position, and the position in its own sequence."""
        cycle, offset = divmod(position, self._cycle)
        source = int(self._schedule[offset])
        return self._sources[source], cycle * self._shares[source] + int(self._earlier[offset])

    def served(self, positions: int) -> dict[str, int]:
        """Return how many of the first positions each source serves."""
        cycles, rest = divmod(positions, self._cycle)
        begun = np.bincount(self._schedule[:rest], minlength=len(self._sources)).tolist()
        return {
            name: cycles * share + extra
            for name, share, extra in zip(self._sources, self._shares, begun, strict=True)
        }


def _whole_shares(weights: list[float], names: list[str]) -> list[int]:
    if not weights:
        raise ConfigError("A mixture needs at least one source, found none; add one.")
    for name, weight in zip(names, weights, strict=True):
        if not (weight > 0 and math.isfinite(weight)):
            raise ConfigError(
                f"The weight of source {name!r} must be a number above 0, got {weight}; "
                "correct it or leave the source out."
            )
    # Weights are given as decimals, so 0.3 means 3/10, not the nearest binary fraction.
    exact = [Fraction(str(weight)) for weight in weights]
    portions = [weight / sum(exact) for weight in exact]
    cycle = min(math.lcm(*(portion.denominator for portion in portions)), LONGEST_CYCLE)
    shares = [math.floor(portion * cycle) for portion in portions]
    by_remainder = sorted(range(len(shares)), key=lambda i: shares[i] - portions[i] * cycle)
    for source in by_remainder[: cycle - sum(shares)]:
        shares[source] += 1
    for name, weight, share in zip(names, weights, shares, strict=True):
        if share == 0:
            raise ConfigError(
                f"The weight {weight} of source {name!r} is less than 1/{LONGEST_CYCLE:,} of the "
                f"sum {sum(weights)}, so it would never be served; raise it or leave it out."
            )
    return shares


def _interleave(shares: list[int]) -> np.ndarray:
    """Return the source at each offset of a cycle: earliest deadline first within the windows."""
    cycle = sum(shares)
    windows = sorted(
        (j * cycle // share, -(-(j + 1) * cycle // share), source)
        for source, share in enumerate(shares)
        for j in range(share)
    )
    schedule = np.empty(cycle, dtype=np.int32)
    waiting: list[tuple[int, int]] = []  # (deadline, source) of the open windows
    opened = 0
    for offset in range(cycle):
        while opened < cycle and windows[opened][0] <= offset:
            heapq.heappush(waiting, windows[opened][1:])
            opened += 1
        schedule[offset] = heapq.heappop(waiting)[1]
    return schedule
