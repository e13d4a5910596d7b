"""Finding the vectors nearest to a query: exactly by matrix products, or by clusters with faiss."""

from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float, Integer

from pardalis.imports import optional_package

SearchKind = Literal["auto", "exact", "faiss"]

MOST_EXACT = 100_000  # documents that "auto" searches exactly; then it takes faiss
_BLOCK = 2**24  # scores that exist at a time: 64 MiB
_MOST_TRAINING = 64  # vectors of a cluster that faiss learns its centre from

Nearest: TypeAlias = tuple[Integer[np.ndarray, "Q K"], Float[np.ndarray, "Q K"]]
"""Numbers and inner products, best first; of equal ones the lower number first."""


@runtime_checkable
class Search(Protocol):
    """A search among vectors; ``n`` is at most how many there are."""

    def nearest(self, queries: Float[np.ndarray, "Q D"], n: int) -> Nearest:
        """Return the nearest vectors of each query; faiss may find fewer, and gives -1 then."""
        ...


class ExactSearch:
    """All inner products, in blocks of queries."""

    def __init__(self, vectors: Float[np.ndarray, "N D"]) -> None:
        self._vectors = vectors

    def nearest(self, queries: Float[np.ndarray, "Q D"], n: int) -> Nearest:
        numbers = np.empty((len(queries), n), dtype=np.int64)
        scores = np.empty((len(queries), n), dtype=np.float32)
        rows = max(1, _BLOCK // max(1, len(self._vectors)))
        for start in range(0, len(queries), rows):
            block = slice(start, start + rows)
            numbers[block], scores[block] = _best(queries[block] @ self._vectors.T, n)
        return numbers, scores


def _best(scores: Float[np.ndarray, "Q N"], n: int) -> Nearest:
    """Return the largest of each row; equal ones in ascending order, also at the cut."""
    if n < scores.shape[1]:
        least = np.partition(scores, -n, axis=1)[:, -n, None]  # the n-th largest
        above = scores > least
        ties = (scores == least) & ~above
        needed = n - above.sum(1, keepdims=True)
        taken = above | (ties & (ties.cumsum(1) <= needed))
        numbers = np.nonzero(taken)[1].reshape(len(scores), n)
    else:
        numbers = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    found = np.take_along_axis(scores, numbers, 1)
    order = np.argsort(-found, axis=1, kind="stable")
    return np.take_along_axis(numbers, order, 1), np.take_along_axis(found, order, 1)


class FaissSearch:
    """Inner products with the vectors of the nearest clusters only (``IndexIVFFlat`` of faiss).

    The clusters are found again whenever an index is opened: nothing that another program wrote is
    read. They do not depend on the number of threads.

    Args:
        probes: the share of the clusters that a query looks into; 1: all, which is exact.

    Raises:
        ConfigError: faiss is not installed.
    """

    def __init__(self, vectors: Float[np.ndarray, "N D"], probes: float = 0.1) -> None:
        with optional_package("Searching many documents", "retrieval"):
            import faiss
        n, width = vectors.shape
        n_clusters = max(1, round(n**0.5))
        coarse = faiss.IndexFlatIP(width)
        self._index = faiss.IndexIVFFlat(coarse, width, n_clusters, faiss.METRIC_INNER_PRODUCT)
        self._index.cp.max_points_per_centroid = _MOST_TRAINING
        self._index.cp.min_points_per_centroid = 1
        self._index.nprobe = max(1, round(n_clusters * probes))
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self._index.train(vectors)
        self._index.add(vectors)

    def nearest(self, queries: Float[np.ndarray, "Q D"], n: int) -> Nearest:
        scores, numbers = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), n)
        return numbers, scores


_KINDS: dict[str, Callable[[Float[np.ndarray, "N D"]], Search]] = {
    "exact": ExactSearch,
    "faiss": FaissSearch,
}


def resolved(kind: SearchKind, n: int) -> Literal["exact", "faiss"]:
    """Return the kind of search among ``n`` vectors that is meant."""
    if kind == "auto":
        return "exact" if n <= MOST_EXACT else "faiss"
    return kind


def search_of(vectors: Float[np.ndarray, "N D"], kind: SearchKind = "auto") -> Search:
    """Return a search among vectors; raises ConfigError if it needs faiss, which is missing."""
    return _KINDS[resolved(kind, len(vectors))](vectors)
