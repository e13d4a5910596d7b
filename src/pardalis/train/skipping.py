"""Batches that a run skips because it diverged on them.

    RUN/skipped.jsonl     one line per batch: {"rollback": 1, "step": 120, "batch": 119, ...}

Step numbers are unchanged: a step whose batch is skipped reads the next one, and all later steps
move along. The batch of a step is therefore a pure function of its number and of this file.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pardalis.config import shown
from pardalis.errors import DataError
from pardalis.files import parse_json, read_text, write_text

FILE_NAME = "skipped.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Skip:
    """A batch that is skipped."""

    rollback: int  # number of the rollback, from 1
    step: int  # step that read the batch, from 0
    batch: int  # number in the data
    first_position: int  # position of its first row in the data
    last_position: int
    cause: str  # the finding


def batch_of(step: int, skipped: Iterable[int]) -> int:
    """Return the number of the batch that a step reads: the step-th that is not skipped."""
    batch = step
    for number in sorted(set(skipped)):
        if number > batch:
            break
        batch += 1
    return batch


def read_skips(run_folder: Path) -> list[Skip]:
    """Return the skipped batches of a run.

    Raises:
        DataError: the file is damaged.
    """
    path = run_folder / FILE_NAME
    if not path.is_file():
        return []
    try:
        return [_skip(parse_json(line)) for line in read_text(path).splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}), and without it the run would read other rows than "
            "before; put the file back, or train into another folder."
        ) from error


def _skip(values: Any) -> Skip:
    for name, value in dict(values).items():
        is_text, is_count = type(value) is str, type(value) is int and 0 <= value < 2**63
        if not (is_text if name == "cause" else is_count):
            raise ValueError(f"{name} is {shown(value)}")
    return Skip(**values)


def write_skips(run_folder: Path, skips: Iterable[Skip]) -> None:
    """Write the skipped batches of a run."""
    lines = (json.dumps(asdict(skip)) + "\n" for skip in skips)
    write_text(run_folder / FILE_NAME, "".join(lines))
