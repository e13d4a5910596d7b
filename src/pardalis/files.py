"""Atomic writes: a file or folder appears whole, or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pardalis.errors import ConfigError


def working_name(path: Path, state: str) -> Path:
    """Return a hidden temporary name for a file or folder, which no user would choose.

    Files of this name may be deleted; a user's ``bundle.previous`` may not.
    """
    if path.name in ("", ".."):  # such as "."
        path = path.resolve()
    return path.with_name(f".{path.name}.pardalis-{state}")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: readers see either the old or the new content."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; on an error (a full disk, say) the previous file is unchanged."""
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
    """Raise ConfigError if a file has the name of the folder or of one of its parents."""
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise ConfigError(
                f"{place} is a file, but a folder is to be written; choose another name."
            )


def output_folder(path: Path) -> Path:
    """Create an output folder if needed and return it; raises as :func:`require_folder`."""
    require_folder(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, which is renamed to ``path`` when the block succeeds.

    An existing folder of that name is replaced. If the block raises or the process is killed, the
    previous folder is untouched. Between the two renames of a replacement the previous folder has a
    working name; :func:`recover_folder` restores it after a crash at that moment.
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
    """Return the folder of a name, or its working copy while it is being replaced.

    For readers, which must not rename anything that a writer may be renaming.
    """
    if path.exists():
        return path
    previous = working_name(path, "previous")
    return previous if previous.exists() else path


def recover_folder(path: Path) -> None:
    """Finish or undo a replacement that was interrupted between its two renames; for writers."""
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
