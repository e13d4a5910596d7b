"""Documents, or whatever a line stands for, from the JSON objects of a file, one a line."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pardalis.documents.document import Rejection
from pardalis.files import parse_json

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
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield parse(_object(line), number)
            except BadRecordError as error:
                yield Rejection(f"{path}:{number}", error.kind, str(error))


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except ValueError as error:
        raise BadRecordError("bad-json", f"The line is not JSON: {error}.") from error
    if not isinstance(value, dict):
        reason = f"The line holds a JSON {type(value).__name__}; an object was expected."
        raise BadRecordError("bad-record", reason)
    return value
