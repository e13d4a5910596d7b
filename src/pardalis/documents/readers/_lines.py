"""Helpers of the readers: JSON objects of a file, and checks that a path exists."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pardalis.documents.document import Rejection
from pardalis.errors import DataError


def json_objects(path: Path) -> Iterator[tuple[str, dict[str, Any] | Rejection]]:
    """Yield ("file:line", object) for each line that is not blank; a rejection if it is bad."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield where, Rejection(where, "bad-json", f"The line is not JSON: {error}.")
                continue
            if isinstance(value, dict):
                yield where, value
            else:
                reason = f"The line holds a JSON {type(value).__name__}; an object was expected."
                yield where, Rejection(where, "bad-record", reason)


def require_file(path: Path, what: str) -> None:
    """Raise DataError unless the path is a file."""
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {found}; {what} was expected there.")


def require_folder(path: Path, what: str) -> None:
    """Raise DataError unless the path is a folder."""
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise DataError(f"{path} {found}; {what} was expected there.")


def is_unicode(text: str) -> bool:
    r"""Return False for text with half of a surrogate pair, which JSON can spell (``"\ud800"``)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
