"""Records of files: JSONL, one list in JSON, Parquet, and the Arrow files of Hugging Face.

A source is a file of records, or a folder that is searched for such files. Few are in memory at a
time, but for those of a JSON file that is one list.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pardalis.documents.document import Document, Omission, Rejection
from pardalis.documents.readers._columns import Place
from pardalis.documents.readers._lines import BadRecordError, objects_of, read_lines
from pardalis.documents.readers._packed import PACKED
from pardalis.documents.readers._tables import distinct
from pardalis.documents.readers._walk import files_below, of_files
from pardalis.documents.readers.recognise import expect, telling
from pardalis.files import is_bare_name, read_json, require_file
from pardalis.imports import optional_package

SUFFIXES = (
    ".jsonl", ".ndjson", *(".jsonl" + end for end in PACKED), ".json", ".json.gz", ".parquet",
    ".arrow",
)  # fmt: skip
_TABLES = (".parquet", ".arrow")

_BATCH = 64  # rows that are in memory at a time
_PEEKED = 5  # records that tell what a file holds
_STATE = "state.json"  # lists the files of a dataset beside it

# What Hugging Face's library writes beside a dataset.
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_PART = re.compile(r"(.*)-\d{5,6}-of-(\d{5,6})(?:-[0-9a-f]{16})?\.parquet")
_LEFT = re.compile(r"(cache-|tmp|indices).*\.arrow")  # of Dataset.map and Dataset.filter

Item = TypeVar("Item")
Parsed = Document | Iterable[Document | Rejection]
Parse = Callable[[dict[str, Any], Place], Parsed]


def read_records(
    path: Path,
    parse: Parse,
    reader: str,
    what: str = "a file of conversations, or a folder of such files,",
    *,
    suffixes: Sequence[str] = SUFFIXES,
    split: str = "",
) -> Iterator[Document | Rejection]:
    """Yield what ``parse`` makes of the records of a file, or of all files below a folder, sorted.

    Args:
        reader: the name under which this is called; a record of another layout is told so.
        split: only files whose name begins so, or that lie in a folder of this name; "": all.

    Raises:
        DataError: there is nothing at the path.
    """
    expect(path, what)
    files = _of_split(path, record_files(path, suffixes), split)
    return of_files(path, files, partial(_of_file, parse=parse, reader=reader))


def _of_split(
    path: Path, files: Iterable[Path | Rejection], split: str
) -> Iterator[Path | Rejection]:
    for file in files:
        if isinstance(file, Path) and split and file != path:
            below = file.relative_to(path)
            if split not in below.parts and not re.match(rf"{re.escape(split)}\b", below.name):
                continue
        yield file


def record_files(path: Path, suffixes: Iterable[str] = SUFFIXES) -> Iterator[Path | Rejection]:
    """Yield the files of records; of a dataset that was saved to disk, those that it lists."""
    listed: tuple[Path, frozenset[str]] | None = None
    parts: dict[tuple[Path, str, str], int] = {}
    for file in files_below(path, suffixes):
        if isinstance(file, Path) and file != path:
            if part := _PART.fullmatch(file.name):
                key = file.parent, part[1], part[2]
                parts[key] = parts.get(key, 0) + 1
            if file.name in _ABOUT or _LEFT.fullmatch(file.name):
                continue
            if file.suffix == ".arrow":
                if listed is None or listed[0] != file.parent:
                    listed = file.parent, _listed(file.parent)
                    for name in sorted(listed[1]):
                        if not os.path.exists(file.parent / name):
                            reason = f"The dataset's {_STATE} lists the file, which is not there."
                            yield Rejection(str(file.parent / name), "missing-file", reason)
                if listed[1] and file.name not in listed[1]:
                    continue
        yield file
    for (folder, start, n_parts), found in parts.items():
        if found < int(n_parts):
            where = f"{folder / start}-*-of-{n_parts}"
            reason = f"{found} of the {int(n_parts)} files of this dataset are there."
            yield Omission(where, "missing-part", reason, int(n_parts) - found)


def _listed(folder: Path) -> frozenset[str]:
    """Return the files that the state of a dataset lists; none if there is no such list."""
    try:
        state = read_json(folder / _STATE)
        return frozenset(
            each["filename"] for each in state["_data_files"] if is_bare_name(each["filename"])
        )
    except (OSError, ValueError, TypeError, KeyError):
        return frozenset()


def _of_file(path: Path, root: Path, parse: Parse, reader: str) -> Iterator[Document | Rejection]:
    stem = path.relative_to(root).with_suffix("").as_posix()

    def parsed(record: dict[str, Any], number: int) -> list[Document | Rejection]:
        place = Place(path.parent, root, f"{stem}:{number}", f"{path}:{number}")
        found = parse(record, place)
        return [found] if isinstance(found, Document) else list(found)

    for item in items_of(path, telling(parsed, reader)):
        if isinstance(item, Rejection):
            yield item
        else:
            yield from item


def items_of(
    path: Path, parse: Callable[[dict[str, Any], int], Item]
) -> Iterator[Item | Rejection]:
    """Yield what ``parse`` makes of each record of a file, whatever its format."""
    name = path.name.lower()
    if name.endswith(_TABLES):
        yield from _of_rows(path, parse)
    elif name.endswith(".json"):
        yield from _of_list(path, parse)
    else:
        yield from read_lines(path, parse)


def _of_list(
    path: Path, parse: Callable[[dict[str, Any], int], Item]
) -> Iterator[Item | Rejection]:
    try:
        records = read_json(path)
    except (OSError, ValueError) as error:
        reason = f"The file is not JSON that can be read ({error}); a large one is read as JSONL."
        yield Rejection(str(path), "bad-json", reason)
        return
    if not isinstance(records, list):
        reason = f"The file holds a JSON {type(records).__name__}; a list was expected."
        yield Rejection(str(path), "bad-record", reason)
        return
    for number, record in enumerate(records, start=1):
        try:
            if not isinstance(record, dict):
                reason = f"The item is a JSON {type(record).__name__}; an object was expected."
                raise BadRecordError("bad-record", reason)
            yield parse(record, number)
        except BadRecordError as error:
            yield Rejection(f"{path}:{number}", error.kind, str(error))


def _of_rows(
    path: Path, parse: Callable[[dict[str, Any], int], Item]
) -> Iterator[Item | Rejection]:
    number = 0
    try:
        for record in rows_of(path):
            number += 1
            try:
                yield parse(record, number)
            except BadRecordError as error:
                yield Rejection(f"{path}:{number}", error.kind, str(error))
    except (OSError, ValueError) as error:
        after = f" after row {number:,}" if number else ""
        what = "encrypted" if "encrypt" in str(error) else "truncated or damaged"
        reason = f"The file is {what}, and cannot be read{after}: {_line(error)}."
        yield Rejection(str(path), "unreadable-file", reason)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet or an Arrow file, of which a few are in memory at a time.

    Raises:
        ConfigError: pyarrow is not installed.
        OSError, ValueError: the file is missing or damaged.
    """
    with optional_package("Reading Parquet", "parquet"):
        import pyarrow
    require_file(path)
    try:
        batches = _of_parquet if path.suffix.lower() == ".parquet" else _of_arrow
        for batch in batches(path):
            yield from _plain_rows(batch)
    except (pyarrow.ArrowException, NotImplementedError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _plain_rows(batch: Any) -> list[dict[str, Any]]:
    """Return the rows of a batch. A cell that has no value in Python is None, and no row is lost.

    Bytes that are no UTF-8 in a column of texts become U+FFFD.
    """
    names = distinct(batch.schema.names)
    try:
        return batch.rename_columns(names).to_pylist()
    except (ValueError, OverflowError):
        columns = [list(map(_plain, column)) for column in batch.columns]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _plain(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        content = cell.as_buffer() if hasattr(cell, "as_buffer") else None
        return content.to_pybytes().decode("utf-8", "replace") if content is not None else None
    except (ValueError, OverflowError):  # a time beyond those of Python, say
        return None


def _of_parquet(path: Path) -> Iterator[Any]:
    from pyarrow import parquet

    with open(path, "rb") as file, parquet.ParquetFile(file, pre_buffer=False) as table:
        yield from table.iter_batches(_BATCH, use_threads=False)


def _of_arrow(path: Path) -> Iterator[Any]:
    """Yield the batches of a stream, as Hugging Face's library writes it, or of a file."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file:
            with pyarrow.ipc.open_file(source) as file:
                batches = (file.get_batch(n) for n in range(file.num_record_batches))
                yield from _checked(batches)
        else:
            with pyarrow.ipc.open_stream(source) as stream:
                yield from _checked(stream)


def _checked(batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        batch.validate(full=True)  # an offset from elsewhere would be an access of any memory
        for start in range(0, batch.num_rows, _BATCH):
            yield batch.slice(start, _BATCH)


def first_records(path: Path) -> list[Mapping[str, Any]]:
    """Return the first records of a file that tell what it holds; none if it cannot be read."""
    name = path.name.lower()
    try:
        if name.endswith(_TABLES):
            return list(islice(rows_of(path), _PEEKED))
        if name.endswith(".json"):
            values = read_json(path)
            values = values if isinstance(values, list) else []
        else:
            values = [value for _, value in islice(objects_of(path), _PEEKED)]
    except (OSError, ValueError):
        return []
    return [each for each in values[:_PEEKED] if isinstance(each, dict)]
