import math

import numpy as np
import pytest

from pardalis.evaluate.metrics.intervals import bootstrap, bootstrap_of, bootstrap_paired


def values(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).exponential(2.0, n)


def test_the_interval_of_all_samples_of_two_values():
    # Of two values 0 and 1 four samples are equally likely: the mean is 0, 1/2, 1/2 or 1.
    low, high = bootstrap([0.0, 1.0], level=0.3)
    assert (low, high) == (0.5, 0.5)
    low, high = bootstrap([0.0, 1.0], level=0.9)
    assert (low, high) == (0.0, 1.0)


def test_the_interval_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats", reason="needs scipy")
    some = values(80)
    found = bootstrap(some, resamples=20_000)
    theirs = stats.bootstrap(
        (some,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    # The standard error of a quantile of 20,000 results is some 0.004 here.
    assert found == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_the_coverage_of_the_interval_is_95_percent():
    generator = np.random.default_rng(0)
    intervals = [bootstrap(generator.normal(5, 2, 60), resamples=1000) for _ in range(100)]
    hits = sum(low <= 5 <= high for low, high in intervals)
    assert 88 <= hits <= 99
    # About 2 * 1.96 standard errors.
    width = np.mean([high - low for low, high in intervals])
    assert width == pytest.approx(2 * 1.96 * 2 / math.sqrt(60), rel=0.1)


def test_a_statistic_that_is_a_mean_has_the_same_interval():
    some = values(30)
    assert bootstrap_of(30, lambda drawn: some[drawn].mean()) == pytest.approx(bootstrap(some))
    names = [f"item {i // 3}" for i in range(30)]
    found = bootstrap_of(30, lambda drawn: some[drawn].mean(), clusters=names)
    assert found == pytest.approx(bootstrap(some, clusters=names))


def test_many_values_are_drawn_in_parts(monkeypatch):
    whole = bootstrap(values(30))
    monkeypatch.setattr("pardalis.evaluate.metrics.intervals._AT_ONCE", 100)
    assert bootstrap(values(30)) == pytest.approx(whole)


def test_repeats_of_an_item_make_no_interval_narrower():
    some = values(40)
    repeated, items = np.repeat(some, 5), np.repeat(np.arange(40), 5).tolist()
    clustered = bootstrap(repeated, clusters=items)
    assert clustered == pytest.approx(bootstrap(some))
    low, high = bootstrap(repeated)
    assert high - low < 0.6 * (clustered.high - clustered.low)  # sqrt(5) times too narrow


def test_clusters_of_different_sizes_are_weighed_by_their_values():
    # One of two items has three values: their sample means are 0, 3 of 4, and 1.
    found = bootstrap([0.0, 1.0, 1.0, 1.0], clusters=["a", "b", "b", "b"], level=0.3)
    assert found == (0.75, 0.75)


def test_pairs_have_the_interval_of_their_differences():
    a = values(50)
    b = a + 0.1
    assert bootstrap_paired(a, b) == pytest.approx((-0.1, -0.1))
    low, high = bootstrap_paired(a, values(50, 1), seed=3)
    assert (low, high) == bootstrap(a - values(50, 1), seed=3)
    with pytest.raises(ValueError, match="2 values cannot be paired with 1"):
        bootstrap_paired([1.0, 2.0], [1.0])


def test_the_seed_decides():
    some = values(20)
    assert bootstrap(some, seed=1) == bootstrap(some, seed=1) != bootstrap(some, seed=2)


def test_intervals_of_few_values():
    assert bootstrap([3.0]) == (3.0, 3.0)
    assert bootstrap([True, True]) == bootstrap(np.array([1, 1])) == (1.0, 1.0)
    assert all(math.isnan(end) for end in bootstrap([]))
    assert all(math.isnan(end) for end in bootstrap_of(0, lambda drawn: 1.0))
    assert all(math.isnan(end) for end in bootstrap([1.0, math.nan]))


def test_clusters_must_be_as_many_as_values():
    with pytest.raises(ValueError, match="2 values have 1 clusters"):
        bootstrap([1.0, 2.0], clusters=["a"])
