"""Checkpoints: the resumable state of one run, written and read by any number of ranks.

    RUN/checkpoints/step-00000100/      appears by one rename, whole or not at all
    ├─ run.json                         format version, step, time, notes of the loop
    ├─ .metadata                        torch.distributed.checkpoint: where each tensor lies
    └─ __0_0.distcp, __1_0.distcp       the tensors, a file for each rank that wrote

A sharded tensor is written in shards and can be read with any other sharding; a replicated tensor
is written once. A checkpoint is not portable, but reading one runs no code that it contains
(:mod:`.checkpoint_reader`). The portable format is the bundle.
"""

import pickle
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pardalis.config import shown
from pardalis.errors import BundleError, TrainingError
from pardalis.files import (
    atomic_folder,
    plain,
    read_json,
    remove,
    why_unwritten,
    working_name,
    write_json,
)
from pardalis.parallel import World
from pardalis.parallel.failures import is_broken_connection
from pardalis.train.checkpoint_reader import NO_FLATTENING, read_entries, read_metadata

# torch.distributed.checkpoint is imported where it is used: it takes 0.6 s on top of torch.

FORMAT_VERSION = 2  # 1 numbered the parameters of an optimizer's state
_PLAIN = (bool, int, float, str, bytes)  # the values of a state that are no tensors
_NAME = re.compile(r"step-(\d{8,})")
_STRUCTURE = "structure"  # structure of the state, with a _Slot for each tensor
_LAST_WAIT_SECONDS = 30.0  # for a save in progress when a run fails; other ranks may be gone


class _Slot(NamedTuple):
    """Stands for a tensor in the pickled structure, so its name is part of the format."""

    key: str


class Saver:
    """Writes the checkpoints of a run, one at a time; a context manager that waits for the last.

    All ranks take part. The first rank renames a checkpoint to its final name when all have
    written.

    Args:
        keep: number of newest checkpoints that are kept.
        asynchronous: copy the state and write it in a thread while training continues.
    """

    def __init__(
        self, run_folder: Path, world: World, keep: int = 2, asynchronous: bool = True
    ) -> None:
        self._run_folder, self._world, self._keep = run_folder, world, keep
        self._asynchronous = asynchronous
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, state: dict[str, Any], notes: dict[str, Any]) -> None:
        """Start writing a checkpoint of a state and the loop's notes.

        Raises:
            TrainingError: this checkpoint or the previous one could not be written (a full disk,
                say); earlier ones are untouched.
            TypeError: the state holds anything but tensors and plain values.
        """
        self.wait()
        tensors: dict[str, Tensor] = {}
        structure = _extract_tensors(state, "state", tensors)
        # Replicated tensors are written by the first rank alone.
        mine = self._world.is_first
        written = {key: t for key, t in tensors.items() if mine or hasattr(t, "placements")}
        if self._asynchronous:
            written = {key: tensor.detach().to("cpu", copy=True) for key, tensor in written.items()}
        content = written | ({_STRUCTURE: structure} if self._world.is_first else {})
        about = {
            "format_version": FORMAT_VERSION,
            "step": step,
            "saved": datetime.now(UTC).isoformat(timespec="seconds"),
            "notes": plain(notes),  # a copy, since the loop changes them
        }
        _silence_warning_of_one_process()
        if self._asynchronous:
            work = (step, content, about)
            # A daemon thread, so that a failed run does not wait for ranks that are gone.
            self._thread = threading.Thread(target=self._work, args=work, daemon=True)
            self._thread.start()
        else:
            self._work(step, content, about)
        self.check()

    def check(self) -> None:
        """Raise the error of a save in progress, if any; raises as :meth:`save`."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Wait until no save is in progress; raises as :meth:`save`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None and not is_broken_connection(error):
            self._thread.join(None if self._world.size == 1 else _LAST_WAIT_SECONDS)

    def _work(self, step: int, content: dict[str, Any], about: dict[str, Any]) -> None:
        # PyTorch's writer synchronises with the current stream. In a new thread that is a stream of
        # the first GPU, on which the threads of all ranks would then allocate memory.
        device = self._world.device
        try:
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                self._write(_folder(self._run_folder) / f"step-{step:08d}", content, about)
        except BaseException as error:
            self._error = _unwritten(self._run_folder, step, error)

    def _write(self, folder: Path, content: dict[str, Any], about: dict[str, Any]) -> None:
        if not self._world.is_first:
            _write_tensors(working_name(folder, "partial"), content, self._world)
            return
        if not self._run_folder.is_dir():
            raise FileNotFoundError("that folder was moved or deleted while it was written")
        with atomic_folder(folder) as partial:
            _write_tensors(partial, content, self._world)  # returns when all ranks have written
            write_json(partial / "run.json", about)
        prune(self._run_folder, self._keep)


def save(run_folder: Path, step: int, state: dict[str, Any], notes: dict[str, Any]) -> Path:
    """Write a checkpoint in this process alone; return its folder. Raises as :meth:`Saver.save`."""
    run_folder.mkdir(parents=True, exist_ok=True)
    with Saver(run_folder, World(), asynchronous=False) as saver:
        saver.save(step, state, notes)
    return _folder(run_folder) / f"step-{step:08d}"


def _write_tensors(folder: Path, content: dict[str, Any], world: World) -> None:
    from torch.distributed.checkpoint import state_dict_saver
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.planner import SavePlan

    class Joining(FileSystemWriter):
        """Leaves creating the folder to the first rank, for which all others wait."""

        def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
            return plan

    kind = FileSystemWriter if world.is_first else Joining
    state_dict_saver.save(
        content,
        # ``atomic_folder`` synchronises the files of the first rank.
        storage_writer=kind(folder, sync_files=not world.is_first),
        planner=DefaultSavePlanner(**NO_FLATTENING),
        process_group=world.saving,
        no_dist=world.size == 1,
    )


def _unwritten(run_folder: Path, step: int, error: BaseException) -> BaseException:
    cause = _unwrapped(error)
    if not isinstance(cause, OSError | RuntimeError) or is_broken_connection(cause):
        return cause
    before = newest(run_folder)
    rest = f"{before.name} before it is intact" if before else "No checkpoint is before it"
    why = why_unwritten(cause) or f"{(str(cause).splitlines() or [''])[0]}; correct that"
    unwritten = TrainingError(
        f"The checkpoint of step {step} could not be written to {_folder(run_folder)}: {why}, then "
        f"run the same command again. {rest}."
    )
    unwritten.__cause__ = cause
    return unwritten


def load(folder: Path, like: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint's state and its notes.

    Args:
        like: a state whose tensors give the device and sharding of the tensors of the same path.
            Others are loaded whole, on the CPU.

    Raises:
        BundleError: the checkpoint is incomplete, damaged, of another format, or not readable.
        ValueError: a tensor has another shape than in ``like``.
    """
    about = _read_about(folder)
    placed = tensors_of(like or {})
    with _reading(folder):
        loaded: dict[str, Any] = {
            key: _allocate(key, entry, placed.get(key)) for key, entry in _entries(folder)
        }
        _fill(folder, loaded)
        state = _insert_tensors(loaded.pop(_STRUCTURE), loaded)
    return state, about["notes"]


