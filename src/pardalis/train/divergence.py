"""What is done about a run that goes wrong: alarms written down, what was first, and going back.

The statistic that went wrong first is named, since it says more than the loss that followed. What a
run does after it went back is a function of ``skipped.jsonl`` and the checkpoint, so it resumes as
any other.
"""

import json
import logging
import math
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from pardalis.errors import TrainingError
from pardalis.files import write_text
from pardalis.train import checkpoint
from pardalis.train.alarms import Alarm, AlarmConfig, Alarms
from pardalis.train.metrics import FILE_NAME as METRICS
from pardalis.train.metrics import Line, read_metrics
from pardalis.train.skipping import Skip, batch_of, read_skips, write_skips
from pardalis.train.task import Task

logger = logging.getLogger(__name__)

FILE_NAME = "alarms.jsonl"


class Diverged(TrainingError):
    """The loss or the state is not finite, or the loss is past hope.

    Attributes:
        finding: what was found, without advice.
        since: updates done before the first whose numbers were wrong.
        step: updates done after the one that broke.
    """

    def __init__(self, message: str, finding: str, since: int, step: int) -> None:
        super().__init__(message)
        self.finding, self.since, self.step = finding, since, step


class AlarmLog:
    """The alarms of a run: those of its lines so far, and a file to which further ones are added.

    Args:
        run_folder: of the run; None in a process that does not read or write.
        step: of the checkpoint that the run resumes from; alarms of later steps are dropped.
    """

    def __init__(self, run_folder: Path | None, step: int, config: AlarmConfig) -> None:
        self._path = run_folder / FILE_NAME if run_folder else None
        self._alarms = Alarms(config, read_metrics(run_folder / METRICS) if run_folder else [])
        if self._path is not None and self._path.is_file():
            lines = self._path.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # a kill may cut the last one
            write_text(self._path, "".join(li for li in whole if json.loads(li)["step"] <= step))

    @property
    def first(self) -> Alarm | None:
        """The oldest alarm that still stands."""
        return next(iter(self._alarms.active), None)

    def read(self, line: Line) -> str | None:
        """Take a line of metrics; return what was found if its loss is past hope."""
        if self._path is None:
            return None
        # Before the line is read, so that it is not measured by itself.
        hopeless = "loss" in line and self._alarms.has_diverged(line)
        for alarm in self._alarms.read(line):
            logger.warning("Step %d: %s.", alarm.step, described(alarm))
            with open(self._path, "a") as file:
                file.write(json.dumps(asdict(alarm)) + "\n")
        if not hopeless:
            return None
        limit = self._alarms.config.loss_explosion
        return (
            f"The loss is {line['loss']:.3f} at step {line['step']}, more than {limit:g} above "
            "that of the first line"
        )


def described(alarm: Alarm) -> str:
    """Say what an alarm is about, in the middle of a sentence."""
    return f"{alarm.name} {alarm.value:.4g} {alarm.rule}"


def first_not_finite(steps: list[dict[str, float]]) -> tuple[int, str | None]:
    """Return the first step of a window with a number that is not finite, and which but the loss.

    A statistic that is NaN has no value at that step; only of the loss it says anything.
    """
    for i, values in enumerate(steps):
        for name, value in values.items():
            if math.isinf(value) and name != "loss":
                return i, f"{name} {value}"
        if not math.isfinite(values["loss"]):
            return i, None
    return len(steps), None


def non_finite_tensor(tensors: dict[str, Tensor]) -> str | None:
    """Return the path of a tensor that holds anything but finite numbers; waits for a GPU once."""
    checked = {key: _local(t) for key, t in tensors.items() if t.is_floating_point()}
    checked = {key: tensor for key, tensor in checked.items() if tensor.numel() > 0}
    by_device: dict[torch.device, list[str]] = {}
    for key, tensor in checked.items():
        by_device.setdefault(tensor.device, []).append(key)
    for keys in by_device.values():
        # The largest magnitude, which is NaN where any number is.
        peaks = torch._foreach_norm([checked[key] for key in keys], math.inf)
        finite = torch.stack([peak.double() for peak in peaks]).isfinite().tolist()
        for key, is_finite in zip(keys, finite, strict=True):
            if not is_finite:
                return key
    return None


def _local(tensor: Tensor) -> Tensor:
    to_local = getattr(tensor, "to_local", None)  # of a DTensor, whose class is slow to import
    return tensor.detach() if to_local is None else to_local().detach()


def diverged(finding: str, step: int, since: int, cause: str | None, folder: Path) -> Diverged:
    """Return the error of a run that went wrong.

    Args:
        step: updates done after the one that broke.
        since: updates done before the first whose numbers were wrong.
        cause: the statistic that was the first to go wrong, if any is known.
    """
    first = f" The first statistic to go wrong was {cause}." if cause else ""
    good = _last_good(folder, since)
    if good is None:
        rest = "Nothing was saved"
    elif checkpoint.step_of(good) > since:
        rest = f"The oldest checkpoint left, {good.name}, is intact, but of after that"
    else:
        rest = f"The last good checkpoint, {good.name}, is intact"
    message = (
        f"{finding} in {folder}.{first} {rest}: train into another folder with a lower learning "
        "rate or a longer warm-up, or look at the data of that step."
    )
    return Diverged(message, f"{finding}.{first}", since, step)


def roll_back(found: Diverged, task: Task, folder: Path, most: int) -> None:
    """Make the last good checkpoint the newest, and leave out the batches since that went wrong.

    Raises:
        Diverged: the run was rolled back so often before.
    """
    skips = read_skips(folder)
    n = max((skip.rollback for skip in skips), default=0) + 1
    good = _last_good(folder, found.since)
    if n > most or good is None:
        found.args = (f"{found} It was rolled back {n - 1} times before; max_rollbacks is {most}.",)
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
    # In this order: a kill in between leaves a run that goes wrong and is rolled back once more.
    checkpoint.discard_after(folder, begin)
    write_skips(folder, skips)
    new = [skip for skip in skips if skip.rollback == n]
    logger.warning(
        "%s Going back to step %d, and on without the rows at positions %d to %d.",
        found.finding, begin, new[0].first_position, new[-1].last_position,
    )  # fmt: skip


def _last_good(folder: Path, since: int) -> Path | None:
    """Return the newest checkpoint from before a run went wrong; the oldest, if none is."""
    found = checkpoint.all_of(folder)
    before = [path for path in found if checkpoint.step_of(path) <= since]
    return before[-1] if before else next(iter(found), None)
