"""Documents, or whatever a line stands for, from the JSON objects of a file, one a line.

And what all readers ask of the names of images in documents that somebody else may have written.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pardalis import files
from pardalis.documents.document import Rejection

Item = TypeVar("Item")


class BadRecordError(Exception):
    """A line that holds no document; ``kind`` is that of its :class:`Rejection`."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def read_lines(
    path: Path, parse: Callable[[dict[str, Any], int], Item]
) -> Iterator[Item | Rejection]:
    """Yield what ``parse`` makes of the object and number of each line that is not blank."""
    try:
        for number, line in enumerate(files.read_lines(path), start=1):
            if not line.strip():
                continue
            try:
                yield parse(_object(line), number)
            except BadRecordError as error:
                yield Rejection(f"{path}:{number}", error.kind, str(error))
    except ValueError as error:
        reason = f"The file cannot be read further: {error}."
        yield Rejection(str(path), "long-line", reason)


def is_inside(file: Path, root: Path) -> bool:
    """Return whether a path, as it is written, lies in a folder.

    Documents that somebody else made must not bring private files into training. Links are
    followed: who owns the folder made them, and downloaded corpora often consist of them.
    """
    return Path(os.path.abspath(file)).is_relative_to(os.path.abspath(root))


def find_image(name: str, folder: Path, where: str, root: Path | None = None) -> Path:
    """Return the file that a record of ``folder`` names; ``where`` begins the sentence of an error.

    Args:
        root: the source's folder, in which the file must lie; None: it may lie anywhere.

    Raises:
        BadRecordError: there is no such file, or it lies outside ``root``.
    """
    file = folder / name
    if root is not None and not is_inside(file, root):
        reason = f"{where} {name[:200]!r}, which lies outside {root}; copy or link it there."
        raise BadRecordError("outside-image", reason)
    if not os.path.isfile(file):  # unlike Path.is_file, it accepts a name of any length
        reason = f"{where} {name[:200]!r}, which is not a file in {folder}."
        raise BadRecordError("missing-image", reason)
    return file


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = files.parse_json(line)
    except ValueError as error:
        raise BadRecordError("bad-json", f"The line is not JSON: {error}.") from error
    if not isinstance(value, dict):
        reason = f"The line holds a JSON {type(value).__name__}; an object was expected."
        raise BadRecordError("bad-record", reason)
    return value
