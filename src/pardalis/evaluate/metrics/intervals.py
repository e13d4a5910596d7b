"""Bootstrap intervals by the percentile method (Efron and Tibshirani 1993, chapter 13).

Items are drawn again, as many as there are and with replacement, and the statistic is computed
anew; the interval lies between two quantiles of the results. The same seed gives the same interval.
Items that belong together (several seeds of one question) are drawn together: see ``clusters``.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from pardalis.seeds import numpy_generator

RESAMPLES = 2000
LEVEL = 0.95
_AT_ONCE = 1 << 22  # numbers of items drawn at once: 32 MiB


class Interval(NamedTuple):
    """The ends of an interval; NaN where there are no values, or a value is NaN."""

    low: float
    high: float


def bootstrap(
    values: Sequence[float | int] | Shaped[np.ndarray, " n"],
    *,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Return the interval of the mean of values.

    Args:
        values: one for each item, or for each answer to it.
        clusters: which item each value belongs to; an item is drawn with all its values. None: each
            value is an item.
        resamples: how often all items are drawn.
        level: the share of results between the ends.

    Raises:
        ValueError: ``clusters`` are not as many as values.
    """
    each: Float[np.ndarray, " n"] = np.asarray(values, np.float64)
    if not len(each):
        return Interval(float("nan"), float("nan"))
    counts: Float[np.ndarray, " n"] | None = None
    if clusters is not None:
        groups = _groups(clusters, len(each))
        counts = np.bincount(groups).astype(np.float64)
        each = np.bincount(groups, each).astype(np.float64)
    generator = numpy_generator(seed, "bootstrap")
    means = []
    step = max(1, _AT_ONCE // len(each))
    for start in range(0, resamples, step):
        shape = (min(step, resamples - start), len(each))
        drawn = generator.integers(0, len(each), shape)
        if counts is None:
            means.append(each[drawn].mean(1))
        else:
            means.append(each[drawn].sum(1) / counts[drawn].sum(1))
    return _between(np.concatenate(means), level)


def bootstrap_paired(
    a: Sequence[float | int] | Shaped[np.ndarray, " n"],
    b: Sequence[float | int] | Shaped[np.ndarray, " n"],
    *,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Return the interval of the mean of ``a - b``, where both have a value for each item.

    It is narrower than the intervals of two means, since an item that is hard for one model is
    mostly hard for the other.

    Raises:
        ValueError: the lists have different lengths.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return bootstrap(difference, clusters=clusters, seed=seed, resamples=resamples, level=level)


def bootstrap_of(
    n: int,
    statistic: Callable[[Int[np.ndarray, " m"]], float],
    *,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Return the interval of a statistic of a corpus that is no mean, such as BLEU.

    Args:
        n: how many values there are.
        statistic: called with the numbers of the values that were drawn, from 0 to ``n - 1``.
        clusters: as in :func:`bootstrap`.
    """
    if not n:
        return Interval(float("nan"), float("nan"))
    groups = np.arange(n) if clusters is None else _groups(clusters, n)
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    generator = numpy_generator(seed, "bootstrap")
    found = np.empty(resamples)
    for i in range(resamples):
        drawn = generator.integers(0, len(members), len(members))
        items = drawn if clusters is None else np.concatenate([members[j] for j in drawn])
        found[i] = statistic(items)
    return _between(found, level)


def _groups(clusters: Sequence[Hashable], n: int) -> Int[np.ndarray, " n"]:
    """Return the number of each value's cluster, in the order in which they are first seen."""
    if len(clusters) != n:
        raise ValueError(f"{n} values have {len(clusters)} clusters, not one each")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])


def _between(found: Float[np.ndarray, " r"], level: float) -> Interval:
    edge = 50 * (1 - level)
    low, high = np.percentile(found, (edge, 100 - edge)).tolist()
    return Interval(low, high)
