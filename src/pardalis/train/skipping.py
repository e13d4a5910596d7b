"""Batches that a run leaves out since it went wrong on them, and what each step reads instead.

    RUN/skipped.jsonl     a line per batch: {"rollback": 1, "step": 120, "batch": 119, ...}

Steps are counted as ever; a step whose batch is left out takes the next one, and all after it move
along. So what a step reads is a pure function of its number and of this file.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pardalis.errors import DataError
from pardalis.files import write_text

FILE_NAME = "skipped.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Skip:
    """A batch that is left out."""

    rollback: int  # which one of the run, from 1
    step: int  # at which the batch was met, from 0
    batch: int  # its number in the data
    first_position: int  # of its rows in the data
    last_position: int
    cause: str  # what was found


def batch_of(step: int, skipped: Iterable[int]) -> int:
    """Return the number of the batch that a step reads: the step-th of those that are left."""
    batch = step
    for number in sorted(set(skipped)):
        if number > batch:
            break
        batch += 1
    return batch


def read_skips(run_folder: Path) -> list[Skip]:
    """Return what a run leaves out; nothing where nothing went wrong.

    Raises:
        DataError: the file is damaged.
    """
    path = run_folder / FILE_NAME
    if not path.is_file():
        return []
    try:
        return [Skip(**json.loads(line)) for line in path.read_text().splitlines()]
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}), and without it the run would read other rows than "
            "before; put the file back, or train into another folder."
        ) from error


def write_skips(run_folder: Path, skips: Iterable[Skip]) -> None:
    """Write all that a run leaves out."""
    lines = (json.dumps(asdict(skip)) + "\n" for skip in skips)
    write_text(run_folder / FILE_NAME, "".join(lines))
