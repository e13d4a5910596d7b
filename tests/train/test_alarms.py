"""Alarms: when each rule fires, and that alarms are a fold over the lines of metrics."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pardalis.errors import ConfigError
from pardalis.train.alarms import Alarm, AlarmConfig, Alarms


def lines_of(name: str, values: list[float], every: int = 10) -> list[dict]:
    return [
        {"step": every * (i + 1), "tokens": 900.0, name: value} for i, value in enumerate(values)
    ]


def alarms_of(name: str, values: list[float], **config: float) -> list[Alarm]:
    """Return all alarms that a statistic with these values, ten steps apart, raises."""
    alarms = Alarms(AlarmConfig(**config))  # type: ignore[arg-type]
    return [alarm for line in lines_of(name, values) for alarm in alarms.read(line)]


def steps_of(name: str, values: list[float], **config: float) -> list[int]:
    return [alarm.step for alarm in alarms_of(name, values, **config)]


def test_attention_logits_above_the_limit_are_alarming() -> None:
    (alarm,) = alarms_of("attention_logit", [500.0, 1000.0, 1001.0, 4000.0])
    assert alarm == Alarm("attention_logit", 30, 1001.0, "is above 1000")


@pytest.mark.parametrize("name", ["output_rms", "output_rms_text", "output_rms_image"])
def test_an_output_norm_that_grows_with_the_step_is_alarming(name: str) -> None:
    (alarm,) = alarms_of(name, [float(6 * i) for i in range(1, 12)])
    assert alarm == Alarm(
        name, 40, 24.0, "is beyond 20 and at least 1.5 times what it was at half as many steps"
    )


def test_a_large_constant_output_norm_is_not_alarming() -> None:
    assert steps_of("output_rms", [500.0, 510.0] * 20) == []


def test_a_slowly_growing_output_norm_is_not_alarming() -> None:
    """By the cube root of the step: a quarter more while the number of steps doubles."""
    assert steps_of("output_rms", [20.0 * i ** (1 / 3) for i in range(1, 200)]) == []
    assert steps_of("output_rms", [20.0 * i**0.7 for i in range(1, 200)]) == [30]


def test_a_small_growing_output_norm_is_not_alarming() -> None:
    assert steps_of("output_rms", [0.06 * i for i in range(1, 300)]) == []


def test_one_outlier_is_no_growth() -> None:
    values = [24.0, 26.0] * 10
    values[15] = 90.0
    assert steps_of("output_rms", values) == []


def test_the_absolute_value_of_log_z_counts() -> None:
    (alarm,) = alarms_of("lse_image", [-10.0 * i for i in range(1, 12)])
    assert (alarm.step, alarm.value) == (40, -40.0)
    assert steps_of("lse_text", [17.0 + 0.1 * i for i in range(100)]) == []


def test_a_gradient_far_above_its_median_is_alarming() -> None:
    values = [1.0, 1.2, 0.8, 1.1, 9.0, 1.0, 11.0]
    (alarm,) = alarms_of("grad_norm", values)
    assert (alarm.step, alarm.rule) == (70, "is above 10 times its median of 1.05")
    # The median changes only when half of the window has.
    assert steps_of("grad_norm", [1.0] * 20 + [50.0] * 20) == [210]


def test_a_loss_that_jumps_is_alarming_and_one_that_falls_is_not() -> None:
    falling = [8.0 - 0.2 * i for i in range(20)]
    assert steps_of("loss", falling) == []
    (alarm,) = alarms_of("loss", [*falling, falling[-1] + 3])
    assert (alarm.step, alarm.rule) == (210, "is more than 1 above its median of 5.1")


def test_a_loss_that_is_not_per_token_is_not_judged() -> None:
    """A tokenizer's loss of a first codebook may rise a hundredfold, and come back."""
    alarms = Alarms(AlarmConfig())
    for step, loss in enumerate([3.0, 3.1, 2.9, 7000.0, 8.0, 3.0]):
        assert alarms.read({"step": step, "loss": loss, "images": 32.0}) == []
        assert not alarms.has_diverged({"step": step, "loss": loss, "images": 32.0})


def test_a_loss_explodes_from_where_it_began() -> None:
    alarms = Alarms(AlarmConfig(loss_explosion=3.0))
    assert not alarms.has_diverged({"step": 10, "tokens": 900.0, "loss": 20.0})
    for line in lines_of("loss", [8.0, 6.0, 2.0]):
        alarms.read(line)
    assert not alarms.has_diverged({"step": 40, "tokens": 900.0, "loss": 11.0})
    assert alarms.has_diverged({"step": 40, "tokens": 900.0, "loss": 11.1})


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("attention_logit", "attention_logit"),
        ("output_rms", "output_rms"),
        ("lse_text", "log_z"),
        ("grad_norm", "grad_norm_spike"),
        ("loss", "loss_spike"),
    ],
)
def test_a_rule_can_be_turned_off(name: str, rule: str) -> None:
    values = [10.0**i for i in range(12)]
    assert steps_of(name, values) != []
    assert steps_of(name, values, **{rule: math.inf}) == []


def test_an_alarm_is_raised_again_after_a_window_without_it() -> None:
    values = [2000.0] + [10.0] * 9 + [2000.0] + [10.0] * 10 + [2000.0]
    assert steps_of("attention_logit", values, window=10) == [10, 220]


def test_active_alarms_are_in_the_order_of_their_steps() -> None:
    alarms = Alarms(AlarmConfig(window=3))
    for step, (logit, rms) in enumerate([(1.0, 1.0), (1.0, 50.0), (2e3, 90.0)], start=1):
        alarms.read({"step": step, "attention_logit": logit, "output_rms": rms})
    assert [alarm.name for alarm in alarms.active] == ["output_rms", "attention_logit"]
    for step in range(4, 7):
        alarms.read({"step": step, "attention_logit": 3e3, "output_rms": 1.0})
    assert [(alarm.name, alarm.step) for alarm in alarms.active] == [("attention_logit", 3)]


def test_a_line_without_a_statistic_does_not_change_its_alarms() -> None:
    alarms = Alarms(AlarmConfig(window=3))
    alarms.read({"step": 1, "attention_logit": 2e3})
    for step in range(2, 20):
        assert alarms.read({"step": step, "tokens": 1.0, "loss": 3.0}) == []
    assert len(alarms.active) == 1


@given(
    values=st.lists(
        st.tuples(st.floats(0.0, 1e4), st.floats(0.0, 1e3), st.floats(0.0, 20.0)), max_size=40
    ),
    cut=st.integers(0, 40),
)
def test_a_resumed_run_has_the_alarms_of_an_uninterrupted_one(
    values: list[tuple[float, float, float]], cut: int
) -> None:
    lines = [
        {"step": 7 * (i + 1), "tokens": 9.0, "attention_logit": a, "output_rms": r, "loss": loss}
        for i, (a, r, loss) in enumerate(values)
    ]
    whole = Alarms(AlarmConfig(window=3))
    raised = [whole.read(line) for line in lines]
    resumed = Alarms(AlarmConfig(window=3), lines[:cut])
    assert [resumed.read(line) for line in lines[cut:]] == raised[cut:]
    assert resumed.active == whole.active


@pytest.mark.parametrize("options", [{"window": 2}, {"growth": 1.0}])
def test_a_wrong_field_is_named(options: dict) -> None:
    with pytest.raises(ConfigError, match=rf"^{next(iter(options))} must"):
        AlarmConfig(**options)
