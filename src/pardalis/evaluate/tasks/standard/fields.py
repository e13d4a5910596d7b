"""Taking fields out of records whose form a standard set decides."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pardalis.errors import DataError

Value = TypeVar("Value")


def taken(record: Mapping[str, Any], name: str, kind: type[Value], where: str) -> Value:
    """Return a field of a record; raises DataError if it is missing or of another type."""
    if name not in record:
        shown = ", ".join(sorted(map(str, record))[:12])
        raise DataError(f"{where} has no {name!r}, but {shown}; is it a file of this set?")
    value = record[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DataError(
            f"{where} has {type(value).__name__} {str(value)[:60]!r} as {name!r}; a "
            f"{kind.__name__} was expected."
        )
    return value


def objects(value: Any, where: str) -> list[dict[str, Any]]:
    """Return a list of objects; raises DataError if the value is something else."""
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise DataError(
            f"{where} holds {type(value).__name__}; a list of objects was expected, so is it a "
            "file of this set?"
        )
    return value
