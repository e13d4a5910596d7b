"""Learning rate schedules: values of each shape, and properties of all."""

from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pardalis.config import Kinds
from pardalis.errors import ConfigError
from pardalis.train.schedule import (
    ConstantConfig,
    ConstantThenDecayConfig,
    ScheduleConfig,
    WarmupCosineConfig,
    WarmupExponentialConfig,
    learning_rate,
)

KINDS = Kinds(*get_args(ScheduleConfig))


def test_chameleons_warm_up_and_exponential_decay() -> None:
    config = WarmupExponentialConfig(learning_rate=1e-4, warmup_steps=4000, floor_ratio=0.01)
    rates = [learning_rate(config, step, 20_000) for step in range(20_000)]
    assert rates[0] == pytest.approx(1e-4 / 4001)
    assert rates[2000] == pytest.approx(1e-4 * 2001 / 4001)
    assert rates[4000] == 1e-4
    assert max(rates) == 1e-4
    after = rates[4000:]
    assert all(later < earlier for earlier, later in pairwise(after))
    assert rates[-1] == pytest.approx(1e-6)
    ratios = [later / earlier for earlier, later in pairwise(after)]
    assert max(ratios) == pytest.approx(min(ratios), rel=1e-9)  # the same factor every step


def test_cosine_ends_at_the_floor_and_is_half_way_in_the_middle() -> None:
    config = WarmupCosineConfig(learning_rate=2.0, warmup_steps=10, floor_ratio=0.1)
    assert learning_rate(config, 10, 111) == 2.0
    assert learning_rate(config, 60, 111) == pytest.approx(2.0 * 0.55)
    assert learning_rate(config, 110, 111) == pytest.approx(0.2)


def test_constant_then_decay_is_flat_and_then_a_line() -> None:
    config = ConstantThenDecayConfig(
        learning_rate=1.0,
        warmup_steps=5,
        decay_steps=4,
        floor_ratio=0.2,
    )
    rates = [learning_rate(config, step, 20) for step in range(20)]
    assert rates[5:16] == [1.0] * 11
    assert rates[16:] == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_constant_stays_at_the_peak() -> None:
    config = ConstantConfig(learning_rate=3.0, warmup_steps=2)
    assert [learning_rate(config, s, 6) for s in range(6)] == [1.0, 2.0, 3.0, 3.0, 3.0, 3.0]


@given(
    kind=st.sampled_from(["warmup_cosine", "warmup_exponential", "constant_then_decay"]),
    warmup=st.integers(0, 50),
    decay=st.integers(1, 50),
    constant=st.integers(0, 50),
    floor=st.floats(0.001, 1.0),
)
def test_every_shape_rises_to_the_peak_and_falls_to_the_floor(
    kind: str, warmup: int, decay: int, constant: int, floor: float
) -> None:
    options = {"decay_steps": decay} if kind == "constant_then_decay" else {}
    config = KINDS[kind](learning_rate=0.5, warmup_steps=warmup, floor_ratio=floor, **options)
    total = warmup + 1 + constant + decay
    rates = [learning_rate(config, step, total) for step in range(total)]
    assert rates[warmup] == 0.5 == max(rates)
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert all(b <= a + 1e-12 for a, b in pairwise(rates[warmup:]))
    assert rates[-1] == pytest.approx(0.5 * floor)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"floor_ratio": 1.5}, "floor_ratio"),
        ({"kind": "warmup_exponential", "floor_ratio": 0.0}, "floor_ratio"),
        ({"kind": "constant_then_decay", "decay_steps": 0}, "decay_steps"),
    ],
)
def test_a_wrong_field_is_named(options: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{named} must"):
        KINDS[options.pop("kind", "warmup_cosine")](**{"learning_rate": 1.0, **options})


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    config = WarmupCosineConfig(learning_rate=1.0, warmup_steps=4000)
    with pytest.raises(
        ConfigError,
        match=r"^warmup_steps \(4000\) and decay_steps \(0\) .* do not fit into 100 steps",
    ):
        learning_rate(config, 0, 100)
