"""The loop: a run stopped anywhere has the numbers of an uninterrupted one."""

import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pardalis.errors import BundleError, ConfigError, DataError, TrainingError
from pardalis.files import write_text
from pardalis.seeds import derive
from pardalis.train import checkpoint
from pardalis.train.alarms import AlarmConfig
from pardalis.train.loop import Interrupted, LoopConfig, train
from pardalis.train.metrics import Line, read_metrics

TIMINGS = {"time_s", "steps_per_second", "tokens_per_second", "images_per_second"}


class Walk:
    """A random walk with momentum: tiny, and every step depends on all before it."""

    def __init__(self, before_step: Callable[[int], None] = lambda step: None) -> None:
        self.place = torch.zeros(3)
        self.optimizer = torch.optim.AdamW([self.place.requires_grad_()], lr=0.1)
        self.before_step = before_step

    def step(self, step: int) -> dict[str, float | Tensor]:
        self.before_step(step)
        noise = torch.randn(3, generator=torch.Generator().manual_seed(derive(0, "walk", step)))
        self.optimizer.zero_grad()
        loss = (self.place - noise).square().sum()
        loss.backward()
        self.optimizer.step()
        sometimes = float(step) if step % 3 else math.nan
        return {"loss": loss.detach(), "sometimes": sometimes, "tokens": 5.0, "images": 2.0}

    def evaluate(self) -> dict[str, float]:
        return {"heldout_loss": self.place.square().sum().item()}

    def positions(self, batch: int) -> range:
        return range(5 * batch, 5 * batch + 5)

    def skip(self, batches: Sequence[int]) -> None:
        raise AssertionError("nothing is rolled back here")

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.place.copy_(state["place"])
        self.optimizer.load_state_dict(state["optimizer"])


def lines_of(folder: Path) -> list[Line]:
    lines = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def stop_at(step: int, number: int = signal.SIGTERM) -> Callable[[int], None]:
    return lambda now: os.kill(os.getpid(), number) if now == step else None


def fail_at(step: int) -> Callable[[int], None]:
    def fail(now: int) -> None:
        if now == step:
            raise ConnectionError("the machine went away")

    return fail


CONFIG = LoopConfig(steps=11, save_every=4, report_every=3, evaluate_every=5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Line], Tensor]:
    folder = tmp_path_factory.mktemp("whole")
    walk = Walk()
    train(walk, folder, CONFIG)
    return lines_of(folder), walk.place.detach()


def test_lines_and_checkpoints_of_a_run(tmp_path: Path) -> None:
    result = train(Walk(), tmp_path, CONFIG)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert result == lines[-1]
    assert [line["step"] for line in lines] == [3, 5, 6, 9, 10, 11]
    assert [line["step"] for line in lines if "loss" in line] == [3, 6, 9, 11]
    assert [line["step"] for line in lines if "heldout_loss" in line] == [5, 10, 11]
    assert lines[0]["sometimes"] == 1.5  # of steps 1 and 2; at 0 it has no value
    assert lines[0]["tokens_per_second"] == pytest.approx(5 * lines[0]["steps_per_second"])
    assert lines[0]["images_per_second"] == pytest.approx(2 * lines[0]["steps_per_second"])
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000008", "step-00000011"]


@settings(max_examples=12, deadline=None)
@given(
    crashes=st.lists(st.integers(0, 10), max_size=2), stops=st.sets(st.integers(0, 10), max_size=3)
)
def test_a_run_that_stopped_and_crashed_equals_an_uninterrupted_one(
    tmp_path_factory: pytest.TempPathFactory,
    whole: tuple[list[Line], Tensor],
    crashes: list[int],
    stops: set[int],
) -> None:
    folder = tmp_path_factory.mktemp("run")
    for step in crashes:
        with pytest.raises((ConnectionError, Interrupted)):
            train(Walk(fail_at(step)), folder, CONFIG)
            raise ConnectionError("the crash lies before the newest checkpoint")
    for step in sorted(stops):
        walk = Walk(stop_at(step))
        try:
            train(walk, folder, CONFIG)
        except Interrupted as stopped:
            assert stopped.step == step + 1
    walk = Walk()
    train(walk, folder, CONFIG)
    assert lines_of(folder) == whole[0]
    assert torch.equal(walk.place, whole[1])


