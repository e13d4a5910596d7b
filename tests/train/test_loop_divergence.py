"""Divergence: alarms, the error message, kept checkpoints, and rollback."""

import json
import logging
import math
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pardalis.errors import ConfigError
from pardalis.seeds import derive
from pardalis.train import checkpoint
from pardalis.train.alarms import AlarmConfig
from pardalis.train.divergence import non_finite_tensor
from pardalis.train.loop import Diverged, Interrupted, LoopConfig, train
from pardalis.train.metrics import Line, read_metrics
from pardalis.train.skipping import batch_of, read_skips

CONFIG = LoopConfig(steps=12, save_every=4, report_every=2)
ROLL_BACK = replace(CONFIG, on_divergence="roll_back")
ROWS = 5

Measure = Callable[[int], dict[str, float]]


class Drift:
    """A mean of noise whose metrics a test can set for some batches."""

    def __init__(self, at_batch: Measure = lambda batch: {}) -> None:
        self.mean = torch.zeros(3)
        self.at_batch = at_batch
        self.skipped: tuple[int, ...] = ()
        self.before_step: Callable[[int], None] = lambda step: None

    def step(self, step: int) -> dict[str, float | Tensor]:
        self.before_step(step)
        batch = batch_of(step, self.skipped)
        noise = torch.randn(3, generator=torch.Generator().manual_seed(derive(0, "drift", batch)))
        self.mean = 0.9 * self.mean + 0.1 * noise
        measured = {"loss": 4 + self.mean.sum().item(), "tokens": 7.0, "grad_norm": 1.0}
        return measured | self.at_batch(batch)

    def evaluate(self) -> dict[str, float]:
        return {}

    def positions(self, batch: int) -> range:
        return range(ROWS * batch, ROWS * batch + ROWS)

    def skip(self, batches: Sequence[int]) -> None:
        self.skipped = tuple(batches)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"]


def at(numbers: dict[int, dict[str, float]]) -> Measure:
    return lambda batch: numbers.get(batch, {})


def from_batch(first: int, values: dict[str, float]) -> Measure:
    return lambda batch: values if batch >= first else {}


def lines_of(folder: Path) -> list[Line]:
    lines = read_metrics(folder / "metrics.jsonl")
    return [
        {k: v for k, v in line.items() if "second" not in k and k != "time_s"} for line in lines
    ]


def alarms_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "alarms.jsonl").read_text().splitlines()]


# ── alarms ───────────────────────────────────────────────────────────────────────────────────────


def test_an_alarm_is_logged_once_and_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(Drift(from_batch(5, {"attention_logit": 2000.0})), tmp_path, CONFIG)
    expected = {"name": "attention_logit", "step": 6, "value": 2000.0, "rule": "is above 1000"}
    assert alarms_of(tmp_path) == [expected]
    messages = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert messages == ["Step 6: attention_logit 2000 is above 1000."]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_in_the_place_of_the_alarms_is_not_followed(tmp_path: Path, is_there: bool) -> None:
    other, folder = tmp_path / "other.jsonl", tmp_path / "run"
    if is_there:
        other.write_text('{"step": 1}\n')
    folder.mkdir()
    (folder / "alarms.jsonl").symlink_to(other)
    train(Drift(from_batch(5, {"attention_logit": 2000.0})), folder, CONFIG)
    assert [alarm["step"] for alarm in alarms_of(folder)] == [6]
    assert other.exists() == is_there
    assert not is_there or other.read_text() == '{"step": 1}\n'


def test_a_pipe_in_the_place_of_the_alarms_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "alarms.jsonl")
    train(Drift(from_batch(5, {"attention_logit": 2000.0})), tmp_path, CONFIG)
    assert [alarm["step"] for alarm in alarms_of(tmp_path)] == [6]