def load_part(folder: Path, part: dict[str, Any]) -> None:
    """Read only the tensors of a part of a state, in place.

    Raises:
        BundleError: as :func:`load`.
        ValueError: a tensor is missing in the checkpoint or has another shape there.
    """
    check_part(folder, part)
    with _reading(folder):
        _fill(folder, dict(tensors_of(part)))


def check_part(folder: Path, part: dict[str, Any]) -> None:
    """Compare the shapes of a part of a state with a checkpoint; raises as :func:`load_part`.

    The tensors may be on the meta device.
    """
    _read_about(folder)
    with _reading(folder):
        entries = dict(_entries(folder))
        for key, tensor in tensors_of(part).items():
            if key not in entries:
                raise _MismatchError(f"{key} is missing there")
            _check_shape(key, entries[key], tensor)


class _MismatchError(ValueError):
    """A checkpoint is complete, but of another model."""


def _entries(folder: Path) -> list[tuple[str, Any]]:
    return list(read_metadata(folder).state_dict_metadata.items())


def _allocate(key: str, entry: Any, placed: Tensor | None) -> Tensor | None:
    """Return an empty tensor for the entry of a key; None for an entry that is no tensor."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    if not isinstance(entry, TensorStorageMetadata):
        return None
    if placed is None:
        return torch.empty(entry.size, dtype=entry.properties.dtype)
    _check_shape(key, entry, placed)
    return torch.empty_like(placed, dtype=entry.properties.dtype, requires_grad=False)


def _check_shape(key: str, entry: Any, placed: Tensor) -> None:
    if getattr(entry, "size", None) is None:
        raise _MismatchError(f"{key} is no tensor there")
    if entry.size != placed.shape:
        raise _MismatchError(
            f"{key} has shape {list(entry.size)} there and {list(placed.shape)} here"
        )


def _fill(folder: Path, content: dict[str, Any]) -> None:
    _silence_warning_of_one_process()
    read_entries(folder, content, safe=_Slot)


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except _MismatchError:
        raise
    except BaseException as error:
        cause = _cause(error)
        if isinstance(cause, pickle.UnpicklingError):  # PyTorch's is a page of bad advice
            finding = "an entry holds other values than tensors and plain ones"
        else:
            finding = f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}"
        raise _unreadable(folder, cause, finding) from cause


def step_of(folder: Path) -> int:
    """Return the number of updates of a checkpoint, from its name."""
    match = _NAME.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"{folder.name} is not the name of a checkpoint")
    return int(match[1])


def all_of(run_folder: Path) -> list[Path]:
    """Return the checkpoints of a run in the order of their steps."""
    found = (path for path in _folder(run_folder).glob("step-*") if _NAME.fullmatch(path.name))
    return sorted(found, key=step_of)


def newest(run_folder: Path) -> Path | None:
    """Return the checkpoint of the largest step, or None."""
    return next(reversed(all_of(run_folder)), None)


def prune(run_folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints, and the leftovers of killed processes."""
    _discard(run_folder, all_of(run_folder)[:-keep])