def test_the_schedule_of_saves_reports_and_evaluations_changes_no_number(
    tmp_path: Path, whole: tuple[list[Line], Tensor]
) -> None:
    walk = Walk()
    train(walk, tmp_path, LoopConfig(steps=11, save_every=1, report_every=1, keep_checkpoints=1))
    assert torch.equal(walk.place, whole[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_finishes_the_step_saves_and_reports_how_to_resume(
    tmp_path: Path, number: int
) -> None:
    found = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    message = "Stopped at step 2 of 11; run the same command to resume"
    with pytest.raises(Interrupted, match=message) as caught:
        train(Walk(stop_at(1, number)), tmp_path, CONFIG)
    assert caught.value.step == 2
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.name == "step-00000002"
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == found


def test_a_second_sighup_lets_the_checkpoint_be_saved(tmp_path: Path) -> None:
    def hang_up(step: int) -> None:
        if step == 5:
            ours = signal.getsignal(signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
            while signal.getsignal(signal.SIGHUP) is ours:
                time.sleep(0.001)
            for _ in range(10):
                os.kill(os.getpid(), signal.SIGHUP)

    with pytest.raises(Interrupted, match="Stopped at step 6"):
        train(Walk(hang_up), tmp_path, CONFIG)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_under_nohup_training_goes_on(tmp_path: Path) -> None:
    found = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert train(Walk(stop_at(1, signal.SIGHUP)), tmp_path, CONFIG)["step"] == 11
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, found)


def test_a_second_signal_stops_at_once_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    def insist(step: int) -> None:
        if step == 5:
            ours = signal.getsignal(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            while signal.getsignal(signal.SIGINT) is ours:  # the thread that saves may get it first
                time.sleep(0.001)
            for _ in range(100):  # a signal may reach another thread, and wait there
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)

    found = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background: ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            train(Walk(insist), tmp_path, CONFIG)
    finally:
        signal.signal(signal.SIGINT, found)
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.name == "step-00000004"


def test_a_signal_at_the_last_step_stops_later_stages(
    tmp_path: Path, whole: tuple[list[Line], Tensor]
) -> None:
    with pytest.raises(Interrupted, match="Stopped at step 11 of 11; run the same command"):
        train(Walk(stop_at(10)), tmp_path, CONFIG)
    assert train(Walk(fail_at(0)), tmp_path, CONFIG)["step"] == 11  # it is finished
    assert lines_of(tmp_path) == whole[0]


def test_a_signal_during_the_last_evaluation_stops_later_stages(tmp_path: Path) -> None:
    class Asked(Walk):
        def evaluate(self) -> dict[str, float]:
            os.kill(os.getpid(), signal.SIGINT)
            return super().evaluate()

    with pytest.raises(Interrupted):
        train(Asked(), tmp_path, LoopConfig(steps=2))


def test_handlers_are_put_back_after_an_error(tmp_path: Path) -> None:
    found = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ConnectionError):
        train(Walk(fail_at(0)), tmp_path, CONFIG)
    assert signal.getsignal(signal.SIGTERM) == found


def test_training_outside_the_main_thread_works(tmp_path: Path) -> None:
    results: list[Line] = []
    thread = threading.Thread(target=lambda: results.append(train(Walk(), tmp_path, CONFIG)))
    thread.start()
    thread.join()
    assert results[0]["step"] == 11


def test_a_finished_run_returns_its_last_line_and_does_nothing(tmp_path: Path) -> None:
    result = train(Walk(), tmp_path, CONFIG)
    before = lines_of(tmp_path)
    assert train(Walk(fail_at(0)), tmp_path, CONFIG) == result
    assert lines_of(tmp_path) == before


def test_steps_may_increase_but_not_decrease(tmp_path: Path) -> None:
    train(Walk(), tmp_path, LoopConfig(steps=4))
    assert train(Walk(fail_at(3)), tmp_path, LoopConfig(steps=6))["step"] == 6
    with pytest.raises(ConfigError, match=r"begun with steps = 6 and now has steps = 5"):
        train(Walk(), tmp_path, LoopConfig(steps=5))


class Poisoned(Walk):
    """Its loss, or its state only, is no longer finite from one step on."""

    def __init__(self, step: int, value: float, loss_only: bool) -> None:
        super().__init__()
        self.when, self.value, self.loss_only = step, value, loss_only

    def step(self, step: int) -> dict[str, float | Tensor]:
        metrics = super().step(step)
        if step == self.when and self.loss_only:
            metrics["loss"] = torch.tensor(self.value)
        elif step == self.when:
            with torch.no_grad():
                self.place[1] = self.value
            metrics["loss"] = torch.tensor(1.0)
        return metrics


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step", range(4, 11))
def test_a_loss_that_is_not_finite_ends_the_run_and_saves_nothing_after(
    tmp_path: Path, step: int, value: float
) -> None:
    with pytest.raises(
        TrainingError, match=rf"The loss is {value} at step {step + 1} in"
    ) as caught:
        train(Poisoned(step, value, loss_only=True), tmp_path, CONFIG)
    good = "step-00000008" if step >= 8 else "step-00000004"
    assert f"last good checkpoint, {good}, is intact" in str(caught.value)
    assert "lower learning rate" in str(caught.value)
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.name == good
    assert checkpoint.load(newest)[0]["place"].isfinite().all()


def test_a_state_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    message = r"After step 8, state/place has values that are not finite"
    with pytest.raises(TrainingError, match=message):
        train(Poisoned(7, math.nan, loss_only=False), tmp_path, CONFIG)
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.name == "step-00000004"


def test_before_the_first_checkpoint_a_failure_says_that_nothing_was_saved(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Nothing was saved"):
        train(Poisoned(0, math.nan, loss_only=True), tmp_path, CONFIG)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    begun = {"seed": 1, "pretrain": {"schedule": {"learning_rate": 0.1}, "betas": (0.9, 0.95)}}
    train(Walk(), tmp_path, CONFIG, settings=begun)
    train(Walk(), tmp_path, CONFIG, settings=begun)
    changed = {"seed": 1, "pretrain": {"schedule": {"learning_rate": 0.2}, "betas": (0.9, 0.95)}}
    message = r"pretrain\.schedule\.learning_rate was 0\.1 and is 0\.2\. Set them as they were"
    with pytest.raises(ConfigError, match=message):
        train(Walk(), tmp_path, CONFIG, settings=changed)
    with pytest.raises(ConfigError, match="seed was 1 and is absent"):
        train(Walk(), tmp_path, CONFIG, settings={"pretrain": begun["pretrain"]})


def test_settings_of_a_run_that_lack_fields_added_since_are_the_same(tmp_path: Path) -> None:
    train(Walk(), tmp_path, CONFIG, settings={"alarms": AlarmConfig()})
    path = tmp_path / "settings.json"
    begun = json.loads(path.read_text())
    del begun["settings"]["alarms"]["growth"]
    path.write_text(json.dumps(begun))
    with pytest.raises(ConfigError, match=r"alarms\.growth was 1\.5 and is 3\.0"):
        train(Walk(), tmp_path, CONFIG, settings={"alarms": AlarmConfig(growth=3.0)})
    train(Walk(), tmp_path, CONFIG, settings={"alarms": AlarmConfig()})
    assert json.loads(path.read_text())["settings"]["alarms"]["growth"] == 1.5


def test_settings_of_a_run_that_saved_nothing_may_change(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        train(Walk(fail_at(2)), tmp_path, CONFIG, settings={"seed": 1})
    train(Walk(), tmp_path, CONFIG, settings={"seed": 2})


def test_a_run_whose_settings_are_lost_is_not_resumed(tmp_path: Path) -> None:
    train(Walk(), tmp_path, CONFIG)
    write_text(tmp_path / "settings.json", "{")
    with pytest.raises(BundleError, match=r"settings\.json cannot be read"):
        train(Walk(), tmp_path, CONFIG)


def test_a_damaged_checkpoint_is_an_error_and_without_it_the_run_resumes(
    tmp_path: Path,
) -> None:
    train(Walk(), tmp_path, CONFIG)
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    (newest / "run.json").unlink()
    with pytest.raises(BundleError, match=r"step-00000011 is not a complete checkpoint"):
        train(Walk(), tmp_path, CONFIG)
    shutil.rmtree(newest)
    assert train(Walk(), tmp_path, CONFIG)["step"] == 11


def test_a_checkpoint_of_another_model_is_an_error(tmp_path: Path) -> None:
    train(Walk(), tmp_path, CONFIG)
    other = Walk()
    other.place = torch.zeros(5)
    with pytest.raises(BundleError, match=r"step-00000011 does not fit the model to be trained"):
        train(other, tmp_path, CONFIG)


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("save_every", 0), ("report_every", -1), ("evaluate_every", -1)],
)
def test_a_wrong_field_is_named(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"^{field} must"):
        LoopConfig(**{"steps": 1, field: value})


def test_a_failing_evaluation_callback_loses_nothing(tmp_path: Path) -> None:
    def fail(line: Line) -> None:
        assert line["heldout_loss"] > 0
        raise ConnectionError("no page can be drawn")

    config = LoopConfig(steps=4, save_every=4, report_every=2)
    with pytest.raises(ConnectionError):
        train(Walk(), tmp_path, config, on_evaluation=fail)
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.name == "step-00000004"


# ── runs of other people ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "notes",
    [{"time_s": "a", "window": []}, {"time_s": 1.0, "window": 5}, {"time_s": 1.0, "window": [1]},
     {"time_s": 1.0, "window": [{"loss": "a"}]}, {"time_s": 1.0, "window": [{"a": 1.0}]}, {}],
)  # fmt: skip
def test_notes_that_no_loop_writes_are_refused(tmp_path, notes):
    train(Walk(), tmp_path, LoopConfig(steps=4))
    path = tmp_path / "checkpoints" / "step-00000004" / "run.json"
    about = json.loads(path.read_text())
    write_text(path, json.dumps({**about, "notes": notes}))
    with pytest.raises(BundleError, match="step-00000004 does not fit the model to be trained"):
        train(Walk(), tmp_path, LoopConfig(steps=8))


@pytest.mark.parametrize("content", [b"[1]\n", b'{"step": "a"}\n', b"{}\n", b"\xff\n", b"x\n"])
def test_alarms_that_no_loop_writes_are_refused(tmp_path, content):
    train(Walk(), tmp_path, LoopConfig(steps=4))
    (tmp_path / "alarms.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=r"alarms\.jsonl cannot be read .*; correct or delete it"):
        train(Walk(), tmp_path, LoopConfig(steps=8))


def test_alarms_are_not_written_through_a_link(tmp_path):
    other = tmp_path / "other.txt"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "alarms.jsonl").symlink_to(other)  # which does not exist yet
    train(Walk(), tmp_path / "run", LoopConfig(steps=4))
    assert not other.exists()
    assert not (tmp_path / "run" / "alarms.jsonl").is_symlink()