@pytest.mark.parametrize("stop", [3, 4, 5, 6, 9])
def test_a_resumed_run_has_the_alarms_of_an_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    numbers = at({5: {"attention_logit": 2000.0}, 9: {"grad_norm": 1e3}})
    train(Drift(numbers), tmp_path / "whole", CONFIG)
    drift = Drift(numbers)

    def fail(step: int) -> None:
        if step == stop:
            raise ConnectionError

    drift.before_step = fail
    with pytest.raises(ConnectionError):
        train(drift, tmp_path / "cut", CONFIG)
    train(Drift(numbers), tmp_path / "cut", CONFIG)
    assert alarms_of(tmp_path / "cut") == alarms_of(tmp_path / "whole")
    assert len(alarms_of(tmp_path / "whole")) == 2
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")


def test_an_alarm_truncated_by_a_kill_is_ignored(tmp_path: Path) -> None:
    numbers = at({1: {"attention_logit": 2000.0}, 9: {"grad_norm": 1e3}})
    train(Drift(numbers), tmp_path, replace(CONFIG, steps=4))
    with open(tmp_path / "alarms.jsonl", "a") as file:
        file.write('{"name": "grad_')
    train(Drift(numbers), tmp_path, CONFIG)
    assert [alarm["step"] for alarm in alarms_of(tmp_path)] == [2, 10]


# ── the error ────────────────────────────────────────────────────────────────────────────────────


def test_the_first_alarm_is_named(tmp_path: Path) -> None:
    numbers = {5: {"attention_logit": 2000.0}, 10: {"loss": math.nan}}
    with pytest.raises(Diverged) as caught:
        train(Drift(at(numbers)), tmp_path, CONFIG)
    assert caught.value.step == 11
    assert str(caught.value) == (
        f"The loss is nan at step 11 in {tmp_path}. The first statistic to go wrong was "
        "attention_logit 2000 is above 1000, at step 6. The last good checkpoint, step-00000004, "
        "is intact: train into another folder with a lower learning rate or a longer warm-up, or "
        "look at the data of that step."
    )


def test_a_checkpoint_after_the_first_alarm_is_not_called_good(tmp_path: Path) -> None:
    numbers = {2: {"attention_logit": 2000.0}, 10: {"loss": math.nan}}
    config = replace(CONFIG, keep_checkpoints=1)
    with pytest.raises(Diverged, match="The oldest checkpoint left, step-00000008, is intact, but"):
        train(Drift(at(numbers)), tmp_path, config)


def test_a_metric_that_is_not_finite_before_the_loss_is_named(tmp_path: Path) -> None:
    numbers = {4: {"grad_norm": math.inf}, 5: {"loss": math.nan}}
    with pytest.raises(Diverged, match="first statistic to go wrong was grad_norm inf"):
        train(Drift(at(numbers)), tmp_path, CONFIG)


def test_a_loss_without_an_earlier_alarm_names_no_first_sign(tmp_path: Path) -> None:
    with pytest.raises(Diverged) as caught:
        train(Drift(at({5: {"loss": math.nan, "attention_logit": math.nan}})), tmp_path, CONFIG)
    assert "first statistic" not in str(caught.value)


def test_an_exploded_loss_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        Diverged, match=r"The loss is 50.000 at step 8, more than 3 above that of"
    ) as caught:
        train(Drift(from_batch(6, {"loss": 50.0})), tmp_path, CONFIG)
    assert caught.value.step == 8
    quiet = replace(CONFIG, alarms=AlarmConfig(loss_explosion=math.inf))
    assert train(Drift(from_batch(6, {"loss": 50.0})), tmp_path / "q", quiet)["step"] == 12


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_tensor_that_is_not_finite_is_found(value: float, dtype: torch.dtype) -> None:
    fine = {
        "largest": torch.full((3,), torch.finfo(dtype).max, dtype=dtype),
        "empty": torch.empty(0),
        "whole": torch.arange(3),
    }
    assert non_finite_tensor(fine) is None
    assert non_finite_tensor({}) is None
    broken = torch.zeros(2, 2, dtype=dtype)
    broken[1, 0] = value
    assert non_finite_tensor(fine | {"broken": broken}) == "broken"


