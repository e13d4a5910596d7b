"""The training loop: steps, files and signals around a task, whatever the task learns.

    RUN/
    ├─ settings.json                    settings that the run was started with
    ├─ metrics.jsonl                    one line per report
    ├─ alarms.jsonl                     one line per alarm
    ├─ skipped.jsonl                    batches that are skipped after a rollback
    ├─ tensorboard/                     if enabled
    └─ checkpoints/step-00000100/

A run that is killed, stopped or crashes at any moment is resumed by the same command, with the
results of an uninterrupted run. The first process writes these files; all write checkpoints.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from pardalis.config import check_at_least, shown
from pardalis.errors import BundleError, TrainingError
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
from pardalis.train.metrics import Line, MetricsWindow, MetricsWriter, is_metrics, is_number
from pardalis.train.settings import check_settings, keep_settings
from pardalis.train.skipping import FILE_NAME as SKIPS
from pardalis.train.skipping import read_skips
from pardalis.train.stopping import StopRequest, stop_requests
from pardalis.train.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """Length of a run, intervals of checkpoints and reports, and handling of divergence."""

    steps: int  # updates of the whole run
    save_every: int = 1000  # steps between checkpoints; the last step always has one
    report_every: int = 10  # steps that are averaged in a line of metrics
    evaluate_every: int = 0  # steps between evaluations; 0: only at the end
    keep_checkpoints: int = 2  # number of newest checkpoints that are kept
    asynchronous_saves: bool = True  # write a copy of the state while training continues
    alarms: AlarmConfig = field(default_factory=AlarmConfig)
    # When the loss diverges: stop, or return to the last good checkpoint and skip the batches on
    # which it diverged.
    on_divergence: Literal["stop", "roll_back"] = "stop"
    max_rollbacks: int = 3  # rollbacks of a run; the next divergence ends it
    tensorboard: bool = False  # also write event files for TensorBoard

    def __post_init__(self) -> None:
        check_at_least(self, steps=1, save_every=1, report_every=1, keep_checkpoints=1)
        check_at_least(self, evaluate_every=0, max_rollbacks=0)


@dataclass(frozen=True, slots=True)
class Measurement:
    """Metrics of a task that are computed from outside, at intervals and after the last step.

    Attributes:
        every: steps between them.
        measure: returns metrics by name, given the steps done; called by all processes. The state
            of the task is unchanged.
    """

    every: int
    measure: Callable[[int], dict[str, float]]


class Interrupted(TrainingError):
    """The run was stopped by a signal, after saving a checkpoint.

    Attributes:
        step: updates done.
    """

    exit_code = 75  # EX_TEMPFAIL of sysexits.h
    kind = "interrupted"
    hint = "Run the same command again; it resumes."

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(f"Stopped at step {step} of {steps}; run the same command to resume.")
        self.step = step


def train(
    task: Task,
    folder: Path,
    config: LoopConfig,
    description: str = "Training",
    settings: Mapping[str, Any] | None = None,
    world: World | None = None,
    on_evaluation: Callable[[Line], None] = lambda line: None,
    measurement: Measurement | None = None,
) -> Line:
    """Train a task to the end, from its newest checkpoint in the folder or from the start.

    Args:
        folder: folder of the run; created if it does not exist.
        description: label of the progress bar.
        settings: what decides the results of the run: configs and plain values. A resumed run must
            have the same.
        world: the processes that train together; default: a single process.
        on_evaluation: called in the first process after every evaluation, with its line of metrics.
        measurement: what else is measured, beside the evaluations of the task.

    Returns:
        The last line of the run's metrics.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGHUP was received and a checkpoint saved. This holds after
            the last step too, so that the caller starts nothing else; the next call finds the run
            finished.
        Diverged: the loss or the state is not finite, or the loss diverged, and the run may not
            roll back (again).
        TrainingError: the disk is full.
        ConfigError: the settings differ from those that the run was started with.
        BundleError: the newest checkpoint is damaged or of another model.
    """
    world = world or World()
    if world.is_first:
        _prepare_folder(folder, config, settings or {})
    world.broadcast()  # the others wait until the folder is prepared
    with (
        stop_requests(logs=world.size == 1) as stop,
        checkpoint.Saver(
            folder, world, config.keep_checkpoints, config.asynchronous_saves
        ) as saver,
    ):
        if config.on_divergence == "roll_back" and checkpoint.newest(folder) is None:
            saver.save(0, task.state_dict(), {"time_s": 0.0, "window": []})
        while True:
            session = _Session(
                task, folder, config, description, world, stop, saver, on_evaluation, measurement
            )
            try:
                return session.run()
            except Diverged as found:
                if config.on_divergence == "stop":
                    raise
                saver.wait()
                if world.is_first:
                    roll_back(found, task, folder, config.max_rollbacks)
                world.broadcast()


class _Session:
    """Training from the newest checkpoint to the end or to a divergence."""

    def __init__(
        self,
        task: Task,
        folder: Path,
        config: LoopConfig,
        description: str,
        world: World,
        stop: StopRequest,
        saver: checkpoint.Saver,
        on_evaluation: Callable[[Line], None],
        measurement: Measurement | None,
    ) -> None:
        self.task, self.folder, self.config, self.world = task, folder, config, world
        self.description = description
        self.stop, self.saver, self.on_evaluation = stop, saver, on_evaluation
        self.measurement = measurement
        self.done, self.time_s, self.window = _resume(task, folder, config, world)
        self.throughput = _Throughput()

    def run(self) -> Line:
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
        """Do a step and what is due after it; return the fields of the progress bar."""
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
        self.time_s += self.throughput.count(time.monotonic() - start)

        line: dict[str, float] = {}
        shown: dict[str, Any] = {}
        if reports:
            line = self.throughput.add_to(self.window.mean())
            shown = {"loss": line["loss"], "rate": f"{line['steps_per_second']:.3g}/s"}
            self.window, self.throughput = MetricsWindow(world=self.world), _Throughput()
        evaluates = ended or (config.evaluate_every and self.done % config.evaluate_every == 0)
        if evaluates:
            line |= self.task.evaluate()
        if (measured := self.measurement) and (ended or self.done % measured.every == 0):
            line |= measured.measure(self.done)
        if line:
            self._write(line)
        if saves:
            self._save()
        # After saving, so that an error in it loses nothing. There may be no line yet.
        if evaluates and self.metrics.last and self.world.is_first:
            self.on_evaluation(self.metrics.last)
        if saves and self.world.any(self.stop.made):
            self.saver.wait()
            raise Interrupted(self.done, config.steps)
        return shown

    def _write(self, line: dict[str, float]) -> None:
        """Write a line of metrics; raise if the run has diverged."""
        self.metrics.write(self.done, self.time_s, line)
        finding = self.alarms.read(self.metrics.last)
        # Only the first process has the lines of earlier sessions.
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
        """Start a checkpoint; raise if the state is not finite in some process."""
        state = self.task.state_dict()
        if key := self.world.first_value(non_finite_tensor(checkpoint.tensors_of(state))):
            finding = f"After step {self.done}, {key} has values that are not finite"
            raise self._diverged(finding, self.done, self.done - 1)
        self.saver.save(self.done, state, {"time_s": self.time_s, "window": self.window.fetch()})

    def _diverged(self, finding: str, step: int, since: int, cause: str | None = None) -> Diverged:
        """Return the error of this run, which names the first alarm, if there is one."""
        self.saver.wait()  # so that the last checkpoint, which the error names, is complete
        alarm, every = self.world.first_value(self.alarms.first), self.config.report_every
        if alarm is not None:
            cause = f"{described(alarm)}, at step {alarm.step}"
            # An alarm active for longer shows slow growth, not rows that could be skipped.
            lines = min(self.config.alarms.window, 1 + (self.done - alarm.step) // every)
            since = self.done - lines * every
        return diverged(finding, step, max(since, 0), cause, self.folder)


class _Throughput:
    """Steps and seconds since the last report, without evaluating and saving."""

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


def _prepare_folder(folder: Path, config: LoopConfig, settings: Mapping[str, Any]) -> None:
    """Check that the folder is of this run, and remove leftovers of a killed save.

    Without a checkpoint the run starts from the beginning, with all of its batches.
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
    """Load the newest checkpoint; return steps done, their time and the unreported window."""
    if skips := read_skips(folder):
        task.skip([skip.batch for skip in skips])
    latest = checkpoint.newest(folder)
    if latest is None:
        return 0, 0.0, MetricsWindow(world=world)
    try:
        state, notes = checkpoint.load(latest, task.state_dict())
        task.load_state_dict(state)
        time_s, window = notes["time_s"], notes["window"]
        if not is_number(time_s):
            raise ValueError(f"time_s is {shown(time_s)}")
        if not isinstance(window, list) or not all(is_metrics(w) and "loss" in w for w in window):
            raise ValueError(f"window is {shown(window)}")
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"{latest} does not fit the model to be trained: {error}. Use the model that the run "
            "was started with, or train into another folder."
        ) from error
    done = checkpoint.step_of(latest)
    if world.is_first and done > 0:
        logger.info("Resuming from step %d of %d in %s", done, config.steps, folder)
    return done, time_s, MetricsWindow(window, world)
