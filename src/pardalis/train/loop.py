"""The training loop: time, files and signals around a task, and nothing about what it learns.

    RUN/
    ├─ settings.json                    what the run was begun with
    ├─ metrics.jsonl                    a line per report
    ├─ alarms.jsonl                     a line per rule that the metrics broke
    ├─ skipped.jsonl                    batches left out after the run was rolled back
    ├─ tensorboard/                     if asked
    └─ checkpoints/step-00000100/

A run is killed, stopped or crashed at any instant and goes on by the same command, with the numbers
of a run that was never interrupted. Of several processes only the first writes these files, and all
write checkpoints.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from pardalis.errors import BundleError, ConfigError, TrainingError
from pardalis.parallel import World
from pardalis.progress import bar
from pardalis.train import checkpoint
from pardalis.train.alarms import AlarmConfig
from pardalis.train.divergence import (
    AlarmLog,
    Diverged,
    described,
    diverged,
    first_not_finite,
    non_finite_tensor,
    roll_back,
)
from pardalis.train.metrics import Line, MetricsWindow, MetricsWriter
from pardalis.train.settings import check_settings, keep_settings
from pardalis.train.skipping import FILE_NAME as SKIPS
from pardalis.train.skipping import read_skips
from pardalis.train.stopping import StopRequest, stop_requests
from pardalis.train.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How long a run lasts, how often it saves and reports, and what it does when it goes wrong."""

    steps: int  # updates, all sessions together
    save_every: int = 1000  # steps between checkpoints; there is always one at the end
    report_every: int = 10  # steps whose metrics make one line
    evaluate_every: int = 0  # steps between evaluations; 0: only at the end
    keep_checkpoints: int = 2  # newest ones that are kept
    asynchronous_saves: bool = True  # write a copy of the state while the steps go on
    alarms: AlarmConfig = field(default_factory=AlarmConfig)
    # When the loss is not finite or past hope: end, or go back to the last good checkpoint and on
    # without the batches on which it went wrong.
    on_divergence: Literal["stop", "roll_back"] = "stop"
    max_rollbacks: int = 3  # of a run; the next divergence ends it
    tensorboard: bool = False  # also write event files for TensorBoard

    def __post_init__(self) -> None:
        for name in ("steps", "save_every", "report_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("evaluate_every", "max_rollbacks"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}.")


class Interrupted(TrainingError):
    """The run was asked to stop, and did so after saving.

    Attributes:
        step: updates done.
    """

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(f"Stopped at step {step} of {steps}; run the same command to go on.")
        self.step = step


def train(
    task: Task,
    folder: Path,
    config: LoopConfig,
    description: str = "Training",
    settings: Mapping[str, Any] | None = None,
    world: World | None = None,
    evaluated: Callable[[Line], None] = lambda line: None,
) -> Line:
    """Train a task from its newest checkpoint in the folder, or from the start, to the end.

    Args:
        folder: of the run; made when it does not exist.
        description: shown beside the progress.
        settings: plain values that decide the numbers of the run: the resolved configs. A run that
            resumes must have the same.
        world: the processes that train together; this one alone, if left out.
        evaluated: called in the first process after every evaluation, with the line of metrics
            that it was written in.

    Returns:
        The last line of the run's metrics.

    Raises:
        Interrupted: SIGINT or SIGTERM came; a checkpoint was saved. After the last step too, since
            whoever asked wants nothing else begun; the next call finds the run finished.
        Diverged: the loss or the state is not finite, or the loss is past hope, and the run may not
            roll back, or not once more.
        TrainingError: the disk is full.
        ConfigError: the settings are not those that the run was begun with.
        BundleError: the newest checkpoint is damaged, or of another model.
    """
    world = world or World()
    if world.is_first:
        _put_in_order(folder, config, settings or {})
    world.broadcast()  # the others wait until the folder is in order
    with (
        stop_requests(speaks=world.size == 1) as stop,
        checkpoint.Saver(
            folder, world, config.keep_checkpoints, config.asynchronous_saves
        ) as saver,
    ):
        if config.on_divergence == "roll_back" and checkpoint.newest(folder) is None:
            saver.save(0, task.state_dict(), {"time_s": 0.0, "window": []})
        while True:
            attempt = _Attempt(task, folder, config, description, world, stop, saver, evaluated)
            try:
                return attempt.go()
            except Diverged as found:
                if config.on_divergence == "stop":
                    raise
                saver.wait()
                if world.is_first:
                    roll_back(found, task, folder, config.max_rollbacks)
                world.broadcast()


