"""The nearest vectors: all products, and those of near clusters."""

import builtins

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pardalis.errors import ConfigError
from pardalis.retrieval import ExactSearch, FaissSearch, search_of
from pardalis.retrieval import search as search_module

try:
    import faiss
except ModuleNotFoundError:
    faiss = None
needs_faiss = pytest.mark.skipif(faiss is None, reason="faiss-cpu is not installed")


def unit(n: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@given(st.data(), st.integers(1, 12), st.integers(1, 5))
def test_exact_search_is_a_sort(data, n, n_queries):
    """Small whole numbers, so that many scores are equal."""
    numbers = st.integers(-2, 2)
    table = st.lists(st.lists(numbers, min_size=2, max_size=2), min_size=n, max_size=n)
    vectors = np.array(data.draw(table), dtype=np.float32)
    queries = np.array(data.draw(table), dtype=np.float32)[:n_queries]
    k = data.draw(st.integers(1, n))
    found, scores = ExactSearch(vectors).nearest(queries, k)
    for query, own, of_own in zip(queries, found, scores, strict=True):
        products = (vectors @ query).tolist()
        expected = sorted(range(n), key=lambda i: (-products[i], i))[:k]
        assert own.tolist() == expected
        assert of_own.tolist() == [products[i] for i in expected]


def test_blocks_change_nothing(monkeypatch):
    vectors, queries = unit(40, 8, 0), unit(9, 8, 1)
    whole = ExactSearch(vectors).nearest(queries, 5)
    monkeypatch.setattr(search_module, "_BLOCK", 80)
    parts = ExactSearch(vectors).nearest(queries, 5)
    assert (whole[0] == parts[0]).all()
    np.testing.assert_allclose(whole[1], parts[1], atol=1e-6)


@needs_faiss
def test_faiss_equals_exact_search_where_it_looks_into_all_clusters():
    vectors, queries = unit(500, 16, 0), unit(30, 16, 1)
    exact = ExactSearch(vectors).nearest(queries, 8)
    found = FaissSearch(vectors, probes=1.0).nearest(queries, 8)
    assert (exact[0] == found[0]).all()
    np.testing.assert_allclose(exact[1], found[1], atol=1e-5)


@needs_faiss
def test_faiss_finds_most_neighbours_of_clustered_vectors():
    """Recall of the four nearest with a tenth of the clusters; measured: 0.99."""
    centres = unit(60, 24, 0)
    generator = np.random.default_rng(1)
    points = centres[generator.integers(60, size=3000)] + 0.1 * unit(3000, 24, 2)
    queries = points[:200]
    exact = ExactSearch(points).nearest(queries, 4)[0]
    found = FaissSearch(points).nearest(queries, 4)[0]
    hits = [len(set(a) & set(b)) / 4 for a, b in zip(exact, found, strict=True)]
    assert np.mean(hits) > 0.9
    again = FaissSearch(points).nearest(queries, 4)[0]
    assert (found == again).all()


@needs_faiss
def test_clusters_with_too_few_documents_give_fewer():
    numbers, _ = FaissSearch(unit(9, 4, 0), probes=0.01).nearest(unit(2, 4, 1), 9)
    assert (numbers == -1).any() and (numbers >= 0).any()


def test_many_documents_are_searched_by_faiss(monkeypatch):
    monkeypatch.setattr(search_module, "MOST_EXACT", 10)
    taken = []

    def noted(name: str):
        return lambda vectors: taken.append(name) or ExactSearch(vectors)

    kinds = {name: noted(name) for name in ("exact", "faiss")}
    monkeypatch.setattr(search_module, "_KINDS", kinds)
    for n in (10, 11):
        search_of(unit(n, 4, 0))
    search_of(unit(3, 4, 0), "faiss")
    assert taken == ["exact", "faiss", "faiss"]


def test_a_missing_faiss_is_one_sentence(monkeypatch):
    real = builtins.__import__

    def no_faiss(name, *rest):
        if name == "faiss":
            raise ModuleNotFoundError("No module named 'faiss'", name="faiss")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_faiss)
    with pytest.raises(ConfigError, match=r"needs the package 'faiss'.*pardalis\[retrieval\]"):
        search_of(unit(3, 4, 0), "faiss")
