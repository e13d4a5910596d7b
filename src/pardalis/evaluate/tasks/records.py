"""The layout of a table: one file of records, each of which is an item.

By the suffix of the file: an object on each line (``.jsonl``), a list of objects (``.json``), lines
with the names of columns above (``.csv``, ``.tsv``), or Parquet as the Hugging Face hub stores data
sets (``.parquet``, which needs pyarrow).
"""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pardalis.documents import Document, Image, from_data_uri
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.tasks.items import Item
from pardalis.files import parse_json, read_bytes, read_lines
from pardalis.imports import optional_package

_MOST_BYTES = 1 << 32  # of a file that is read whole
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class RecordsConfig:
    """A table of items.

    Raises:
        ConfigError: the file has another suffix.
    """

    kind: Literal["records"] = "records"
    path: Path  # .jsonl, .json, .csv, .tsv or .parquet, relative to the folder of data
    at: str = ""  # dotted key of the list in a .json file; empty: the file is the list
    id: str | None = None  # the field that names an item; None: the number of the record, from 0
    images: tuple[str, ...] = ()  # fields that hold images, or lists of them
    image_folder: Path = Path()  # where paths of images begin, relative to the folder of data

    def __post_init__(self) -> None:
        if self.path.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"path must end in {', '.join(SUFFIXES)}, got {self.path}.")

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def items(self, folder: Path) -> Iterator[Item]:
        for number, record in enumerate(read_records(folder / self.path, self.at)):
            where = f"{folder / self.path}, record {number + 1},"
            fields = dict(record)
            for name in self.images:
                if name not in fields:
                    raise DataError(
                        f"{where} has no {name!r}, which is a field of images; it has "
                        f"{', '.join(sorted(fields))}."
                    )
                fields[name] = to_image(fields[name], folder / self.image_folder, where)
            yield Item(self._id(record, number, where), fields)

    def _id(self, record: Mapping[str, Any], number: int, where: str) -> str:
        if self.id is None:
            return str(number)
        if not isinstance(name := record.get(self.id), str | int):
            raise DataError(f"{where} has no text and no integer {self.id!r} to name the item by.")
        return str(name)


def read_records(path: Path, at: str = "") -> Iterator[dict[str, Any]]:
    """Yield the records of a file, by its suffix.

    Args:
        at: dotted key of the list in a JSON file; empty: the file is the list.

    Raises:
        DataError: the file is missing, or has another form.
        ConfigError: pyarrow is needed and not installed.
    """
    read = {
        ".jsonl": _read_jsonl,
        ".json": lambda path: _read_json(path, at),
        ".csv": lambda path: _read_table(path, ","),
        ".tsv": lambda path: _read_table(path, "\t"),
        ".parquet": _read_parquet,
    }[path.suffix.lower()]
    try:
        yield from read(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def read_json_file(path: Path) -> Any:
    """Return the value of a JSON file of any size; raises DataError if it is missing or none."""
    try:
        return parse_json(read_bytes(path, _MOST_BYTES))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}.") from error


def to_image(value: Any, folder: Path, where: str) -> Any:
    """Return a field's value as an image, or as a list of images.

    Args:
        value: the path of a file, a data URI, bytes, a table with ``bytes`` and ``path`` as the hub
            stores them, or a list of these. None is no image: an empty document.
        folder: where paths begin.

    Raises:
        DataError: it is something else.
    """
    match value:
        case None | "":
            return Document(())
        case Image():
            return value
        case str() if value.startswith("data:"):
            return Image(from_data_uri(value))
        case str() if "\0" not in value:
            return Image(folder / value)
        case bytes():
            return Image(value)
        case {"bytes": bytes(content)}:
            return Image(content)
        case {"path": str(name)} if name:
            return Image(folder / name)
        case list() | tuple():
            return [to_image(each, folder, where) for each in value]
    raise DataError(
        f"{where} has {type(value).__name__} {str(value)[:60]!r} as an image; it must be the path "
        "of a file."
    )


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            try:
                yield _record(parse_json(line))
            except ValueError as error:
                raise DataError(f"{path}:{number} holds no record: {error}.") from error


def _read_json(path: Path, at: str) -> Iterator[dict[str, Any]]:
    value = read_json_file(path)
    for name in filter(None, at.split(".")):
        if not isinstance(value, dict) or name not in value:
            raise DataError(f"{path} has no {name!r} on the way to its records, {at!r}.")
        value = value[name]
    if not isinstance(value, list):
        keys = (
            f" with the keys {', '.join(sorted(value)[:10])}"
            if value and isinstance(value, dict)
            else ""
        )
        raise DataError(
            f"{path} holds a {type(value).__name__}{keys}; a list of records was expected, whose "
            "place `at` gives."
        )
    yield from map(_record, value)


def _read_table(path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    text = read_bytes(path, _MOST_BYTES).decode("utf-8-sig")
    csv.field_size_limit(1 << 27)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{path}:{reader.line_num} has not the {len(reader.fieldnames or ())} columns "
                    "of the first line."
                )
            yield dict(row)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num} is no line of a table: {error}.") from error


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    with optional_package("Reading Parquet", "parquet"):
        import pyarrow
        from pyarrow import parquet
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is no Parquet file that can be read: {error}.") from error


def _record(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"it is a JSON {type(value).__name__}; an object was expected")
    return value
