"""Checkpoints: the resumable state of one run, in a format that several ranks can write and read.

    RUN/checkpoints/step-00000100/      appears by one rename, whole or not at all
    ├─ run.json                         format version, step, time, the loop's own notes
    ├─ .metadata                        torch.distributed.checkpoint: where each tensor lies
    └─ __0_0.distcp                     the tensors

A checkpoint is not portable and not for strangers: like PyTorch's own files it holds pickles, which
can run code when read. What people pass around is a bundle.
"""

import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pardalis.errors import BundleError, TrainingError
from pardalis.files import atomic_folder, write_json

# torch.distributed.checkpoint is imported where it is used: it takes 0.6 s on top of torch.

FORMAT_VERSION = 1
_NAME = re.compile(r"step-(\d{8,})")
_STRUCTURE = "structure"  # of the state, with a _Slot for each tensor

# PyTorch's own flattening makes strings of the integer keys of an optimizer's state, and loses
# empty dicts.
_AS_IT_IS = {"flatten_state_dict": False, "flatten_sharded_tensors": False}


class _Slot(NamedTuple):
    """Stands for a tensor in the structure."""

    key: str


def save(run_folder: Path, step: int, state: dict[str, Any], notes: dict[str, Any]) -> Path:
    """Write a state and what the loop notes beside it; return the new checkpoint's folder.

    Raises:
        TrainingError: it could not be written (a full disk, say); earlier ones are untouched.
    """
    from torch.distributed.checkpoint import state_dict_saver
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    folder = _folder(run_folder) / f"step-{step:08d}"
    tensors: dict[str, Tensor] = {}
    structure = _take_tensors(state, "state", tensors)
    about = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "saved": datetime.now(UTC).isoformat(timespec="seconds"),
        "notes": notes,
    }
    try:
        with atomic_folder(folder) as partial:
            with _one_process():
                state_dict_saver.save(
                    {_STRUCTURE: structure, **tensors},
                    storage_writer=FileSystemWriter(partial, sync_files=False),  # done below
                    planner=DefaultSavePlanner(**_AS_IT_IS),
                    no_dist=True,
                )
            write_json(partial / "run.json", about)
    except (CheckpointException, OSError, RuntimeError) as error:
        cause = _cause(error)
        before = newest(run_folder)
        rest = f"{before.name} before it is intact" if before else "there is none before it"
        raise TrainingError(
            f"The checkpoint of step {step} could not be written to {folder.parent} ({cause}); "
            f"{rest}. Make room on the disk, then run the same command again."
        ) from cause
    return folder


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint's state, on the CPU, and its notes.

    Raises:
        BundleError: the checkpoint is incomplete, damaged, or of a newer format, or the system
            refuses to read it.
    """
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    about = _read_about(folder)
    reader = FileSystemReader(folder)
    try:
        loaded: dict[str, Any] = {
            key: torch.empty(entry.size, dtype=entry.properties.dtype)
            if isinstance(entry, TensorStorageMetadata)
            else None
            for key, entry in reader.read_metadata().state_dict_metadata.items()
        }
        with _one_process():
            state_dict_loader.load(
                loaded,
                storage_reader=reader,
                planner=DefaultLoadPlanner(**_AS_IT_IS),
                no_dist=True,
            )
        state = _put_tensors(loaded.pop(_STRUCTURE), loaded)
    except (CheckpointException, Exception) as error:
        cause = _cause(error)
        raise _unreadable(folder, cause, f"{type(cause).__name__}: {cause}") from cause
    return state, about["notes"]


def step_of(folder: Path) -> int:
    """Return the number of updates behind a checkpoint, from its name."""
    match = _NAME.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"{folder.name} is not a checkpoint's name")
    return int(match[1])


def newest(run_folder: Path) -> Path | None:
    """Return the run's checkpoint of the most updates, or None where there is none."""
    return max(_all(run_folder), key=step_of, default=None)


def prune(run_folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints, and what killed processes left half done."""
    for folder in sorted(_all(run_folder), key=step_of)[:-keep]:
        # Renamed first, so that a half-deleted folder never bears a checkpoint's name.
        folder.rename(folder.with_name(folder.name + ".partial"))
    for leftover in _folder(run_folder).glob("step-*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)


def tensors_of(state: dict[str, Any]) -> dict[str, Tensor]:
    """Return all tensors of a state by the path to each."""
    tensors: dict[str, Tensor] = {}
    _take_tensors(state, "state", tensors)
    return tensors


def _folder(run_folder: Path) -> Path:
    return run_folder / "checkpoints"


def _all(run_folder: Path) -> list[Path]:
    return [path for path in _folder(run_folder).glob("step-*") if _NAME.fullmatch(path.name)]


def _take_tensors(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[key] = value
        return _Slot(key)
    if isinstance(value, dict):
        return {k: _take_tensors(v, f"{key}/{k}", tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = (_take_tensors(v, f"{key}/{i}", tensors) for i, v in enumerate(value))
        return list(items) if isinstance(value, list) else tuple(items)
    return value


def _put_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, _Slot):
        return tensors[value.key]
    if isinstance(value, dict):
        return {k: _put_tensors(v, tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = (_put_tensors(v, tensors) for v in value)
        return list(items) if isinstance(value, list) else tuple(items)
    return value


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    try:
        about = json.loads(path.read_text())
        version = about["format_version"]
        if version > FORMAT_VERSION:
            raise BundleError(
                f"{folder} has checkpoint format {version} and this version of pardalis reads up "
                f"to {FORMAT_VERSION}: update pardalis."
            )
        return {"notes": about["notes"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(folder, error, f"{path.name} cannot be read") from error


def _unreadable(folder: Path, error: BaseException, finding: str) -> BundleError:
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        # Of permissions, a lost disk or too many open files: the checkpoint itself may be whole.
        return BundleError(
            f"{folder} could not be read ({error}); make its files readable, then run the same "
            "command again."
        )
    return BundleError(
        f"{folder} is not a whole checkpoint ({finding}); delete this folder to go on from the "
        "checkpoint before it."
    )


def _cause(error: BaseException) -> BaseException:
    """Return what PyTorch wrapped; an interruption and a lack of memory go on their way."""
    from torch.distributed.checkpoint.api import CheckpointException

    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, MemoryError) or not isinstance(error, Exception):
        raise error
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        raise MemoryError(str(error)) from error  # PyTorch's own has no class on the CPU
    return error


@contextmanager
def _one_process() -> Iterator[None]:
    """Silence the one warning that says that a single process is what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninit")
        yield