# ── going back and on ────────────────────────────────────────────────────────────────────────────


def run_without(batches: Sequence[int], folder: Path) -> Drift:
    """Train on data without these batches."""
    drift = Drift()
    drift.skip(batches)
    train(drift, folder, CONFIG)
    return drift


@pytest.mark.parametrize("config", [ROLL_BACK, replace(ROLL_BACK, asynchronous_saves=False)])
@pytest.mark.parametrize("broken", [0, 3, 4, 9, 11])
def test_a_rolled_back_run_equals_one_without_the_batch(
    tmp_path: Path, broken: int, config: LoopConfig, caplog: pytest.LogCaptureFixture
) -> None:
    drift = Drift(at({broken: {"loss": math.nan}}))
    train(drift, tmp_path / "back", config)
    assert torch.equal(drift.mean, run_without([broken], tmp_path / "without").mean)
    assert lines_of(tmp_path / "back") == lines_of(tmp_path / "without")
    (skip,) = read_skips(tmp_path / "back")
    assert (skip.rollback, skip.step, skip.batch) == (1, broken, broken)
    assert (skip.first_position, skip.last_position) == (5 * broken, 5 * broken + 4)
    rows = f"skipping the rows at positions {5 * broken} to {5 * broken + 4}."
    assert f"Rolling back to step {broken // 4 * 4} and {rows}" in caplog.text


def test_a_rolled_back_run_resumes_as_any_other(tmp_path: Path) -> None:
    numbers = at({5: {"loss": math.nan}})
    drift = Drift(numbers)
    drift.before_step = lambda step: signal.raise_signal(signal.SIGTERM) if step == 8 else None
    with pytest.raises(Interrupted):
        train(drift, tmp_path / "back", ROLL_BACK)
    again = Drift(numbers)
    train(again, tmp_path / "back", ROLL_BACK)
    assert torch.equal(again.mean, run_without([5], tmp_path / "without").mean)


def test_a_run_that_starts_again_reads_all_batches(tmp_path: Path) -> None:
    train(Drift(at({5: {"loss": math.nan}})), tmp_path, ROLL_BACK)
    shutil.rmtree(tmp_path / "checkpoints")
    anew = Drift()
    train(anew, tmp_path, ROLL_BACK)
    assert read_skips(tmp_path) == []
    assert torch.equal(anew.mean, run_without([], tmp_path / "whole").mean)


def test_all_batches_since_the_first_alarm_are_skipped(tmp_path: Path) -> None:
    """The checkpoint of step 8, saved after the first alarm, is not used."""
    numbers = at({b: {"attention_logit": 5e3} for b in range(6, 9)} | {9: {"loss": math.inf}})
    drift = Drift(numbers)
    train(drift, tmp_path / "back", ROLL_BACK)
    assert [skip.batch for skip in read_skips(tmp_path / "back")] == [6, 7, 8, 9]
    without = run_without([6, 7, 8, 9], tmp_path / "without")
    assert torch.equal(drift.mean, without.mean)
    names = [path.name for path in checkpoint.all_of(tmp_path / "back")]
    assert names == ["step-00000008", "step-00000012"]


def test_the_number_of_rollbacks_is_limited(tmp_path: Path) -> None:
    few = replace(ROLL_BACK, max_rollbacks=2)
    with pytest.raises(
        Diverged, match=r"It was rolled back 2 times before; max_rollbacks is 2"
    ) as caught:
        train(Drift(from_batch(6, {"loss": math.nan})), tmp_path, few)
    assert "step-00000004, is intact" in str(caught.value)
    assert [(s.rollback, s.step, s.batch) for s in read_skips(tmp_path)] == [(1, 6, 6), (2, 6, 7)]


def test_on_divergence_is_validated() -> None:
    with pytest.raises(ConfigError, match="max_rollbacks must be 0 or more"):
        replace(CONFIG, max_rollbacks=-1)
