"""Writing that a crash cannot spoil: a file or folder appears whole, or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pardalis.errors import ConfigError


def working_name(path: Path, state: str) -> Path:
    """Return the working name of a file or folder: hidden, and nothing that a person would choose.

    What bears it is ours to delete; a person's ``bundle.previous`` is not.
    """
    if path.name in ("", ".."):  # "." and the like have no name of their own
        path = path.resolve()
    return path.with_name(f".{path.name}.pardalis-{state}")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: readers see the old content or the new one, never a mixture."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; on an error (a full disk, say) the previous file stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = working_name(path, "partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def require_folder(path: Path) -> None:
    """Raise ConfigError if a file stands where a folder, or one that holds it, is to be made."""
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise ConfigError(
                f"{place} is a file, but a folder is to be written; choose another name."
            )


def output_folder(path: Path) -> Path:
    """Return a folder to write files into, made if need be: before the work that fills it.

    Raises:
        ConfigError: a file is in the way.
    """
    require_folder(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, which takes the name ``path`` only when the block ends well.

    A folder that already has that name is replaced. If the block raises, or the process dies in it,
    the previous folder is untouched. Between the two renames of a replacement the previous folder
    bears a working name; :func:`recover_folder` puts it back after a crash just then.
    """
    recover_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = working_name(path, "partial")
    previous = working_name(path, "previous")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        _sync_tree(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if path.exists():
        os.rename(path, previous)
    os.rename(partial, path)
    _sync_folder(path.parent)
    shutil.rmtree(previous, ignore_errors=True)


def existing_folder(path: Path) -> Path:
    """Return where the folder of a name is: there, or for an instant of its replacement beside it.

    For readers, which must not rename what a writer is about to rename.
    """
    if path.exists():
        return path
    previous = working_name(path, "previous")
    return previous if previous.exists() else path


def recover_folder(path: Path) -> None:
    """Finish or undo a replacement that a crash cut between its two renames; for writers."""
    previous = working_name(path, "previous")
    if not previous.exists():
        return
    if path.exists():
        shutil.rmtree(previous, ignore_errors=True)
    else:
        os.rename(previous, path)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
        _sync_folder(Path(parent))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