class _Attempt:
    """Training from the newest checkpoint to the end, unless it goes wrong before."""

    def __init__(
        self,
        task: Task,
        folder: Path,
        config: LoopConfig,
        description: str,
        world: World,
        stop: StopRequest,
        saver: checkpoint.Saver,
        evaluated: Callable[[Line], None],
    ) -> None:
        self.task, self.folder, self.config, self.world = task, folder, config, world
        self.description = description
        self.stop, self.saver, self.evaluated = stop, saver, evaluated
        self.done, self.time_s, self.window = _resume(task, folder, config, world)
        self.pace = _Pace()

    def go(self) -> Line:
        config, own = self.config, self.folder if self.world.is_first else None
        with (
            MetricsWriter(own, self.done, config.tensorboard) as self.metrics,
            bar(
                self.description,
                total=config.steps,
                done=self.done,
                shown=self.world.is_first,
            ) as advance,
        ):
            self.alarms = AlarmLog(own, self.done, config.alarms)
            while self.done < config.steps:
                advance(1, **self._step())
        self.saver.wait()
        return self.metrics.last

    def _step(self) -> dict[str, Any]:
        """Do a step and what is due after it; return what the progress bar shows."""
        config, start = self.config, time.monotonic()
        self.window.add(self.task.step(self.done))
        self.done += 1
        self.world.record_step(self.done)
        self.saver.check()
        ended, stopping = self.done == config.steps, self.world.any(self.stop.made)
        reports = ended or self.done % config.report_every == 0
        saves = ended or self.done % config.save_every == 0 or stopping
        if reports or saves:
            self._check_losses()
        self.time_s += self.pace.count(time.monotonic() - start)

        line: dict[str, float] = {}
        shown: dict[str, Any] = {}
        if reports:
            line = self.pace.add_to(self.window.mean())
            shown = {"loss": line["loss"], "rate": f"{line['steps_per_second']:.3g}/s"}
            self.window, self.pace = MetricsWindow(world=self.world), _Pace()
        evaluates = ended or (config.evaluate_every and self.done % config.evaluate_every == 0)
        if evaluates:
            line |= self.task.evaluate()
        if line:
            self._write(line)
        if saves:
            self._save()
        if evaluates and self.world.is_first:
            self.evaluated(self.metrics.last)  # after saving: whatever it does, nothing is lost
        if saves and self.world.any(self.stop.made):
            self.saver.wait()
            raise Interrupted(self.done, config.steps)
        return shown

    def _write(self, line: dict[str, float]) -> None:
        """Write a line of metrics, and end the run when its loss is past hope."""
        self.metrics.write(self.done, self.time_s, line)
        finding = self.alarms.read(self.metrics.last)
        # Only the first process knows the lines of earlier sessions.
        if "loss" in line and (finding := self.world.first_value(finding)):
            raise self._diverged(finding, self.done, self.done - self.config.report_every)

    def _check_losses(self) -> None:
        steps = self.window.fetch()
        start = self.done - len(steps)
        for i, values in enumerate(steps):
            if not math.isfinite(values["loss"]):
                finding = f"The loss is {values['loss']} at step {start + i + 1}"
                first, name = first_not_finite(steps)
                raise self._diverged(finding, start + i + 1, start + first, name)

    def _save(self) -> None:
        """Begin a checkpoint of a state that is finite in all processes."""
        state = self.task.state_dict()
        if key := self.world.first_value(non_finite_tensor(checkpoint.tensors_of(state))):
            finding = f"After step {self.done}, {key} has values that are not finite"
            raise self._diverged(finding, self.done, self.done - 1)
        self.saver.save(self.done, state, {"time_s": self.time_s, "window": self.window.fetch()})

    def _diverged(self, finding: str, step: int, since: int, cause: str | None = None) -> Diverged:
        """Return the error of this run, whose alarms may know of trouble before."""
        self.saver.wait()  # so that what is said of the last checkpoint is so
        alarm, every = self.world.first_value(self.alarms.first), self.config.report_every
        if alarm is not None:
            cause = f"{described(alarm)}, at step {alarm.step}"
            # What has stood for longer tells of growth, and of no rows that could be left out.
            lines = min(self.config.alarms.window, 1 + (self.done - alarm.step) // every)
            since = self.done - lines * every
        return diverged(finding, step, max(since, 0), cause, self.folder)


class _Pace:
    """Steps and seconds since the last report, in this process; not of evaluating and saving."""

    def __init__(self) -> None:
        self.steps, self.seconds = 0, 0.0

    def count(self, seconds: float) -> float:
        self.steps += 1
        self.seconds += seconds
        return seconds

    def add_to(self, line: dict[str, float]) -> dict[str, float]:
        line["steps_per_second"] = self.steps / max(self.seconds, 1e-9)
        for what in ("tokens", "images"):
            if what in line:
                line[f"{what}_per_second"] = line[what] * line["steps_per_second"]
        return line


def _put_in_order(folder: Path, config: LoopConfig, settings: Mapping[str, Any]) -> None:
    """Check that the folder is of this run, and remove what a kill left of the last checkpoint.

    Without a checkpoint the run begins anew, with all of its batches.
    """
    if checkpoint.newest(folder) is not None:
        check_settings(folder, config.steps, settings)
        checkpoint.prune(folder, config.keep_checkpoints)
    else:
        (folder / SKIPS).unlink(missing_ok=True)
    keep_settings(folder, config.steps, settings)


def _resume(
    task: Task, folder: Path, config: LoopConfig, world: World
) -> tuple[int, float, MetricsWindow]:
    """Load the newest checkpoint; return the steps done, their time and the open window."""
    if skips := read_skips(folder):
        task.skip([skip.batch for skip in skips])
    latest = checkpoint.newest(folder)
    if latest is None:
        return 0, 0.0, MetricsWindow(world=world)
    try:
        state, notes = checkpoint.load(latest, task.state_dict())
        task.load_state_dict(state)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, KeyError) as error:
        raise BundleError(
            f"{latest} does not fit what is to be trained: {error}. Use the model that the run was "
            "begun with, or train into another folder."
        ) from error
    done = checkpoint.step_of(latest)
    if world.is_first and done > 0:
        logger.info("Going on from step %d of %d in %s", done, config.steps, folder)
    return done, notes["time_s"], MetricsWindow(notes["window"], world)
