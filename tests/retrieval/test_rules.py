"""The rules of what is retrieved, whatever the vectors are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pardalis.errors import ConfigError
from pardalis.retrieval import Candidate, RuleConfig, draw, drop_words, select
from pardalis.retrieval.rules import ROUTES, Found


def chosen(text=(), image=(), n=4, *, mixed=None, alike=(), to_query=(), allowed=None, **config):
    """Select from documents in the order of each route; all are mixed and unlike each other."""
    scores = np.linspace(0.9, 0.1, 20).tolist()
    routes = {"text": text, "image": image}
    found = {by: Found(list(ns), scores[: len(ns)]) for by, ns in routes.items() if ns}
    pairs = {frozenset(pair) for pair in alike}
    is_mixed = np.array([mixed is None or number in mixed for number in range(20)])
    result = select(
        found,
        n,
        RuleConfig(**config),
        to_query=lambda number: 0.95 if number in to_query else 0.5,
        between=lambda a, b: 0.95 if {a, b} in pairs else 0.5,
        is_mixed=is_mixed,
        is_allowed=lambda number: allowed is None or number in allowed,
    )
    return [(each.number, each.by) for each in result]


def test_two_by_text_and_two_by_image():
    found = chosen(text=range(5), image=range(10, 15))
    assert found == [(0, "text"), (1, "text"), (10, "image"), (11, "image")]


def test_text_gets_the_odd_one():
    assert chosen(text=range(5), image=range(10, 15), n=3)[1:] == [(1, "text"), (10, "image")]
    assert chosen(text=range(5), image=range(10, 15), n=1) == [(0, "text")]
    assert chosen(text=range(5), image=range(10, 15), n=0) == []


def test_a_query_of_one_modality_finds_all_by_it():
    assert chosen(image=range(5)) == [(number, "image") for number in range(4)]
    assert chosen() == []


def test_what_resembles_the_query_too_much_is_left_out():
    assert chosen(text=range(5), to_query={0, 2}) == [(1, "text"), (3, "text"), (4, "text")]
    assert len(chosen(text=range(5), to_query={0, 2}, max_score=0.95)) == 4  # the bound is allowed


def test_a_near_duplicate_of_what_is_retrieved_is_left_out():
    assert chosen(text=range(5), alike=[(0, 1), (1, 2)], n=2) == [(0, "text"), (2, "text")]
    found = chosen(text=[0, 1], image=[1, 0, 2], n=4)  # nothing twice, also by another route
    assert found == [(0, "text"), (1, "text"), (2, "image")]


def test_documents_of_two_modalities_come_first():
    assert chosen(text=range(4), mixed={2, 3}, n=2) == [(2, "text"), (3, "text")]
    found = chosen(text=range(4), mixed={2}, n=3)
    assert [number for number, _ in found] == [2, 0, 1]
    assert chosen(text=range(4), mixed={2, 3}, n=2, prefer_mixed=False)[0] == (0, "text")


def test_what_is_not_allowed_is_left_out():
    assert chosen(text=range(4), allowed={1, 3}) == [(1, "text"), (3, "text")]


@st.composite
def worlds(draw_):
    """Documents and a query with vectors of length 1, some equal, of two blocks."""
    n = draw_(st.integers(1, 12))
    generator = np.random.default_rng(draw_(st.integers(0, 10**6)))
    parts = generator.normal(size=(n + 1, 2, 3)) * (generator.random((n + 1, 2, 1)) < 0.8)
    parts[generator.random(n + 1) < 0.3] = parts[0]
    lengths = np.linalg.norm(parts, axis=2, keepdims=True)
    parts = parts / np.where(lengths > 0, lengths, 1)
    wholes = parts.reshape(n + 1, 6)
    norms = np.linalg.norm(wholes, axis=1, keepdims=True)
    return parts, wholes / np.where(norms > 0, norms, 1)


@given(worlds(), st.integers(0, 5), st.floats(0, 1), st.booleans())
def test_no_choice_breaks_a_rule(world, n, max_score, prefer_mixed):
    parts, vectors = world
    query, documents = vectors[0], vectors[1:]
    mixed = parts[1:].any(axis=2).all(axis=1)
    found = {}
    for place, by in enumerate(ROUTES):
        route = np.zeros((2, 3))
        route[place] = parts[0, place]
        if route.any():
            scores = documents @ route.reshape(6)
            order = np.argsort(-scores, kind="stable")
            found[by] = Found(order.tolist(), scores[order].tolist())
    config = RuleConfig(max_score=max_score, prefer_mixed=prefer_mixed)

    def between(a, b):
        return float(documents[a] @ documents[b])

    result = select(
        found, n, config,
        to_query=lambda number: float(documents[number] @ query), between=between, is_mixed=mixed,
        is_allowed=lambda number: number != 0,
    )  # fmt: skip
    numbers = [each.number for each in result]
    assert len(result) <= n and len(set(numbers)) == len(numbers) and 0 not in numbers
    assert all(documents[number] @ query <= max_score for number in numbers)
    assert all(between(a, b) <= max_score for a in numbers for b in numbers if a < b)
    if found and len(result) < n:  # nothing that may be is left over
        for number in set(range(1, len(documents))) - set(numbers):
            near = any(between(number, other) > max_score for other in numbers)
            assert near or documents[number] @ query > max_score
    if prefer_mixed and len(found) == 1:
        kinds = [bool(mixed[number]) for number in numbers]
        assert kinds == sorted(kinds, reverse=True)


@given(st.lists(st.text("ab ", min_size=1), max_size=30), st.floats(0, 0.99), st.integers(0, 9))
def test_dropped_words_leave_the_others_in_order(words, share, seed):
    text = " ".join(words)
    left = drop_words(text, share, seed, "a").split()
    rest = iter(text.split())
    assert all(word in rest for word in left)  # a subsequence
    assert bool(left) == bool(text.split())
    assert drop_words(text, share, seed, "a").split() == left


def test_about_so_many_words_are_dropped():
    text = " ".join(map(str, range(2000)))
    assert 1500 < len(drop_words(text, 0.2, 0, "a").split()) < 1700
    assert drop_words(text, 0.2, 0, "a") != drop_words(text, 0.2, 0, "b")
    assert drop_words("a  b\n", 0.0, 0, "a") == "a  b\n"


@given(st.lists(st.integers(0, 99), max_size=6, unique=True), st.integers(1, 6), st.integers(0, 99))
def test_a_draw_is_a_function_of_the_seed(candidates, n, seed):
    drawn = draw(candidates, n, seed)
    assert drawn == draw(candidates, n, seed)
    assert len(drawn) == min(n, len(candidates)) and set(drawn) <= set(candidates)
    assert len(set(drawn)) == len(drawn)
    assert set(draw(candidates, n, seed, varies=True)) <= set(candidates)


def test_every_number_and_every_order_is_drawn():
    counts = [len(draw([1, 2, 3, 4], 3, seed, varies=True)) for seed in range(400)]
    assert all(60 < counts.count(n) < 140 for n in range(4))
    assert len({tuple(draw([1, 2, 3], 2, seed)) for seed in range(200)}) == 6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"candidates": 0}, "candidates must be at least 1, got 0"),
        ({"max_score": 1.5}, r"max_score must lie in \[0, 1\], got 1.5"),
        ({"query_dropout": 1.0}, r"query_dropout must lie in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_rules_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        RuleConfig(**values)


def test_a_candidate_says_what_found_it():
    [first] = select(
        {"text": Found([3], [0.25])}, 1, RuleConfig(), to_query=lambda n: 0.0,
        between=lambda a, b: 0.0, is_mixed=np.ones(4, dtype=bool),
    )  # fmt: skip
    assert first == Candidate(3, 0.25, "text")
