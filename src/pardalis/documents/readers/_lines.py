"""Documents, or whatever a line stands for, from the JSON objects of a file, one a line.

And what all readers ask of the names of images in documents that somebody else may have written.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pardalis import files
from pardalis.documents.document import Rejection
from pardalis.documents.readers._text import text_lines

Item = TypeVar("Item")

_MOST_OF_LIST = 1 << 26  # characters of a list in a file of lines
_DECODER = json.JSONDecoder()
_NOT_BLANK = re.compile(r"[^\s\ufeff]")


class BadRecordError(Exception):
    """A record that holds no document; ``kind`` is that of its :class:`Rejection`.

    The reason becomes one line of text, whatever it quotes.
    """

    def __init__(self, kind: str, reason: str) -> None:
        line = " ".join(reason.split())
        super().__init__(line.encode("utf-8", "backslashreplace").decode())
        self.kind = kind


def read_lines(
    path: Path, parse: Callable[[dict[str, Any], int], Item]
) -> Iterator[Item | Rejection]:
    """Yield what ``parse`` makes of the object and number of each line that is not blank.

    A file that is one list in JSON, or objects of several lines each, is read as these objects.
    """
    of_empty: tuple[str, str] | None = None  # a small compressed file may have millions of {}
    try:
        for number, value in objects_of(path):
            if not value and of_empty:
                yield Rejection(f"{path}:{number}", *of_empty)
                continue
            try:
                if isinstance(value, BadRecordError):
                    raise value
                yield parse(value, number)
            except BadRecordError as error:
                if not value:
                    of_empty = error.kind, str(error)
                yield Rejection(f"{path}:{number}", error.kind, str(error))
    except ValueError as error:
        reason = f"The file cannot be read further: {error}."
        yield Rejection(str(path), "long-line", reason)
    except OSError as error:
        yield Rejection(str(path), "unreadable-file", f"The file cannot be read: {error}.")


def objects_of(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRecordError]]:
    """Yield the number and the object of each line, or what is wrong with it.

    Raises:
        OSError, ValueError: as :func:`text_lines`.
    """
    is_first = True
    for number, line in enumerate(text_lines(path), start=1):
        if isinstance(line, str):
            line = line.strip("\ufeff \t\r\n")  # marks stand where files were joined
            if line in ("", "[", "]") and not (is_first and line):
                continue
        try:
            value: dict[str, Any] | BadRecordError = _object(line)
        except BadRecordError as error:
            if is_first and isinstance(line, str) and (whole := _whole(path)):
                yield from enumerate(whole, start=1)
                return
            value = error
        is_first = False
        if line != "[":
            yield number, value


def _whole(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file that is one list, or one object after the other; [] if not."""
    texts: list[str] = []
    length = 0
    for line in text_lines(path):
        length += len(line) if isinstance(line, str) else _MOST_OF_LIST
        if length > _MOST_OF_LIST:
            return []
        texts.append(str(line))
    text = "".join(texts)
    values: list[Any] = []
    at = 0
    while rest := _NOT_BLANK.search(text, at):
        try:
            value, at = _DECODER.raw_decode(text, rest.start())
            files.check_depth(value)
        except (ValueError, RecursionError):
            return []
        values.append(value)
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    return values if all(isinstance(each, dict) for each in values) else []


def is_inside(file: Path, root: Path) -> bool:
    """Return whether a file lies in a folder, as its path is written and behind any link.

    Documents that somebody else made must not bring private files into training, and archives and
    repositories hold links. The folder may be a snapshot of Hugging Face's cache, whose files are
    links to the folder "blobs" beside its snapshots.
    """
    if not _is_below(os.path.abspath(file), os.path.abspath(root)):
        return False
    real, folder = os.path.realpath(file), _real(os.path.abspath(root))
    return _is_below(real, folder) or any(
        place.name == "snapshots" and Path(real).parent == place.parent / "blobs"
        for place in (Path(folder), *Path(folder).parents)
    )


@lru_cache(maxsize=64)
def _real(folder: str) -> str:
    """Return the path of a folder that many files are looked for in."""
    return os.path.realpath(folder)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def outside(root: Path) -> str:
    """Return the rest of a sentence about what lies outside a source: what to do."""
    return f"which lies outside {root}; copy it there, or name its folder as a source"


def find_image(name: str, folder: Path, where: str, root: Path | None = None) -> Path:
    """Return the file that a record of ``folder`` names; ``where`` begins the sentence of an error.

    Args:
        root: the source's folder, in which the file must lie; None: it may lie anywhere.

    Raises:
        BadRecordError: there is no such file, or it lies outside ``root``.
    """
    file = folder / name
    if root is not None and not is_inside(file, root):
        reason = f"{where} {name[:200]!r}, {outside(root)}."
        raise BadRecordError("outside-image", reason)
    if not os.path.isfile(file):  # unlike Path.is_file, it accepts a name of any length
        reason = f"{where} {name[:200]!r}, which is not a file in {folder}."
        raise BadRecordError("missing-image", reason)
    return file


def _object(line: str | ValueError) -> dict[str, Any]:
    try:
        if isinstance(line, ValueError):
            raise line
        value = files.parse_json(line.removesuffix(","))  # as within a list
    except ValueError as error:
        raise BadRecordError("bad-json", f"The line is not JSON: {error}.") from error
    if not isinstance(value, dict):
        reason = f"The line holds a JSON {type(value).__name__}; an object was expected."
        raise BadRecordError("bad-record", reason)
    return value
