"""Divergence: the log of alarms, the error of a diverged run, and rolling back.

The error names the first alarm, which says more about the cause than the loss. A run that was
rolled back is a function of ``skipped.jsonl`` and its checkpoint, so it resumes like any other.
"""

import json
import logging
import math
import os
from dataclasses import asdict
from operator import index
from pathlib import Path

import torch
from torch import Tensor

from pardalis.errors import DataError, TrainingError
from pardalis.files import is_own_file, parse_json, read_text, write_text
from pardalis.parallel import local_part
from pardalis.train import checkpoint
from pardalis.train.alarms import Alarm, AlarmConfig, Alarms
from pardalis.train.metrics import FILE_NAME as METRICS
from pardalis.train.metrics import Line, read_metrics
from pardalis.train.skipping import Skip, batch_of, read_skips, write_skips
from pardalis.train.task import Task

logger = logging.getLogger(__name__)

FILE_NAME = "alarms.jsonl"


class Diverged(TrainingError):
    """The loss or the state is not finite, or the loss has diverged.

    Attributes:
        finding: what was found, without advice.
        since: updates before the first one with wrong numbers.
        step: updates up to and including the one that failed.
    """

    kind = "diverged"

    def __init__(self, message: str, finding: str, since: int, step: int) -> None:
        super().__init__(message)
        self.finding, self.since, self.step = finding, since, step


class AlarmLog:
    """The alarms of a run, and the file to which new ones are appended.

    Args:
        run_folder: folder of the run; None in a process that does not read or write.
        step: step of the checkpoint that the run resumes from; later alarms are dropped.
    """

    def __init__(self, run_folder: Path | None, step: int, config: AlarmConfig) -> None:
        self._path = run_folder / FILE_NAME if run_folder else None
        self._alarms = Alarms(config, read_metrics(run_folder / METRICS) if run_folder else [])
        if self._path is not None and os.path.lexists(self._path):
            # In place of a link, which would be followed.
            lines = _lines_until(self._path, step) if is_own_file(self._path) else []
            write_text(self._path, "".join(lines))

    @property
    def first(self) -> Alarm | None:
        """The oldest active alarm."""
        return next(iter(self._alarms.active), None)

    def read(self, line: Line) -> str | None:
        """Read a line of metrics; return what was found if the run has diverged."""
        if self._path is None:
            return None
        # Before the line is read, so that it is not compared with itself.
        has_diverged = "loss" in line and self._alarms.has_diverged(line)
        for alarm in self._alarms.read(line):
            logger.warning("Step %d: %s.", alarm.step, described(alarm))
            with open(self._path, "a") as file:
                file.write(json.dumps(asdict(alarm)) + "\n")
        if not has_diverged:
            return None
        limit = self._alarms.config.loss_explosion
        return (
            f"The loss is {line['loss']:.3f} at step {line['step']}, more than {limit:g} above "
            "that of the first line"
        )


def _lines_until(path: Path, step: int) -> list[str]:
    """Return the alarms up to a step; raises DataError."""
    try:
        lines = read_text(path).splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # a kill may truncate the last
        return [line for line in whole if index(parse_json(line)["step"]) <= step]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}); correct or delete it.") from error


def described(alarm: Alarm) -> str:
    """Return an alarm as a part of a sentence."""
    return f"{alarm.name} {alarm.value:.4g} {alarm.rule}"


def first_not_finite(steps: list[dict[str, float]]) -> tuple[int, str | None]:
    """Return the first step of a window with an infinite metric or a loss that is not finite.

    The name of the metric is returned too, unless it is the loss. NaN is no error in other metrics:
    it means that they have no value at that step.
    """
    for i, values in enumerate(steps):
        for name, value in values.items():
            if math.isinf(value) and name != "loss":
                return i, f"{name} {value}"
        if not math.isfinite(values["loss"]):
            return i, None
    return len(steps), None


def non_finite_tensor(tensors: dict[str, Tensor]) -> str | None:
    """Return the path of a tensor with values that are not finite; one host synchronisation."""
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part = local_part(tensor).detach()
        if part.is_floating_point() and part.numel() > 0:
            by_device.setdefault(part.device, {})[key] = part
    for parts in by_device.values():
        # The largest magnitude, which is NaN if any value is.
        peaks = torch._foreach_norm(list(parts.values()), math.inf)
        finite = torch.stack([peak.double() for peak in peaks]).isfinite().tolist()
        for key, is_finite in zip(parts, finite, strict=True):
            if not is_finite:
                return key
    return None


def diverged(finding: str, step: int, since: int, cause: str | None, folder: Path) -> Diverged:
    """Return the error of a diverged run.

    Args:
        step: updates up to and including the one that failed.
        since: updates before the first one with wrong numbers.
        cause: the first statistic that went wrong, if known.
    """
    first = f" The first statistic to go wrong was {cause}." if cause else ""
    good = _last_good(folder, since)
    if good is None:
        rest = "Nothing was saved"
    elif checkpoint.step_of(good) > since:
        rest = f"The oldest checkpoint left, {good.name}, is intact, but later than that"
    else:
        rest = f"The last good checkpoint, {good.name}, is intact"
    message = (
        f"{finding} in {folder}.{first} {rest}: train into another folder with a lower learning "
        "rate or a longer warm-up, or look at the data of that step."
    )
    return Diverged(message, f"{finding}.{first}", since, step)


def roll_back(found: Diverged, task: Task, folder: Path, max_rollbacks: int) -> None:
    """Make the last good checkpoint the newest, and skip the batches of the divergence.

    Raises:
        Diverged: the run was rolled back ``max_rollbacks`` times before.
    """
    skips = read_skips(folder)
    n = max((skip.rollback for skip in skips), default=0) + 1
    good = _last_good(folder, found.since)
    if n > max_rollbacks or good is None:
        found.args = (
            f"{found} It was rolled back {n - 1} times before; max_rollbacks is {max_rollbacks}.",
        )
        raise found
    begin = checkpoint.step_of(good)
    skipped = {skip.batch for skip in skips}
    for step in range(max(found.since, begin), found.step):
        batch = batch_of(step, skipped)
        positions = task.positions(batch)
        skips.append(
            Skip(
                rollback=n,
                step=step,
                batch=batch,
                first_position=positions[0],
                last_position=positions[-1],
                cause=found.finding,
            )
        )
    # In this order: a kill in between leaves a run that diverges and is rolled back once more.
    checkpoint.discard_after(folder, begin)
    write_skips(folder, skips)
    new = [skip for skip in skips if skip.rollback == n]
    logger.warning(
        "%s Rolling back to step %d and skipping the rows at positions %d to %d.",
        found.finding, begin, new[0].first_position, new[-1].last_position,
    )  # fmt: skip


def _last_good(folder: Path, since: int) -> Path | None:
    """Return the newest checkpoint before the divergence; if there is none, the oldest."""
    found = checkpoint.all_of(folder)
    before = [path for path in found if checkpoint.step_of(path) <= since]
    return before[-1] if before else next(iter(found), None)