def discard_after(run_folder: Path, step: int) -> None:
    """Delete the checkpoints of later steps, the newest first."""
    later = [folder for folder in all_of(run_folder) if step_of(folder) > step]
    _discard(run_folder, later[::-1])


def _discard(run_folder: Path, folders: list[Path]) -> None:
    for folder in folders:
        # Renamed first, so that a partly deleted folder never has the name of a checkpoint.
        folder.rename(folder.with_name(folder.name + ".partial"))
    for pattern in ("step-*.partial", working_name(Path("step-*"), "partial").name):
        for leftover in _folder(run_folder).glob(pattern):
            with suppress(OSError):
                remove(leftover)


def tensors_of(state: dict[str, Any]) -> dict[str, Tensor]:
    """Return all tensors of a state by their paths."""
    tensors: dict[str, Tensor] = {}
    _extract_tensors(state, "state", tensors)
    return tensors


def _folder(run_folder: Path) -> Path:
    return run_folder / "checkpoints"


def _extract_tensors(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[key] = value
        return _Slot(key)
    if isinstance(value, dict):
        return {k: _extract_tensors(v, f"{key}/{k}", tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = (_extract_tensors(v, f"{key}/{i}", tensors) for i, v in enumerate(value))
        return list(items) if isinstance(value, list) else tuple(items)
    if value is None:
        return None
    for kind in _PLAIN:
        if isinstance(value, kind):
            return kind(value)  # type: ignore[arg-type]  # such as a number of NumPy's
    raise TypeError(f"{key} is a {type(value).__name__}; a state holds tensors and plain values")


def _insert_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, _Slot):
        return tensors[value.key]
    if isinstance(value, dict):
        return {k: _insert_tensors(v, tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = (_insert_tensors(v, tensors) for v in value)
        return list(items) if isinstance(value, list) else tuple(items)
    return value


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    try:
        about = read_json(path)
        version = about["format_version"]
        if version != FORMAT_VERSION:
            raise BundleError(
                f"{folder} has checkpoint format {shown(version)} and this version of pardalis "
                f"reads {FORMAT_VERSION}; resume with the version that wrote it, or start a new "
                "run."
            )
        if not isinstance(about["notes"], dict):
            raise TypeError("its notes are no table")
        return {"notes": about["notes"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(folder, error, f"{path.name} cannot be read") from error


def _unreadable(folder: Path, error: BaseException, finding: str) -> BundleError:
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        # Permissions, a lost disk or too many open files: the checkpoint itself may be complete.
        return BundleError(
            f"{folder} could not be read ({error}); make its files readable, then run the same "
            "command again."
        )
    return BundleError(
        f"{folder} is not a complete checkpoint ({finding}); delete this folder to resume from the "
        "checkpoint before it."
    )


def _unwrapped(error: BaseException) -> BaseException:
    """Return the error of a rank that PyTorch wrapped, or the error itself."""
    from torch.distributed.checkpoint.api import CheckpointException

    if isinstance(error, CheckpointException):
        return next(iter(error.failures.values()))[0]
    return error


def _cause(error: BaseException) -> BaseException:
    """Return the error that PyTorch wrapped; raise interruptions and a lack of memory."""
    error = _unwrapped(error)
    if isinstance(error, MemoryError) or not isinstance(error, Exception):
        raise error
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        raise MemoryError(str(error)) from error  # PyTorch has no class for it on the CPU
    return error


def _silence_warning_of_one_process() -> None:
    """Silence the warning that checkpoints are written by a single process.

    The filter stays: restoring filters in a thread would disturb other threads.
    """
    warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninit")
