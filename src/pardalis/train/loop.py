"""The training loop: time, files and signals around a task, and nothing about what it learns.

    RUN/
    ├─ settings.json                    what the run was begun with
    ├─ metrics.jsonl                    a line per report
    ├─ tensorboard/                     if asked
    └─ checkpoints/step-00000100/

A run is killed, stopped or crashed at any instant and goes on by the same command, with the numbers
of a run that was never interrupted. Of several processes only the first writes files.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pardalis.errors import BundleError, ConfigError, TrainingError
from pardalis.parallel import World
from pardalis.progress import bar
from pardalis.train import checkpoint
from pardalis.train.metrics import Line, MetricsWriter, Window
from pardalis.train.settings import check_settings, keep_settings
from pardalis.train.stopping import stop_requests
from pardalis.train.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How long a run lasts, and how often it saves and reports."""

    steps: int  # updates, all sessions together
    save_every: int = 1000  # steps between checkpoints; there is always one at the end
    report_every: int = 10  # steps whose metrics make one line
    evaluate_every: int = 0  # steps between evaluations; 0: only at the end
    keep_checkpoints: int = 2  # newest ones that are kept
    tensorboard: bool = False  # also write event files for TensorBoard

    def __post_init__(self) -> None:
        for name in ("steps", "save_every", "report_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.evaluate_every < 0:
            raise ConfigError(f"evaluate_every must be 0 or more, got {self.evaluate_every}.")


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
        TrainingError: the loss or the state is not finite, or the disk is full.
        ConfigError: the settings are not those that the run was begun with.
        BundleError: the newest checkpoint is damaged, or of another model.
    """
    world = world or World()
    done, time_s, window = _resume(task, folder, config, settings or {}, world)
    with (
        stop_requests() as stop,
        MetricsWriter(folder if world.is_first else None, done, config.tensorboard) as metrics,
        bar(description, total=config.steps, done=done, shown=world.is_first) as advance,
    ):
        pace = _Pace()
        while done < config.steps:
            start = time.monotonic()
            window.add(task.step(done))
            done += 1
            ended, stopping = done == config.steps, world.any(stop.made)
            reports = ended or done % config.report_every == 0
            saves = ended or done % config.save_every == 0 or stopping
            if reports or saves:
                _check_losses(window.fetch(), done, folder)
            time_s += pace.count(time.monotonic() - start)

            line: dict[str, float] = {}
            if reports:
                line = pace.add_to(window.mean())
                window, pace = Window(world=world), _Pace()
            evaluates = ended or (config.evaluate_every and done % config.evaluate_every == 0)
            if evaluates:
                line |= task.evaluate()
            if line:
                metrics.write(done, time_s, line)
            if saves:
                _save(task, folder, done, {"time_s": time_s, "window": window.fetch()}, world)
                if world.is_first:
                    checkpoint.prune(folder, config.keep_checkpoints)
            if evaluates and world.is_first:
                evaluated(metrics.last)  # after saving: whatever it does, nothing is lost
            if reports:
                advance(1, loss=line["loss"], rate=f"{line['steps_per_second']:.3g}/s")
            else:
                advance(1)
            if saves and world.any(stop.made):
                raise Interrupted(done, config.steps)
        return metrics.last


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
        for what in ("tokens", "pictures"):
            if what in line:
                line[f"{what}_per_second"] = line[what] * line["steps_per_second"]
        return line


def _resume(
    task: Task, folder: Path, config: LoopConfig, settings: Mapping[str, Any], world: World
) -> tuple[int, float, Window]:
    """Load the newest checkpoint; return the steps done, their time and the open window."""
    if world.is_first:
        if checkpoint.newest(folder) is not None:
            check_settings(folder, config.steps, settings)
            checkpoint.prune(folder, config.keep_checkpoints)  # what a kill left of the last one
        keep_settings(folder, config.steps, settings)
    world.tell()  # the others wait until the folder is in order
    latest = checkpoint.newest(folder)
    if latest is None:
        return 0, 0.0, Window(world=world)
    state, notes = checkpoint.load(latest)
    try:
        task.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        raise BundleError(
            f"{latest} does not fit what is to be trained: {error}. Use the model that the run was "
            "begun with, or train into another folder."
        ) from error
    done = checkpoint.step_of(latest)
    logger.info("Going on from step %d of %d in %s", done, config.steps, folder)
    return done, notes["time_s"], Window(notes["window"], world)


def _save(task: Task, folder: Path, done: int, notes: dict[str, Any], world: World) -> None:
    """Write a checkpoint in the first process: all of them hold the same state."""
    state = task.state_dict()
    _check_state(state, done, folder)
    if world.is_first:
        checkpoint.save(folder, done, state, notes)


def _check_losses(steps: list[dict[str, float]], done: int, folder: Path) -> None:
    for i, values in enumerate(steps):
        if not math.isfinite(values["loss"]):
            step = done - len(steps) + i + 1
            raise _not_finite(f"The loss is {values['loss']} at step {step}", folder)


def _check_state(state: dict[str, Any], done: int, folder: Path) -> None:
    for key, tensor in checkpoint.tensors_of(state).items():
        if not tensor.isfinite().all():
            raise _not_finite(f"After step {done}, {key} has values that are not finite", folder)


def _not_finite(finding: str, folder: Path) -> TrainingError:
    latest = checkpoint.newest(folder)
    rest = f"The last good checkpoint, {latest.name}, is intact" if latest else "Nothing was saved"
    return TrainingError(
        f"{finding} in {folder}. {rest}: train into another folder with a lower learning rate or "
        "a longer warm-up, or look at the data of that step."
    )
