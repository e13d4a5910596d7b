"""Agreement of raters: Krippendorff's alpha.

Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C and following.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(
    units: Iterable[Sequence[int]], n_values: int, level: Level = "nominal"
) -> float | None:
    """Return alpha: 1 is perfect agreement, 0 that of chance.

    Args:
        units: the ratings of each unit, as values from 0 to ``n_values - 1``; any number each.
        level: what disagrees: any two values that differ ("nominal"), by the ranks between them
            ("ordinal"), or by the square of their difference ("interval").

    Returns:
        None if no unit has two ratings, or if all ratings are the same value.
    """
    coincidences = np.zeros((n_values, n_values))
    for ratings in units:
        if len(ratings) > 1:
            counts = np.bincount(ratings, minlength=n_values).astype(float)
            pairs = np.outer(counts, counts) - np.diag(counts)
            coincidences += pairs / (len(ratings) - 1)
    totals = coincidences.sum(0)
    distances = _distances(totals, level)
    expected = (np.outer(totals, totals) * distances).sum()
    if expected == 0:
        return None
    observed = (coincidences * distances).sum()
    return float(1 - (totals.sum() - 1) * observed / expected)


def _distances(totals: np.ndarray, level: Level) -> np.ndarray:
    """Return the squared distance of each two values."""
    if level == "nominal":
        return 1 - np.eye(len(totals))
    # The middle of a value's ratings in the order of all ratings: differences of ranks.
    places = np.cumsum(totals) - totals / 2 if level == "ordinal" else np.arange(len(totals))
    return np.subtract.outer(places, places) ** 2
