"""The metrics of a run: lines of ``metrics.jsonl``, and TensorBoard if enabled.

Metrics are numbers only. A run that crashed and resumed has the same lines as one that did not.
"""

import errno
import json
import math
import os
from io import FileIO
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from pardalis.errors import ConfigError, DataError, TrainingError
from pardalis.files import parse_json, read_lines, why_unwritten, write_text
from pardalis.parallel import World

FILE_NAME = "metrics.jsonl"

Line = dict[str, int | float]


class MetricsWindow:
    """The metrics of the steps since the last report.

    Tensors stay on their device until :meth:`fetch`, which copies all of them in one transfer and
    averages them over the processes.
    """

    def __init__(
        self, steps: list[dict[str, float]] | None = None, world: World | None = None
    ) -> None:
        self._world = world or World()
        self._fetched: list[dict[str, float]] = list(steps or [])
        self._waiting: list[dict[str, float | Tensor]] = []

    def add(self, values: dict[str, float | Tensor]) -> None:
        """Add the metrics of one step."""
        self._waiting.append(values)

    def fetch(self) -> list[dict[str, float]]:
        """Return the metrics of every step in the window as numbers."""
        tensors = [v for step in self._waiting for v in step.values() if isinstance(v, Tensor)]
        numbers = iter(self._world.means(_to_numbers(tensors)))
        self._fetched += [
            {n: next(numbers) if isinstance(v, Tensor) else float(v) for n, v in step.items()}
            for step in self._waiting
        ]
        self._waiting.clear()
        return self._fetched

    def mean(self) -> dict[str, float]:
        """Return each metric's mean over the steps where it has a value."""
        values: dict[str, list[float]] = {}
        for step in self.fetch():
            for name, value in step.items():
                if not math.isnan(value):
                    values.setdefault(name, []).append(value)
        return {name: math.fsum(seen) / len(seen) for name, seen in values.items()}


def _to_numbers(scalars: list[Tensor]) -> list[float]:
    if not scalars:
        return []
    device = scalars[0].device
    return torch.stack([s.detach().to(device, torch.float32) for s in scalars]).tolist()


class MetricsWriter:
    """Appends lines ``{"step": 100, "time_s": 12.5, "loss": ...}`` to a run's metrics file.

    Args:
        run_folder: folder of the run; None in a process that only stores the last line.
        step: step of the checkpoint that the run resumes from; lines of later steps are dropped,
            since those steps are repeated.
        tensorboard: also write event files to ``RUN/tensorboard``.

    Raises:
        ConfigError: ``tensorboard`` is on and TensorBoard is not installed.
        DataError: a line of the metrics file other than the last is damaged.
    """

    def __init__(self, run_folder: Path | None, step: int = 0, tensorboard: bool = False) -> None:
        self._file: FileIO | None = None
        self._board: Any = None
        self.last: Line = {}
        if run_folder is not None:
            self._open(run_folder, step, tensorboard)

    def _open(self, run_folder: Path, step: int, tensorboard: bool) -> None:
        self._path = run_folder / FILE_NAME
        lines = read_metrics(self._path) if self._path.exists() else []
        kept = [line for line in lines if line["step"] <= step]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self.last = kept[-1] if kept else {}
        if tensorboard:
            self._board = _open_board(run_folder / "tensorboard", step)
        # Unbuffered, so that a failed write leaves nothing in a buffer.
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115

    def write(self, step: int, time_s: float, values: dict[str, float]) -> None:
        """Append a line and flush it to disk; values that are not finite are left out.

        Raises:
            TrainingError: the line could not be written (a full disk, say).
        """
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self.last = {"step": step, "time_s": round(time_s, 3), **finite}
        if self._file is None:
            return
        content = (json.dumps(self.last) + "\n").encode()
        try:
            if self._file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
            if self._board is not None:
                for name, value in finite.items():
                    self._board.add_scalar(name, value, step)
        except OSError as error:
            raise TrainingError(
                f"The metrics of step {step} could not be written to {self._path}: "
                f"{why_unwritten(error) or f'{error.strerror or error}; correct that'}, then run "
                "the same command again."
            ) from error

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[Line]:
    """Read a metrics file; a last line that a crash truncated is left out.

    Raises:
        DataError: the file is missing, or another line is not a metrics line.
    """
    metrics = []
    try:
        for i, line in enumerate(read_lines(path)):
            if not line.endswith(b"\n"):
                break
            if not is_line(values := _json_or_none(line)):
                raise DataError(
                    f"Line {i + 1} of {path} is not a metrics line; correct or delete it."
                )
            metrics.append(values)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"No metrics can be read at {path} ({reason}).") from error
    return metrics


def _json_or_none(line: bytes) -> Any:
    try:
        return parse_json(line)
    except ValueError:
        return None


def is_line(values: Any) -> TypeGuard[Line]:
    """Return whether a value of a file is a line of metrics: numbers by name, and a step."""
    return is_metrics(values) and type(step := values.get("step")) is int and step >= 0


def is_metrics(values: Any) -> TypeGuard[Line]:
    """Return whether a value of a file is a table of numbers."""
    return isinstance(values, dict) and all(map(is_number, values.values()))


def is_number(value: Any) -> bool:
    """Return whether a value of a file is a number that 64 bits hold."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _open_board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "tensorboard is on and TensorBoard is not installed: "
            "pip install 'pardalis[track]', or set it to false."
        ) from error
    return SummaryWriter(folder, purge_step=step + 1)
