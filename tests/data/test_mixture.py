from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.data import Mixture
from pardalis.data.mixture import LONGEST_CYCLE
from pardalis.errors import ConfigError

weights_strategy = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=2),
    st.sampled_from([1.0, 2.0, 3.0, 7.0, 40.0, 0.5, 0.1, 0.25, 1.5, 1 / 3]),
    min_size=1,
    max_size=8,
)


@given(weights_strategy)
@settings(deadline=None, max_examples=50)
def test_every_source_is_served_within_one_of_its_weight_at_all_times(weights: dict[str, float]):
    mixture = Mixture(weights)
    exact = [(n, w.numerator, w.denominator) for n, w in mixture.weights.items()]
    served = Counter[str]()
    for position in range(500):
        source, index = mixture.at(position)
        assert index == served[source]  # its own positions without gap or repetition
        served[source] += 1
        for name, share, cycle in exact:
            assert abs(served[name] * cycle - share * (position + 1)) < cycle


@given(weights_strategy, st.integers(0, 10**12))
@settings(deadline=None)
def test_the_bound_holds_far_from_the_beginning_without_replaying(
    weights: dict[str, float], position: int
):
    mixture = Mixture(weights)
    source, index = mixture.at(position)
    assert -1 < index - mixture.weights[source] * position < 1


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 300).map(float), min_size=1))
@settings(deadline=None)
def test_whole_weights_are_exact(weights: dict[str, float]):
    total = sum(weights.values())
    assert Mixture(weights).weights == {
        k: Fraction(v) / Fraction(total) for k, v in weights.items()
    }


def test_decimal_weights_are_exact():
    assert Mixture({"a": 0.5, "b": 0.3, "c": 0.2}).weights["b"] == Fraction(3, 10)


def test_weights_without_a_short_cycle_are_rounded_and_sum_to_one():
    mixture = Mixture({"a": 123_457.0, "b": 7_654_321.0, "c": 200.7})
    assert sum(mixture.weights.values()) == 1
    assert mixture.weights["a"] == pytest.approx(123_457 / 7_777_978.7, abs=1 / LONGEST_CYCLE)


def test_example():
    assert "".join(Mixture({"a": 2.0, "b": 1.0}).at(p)[0] for p in range(6)) == "aabaab"


def test_the_order_of_the_recipe_does_not_matter():
    first, second = Mixture({"a": 1.0, "b": 2.0, "c": 2.0}), Mixture({"c": 2.0, "b": 2.0, "a": 1.0})
    assert [first.at(p) for p in range(20)] == [second.at(p) for p in range(20)]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_not_positive_is_refused(weight: float):
    with pytest.raises(ConfigError, match=r"weight of source 'b' must be a number above 0, got"):
        Mixture({"a": 1.0, "b": weight})


def test_a_weight_too_small_to_be_served_is_refused():
    with pytest.raises(ConfigError, match=r"weight 1e-09 of source 'b' is less than 1/65,536"):
        Mixture({"a": 1.0, "b": 1e-9})


def test_no_source_is_refused():
    with pytest.raises(ConfigError, match="at least one source"):
        Mixture({})
