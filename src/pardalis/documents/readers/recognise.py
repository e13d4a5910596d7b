"""Which reader a file or a record is for, so that who chose another one is told."""

import os
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pardalis.documents.readers._lines import BadRecordError
from pardalis.documents.readers._packed import PACKED
from pardalis.documents.readers._walk import Folder, walk
from pardalis.errors import ConfigError, DataError
from pardalis.files import found_at

Record: TypeAlias = dict[str, Any]
Where = TypeVar("Where")
Item = TypeVar("Item")

# What a layout is called in a sentence, by its reader.
_CALLED = {
    "folder": "a folder of images", "html": "HTML pages", "mhtml": "a saved page", "epub": "a book",
    "jsonl": "documents in JSONL",
    "pairs": "pairs of completions", "chat": "messages of conversations",
    "sharegpt": "conversations of ShareGPT or LLaVA", "cauldron": "The Cauldron",
    "obelics": "OBELICS", "mmc4": "MMC4", "text": "plain text", "markdown": "Markdown",
    "csv": "a table in CSV or TSV", "pdf": "PDF", "webdataset": "a WebDataset archive",
    "parquet": "a table in Parquet, or a dataset of Hugging Face",
}  # fmt: skip

_OF_SUFFIX = {
    ".html": "html", ".htm": "html", ".xhtml": "html", ".mhtml": "mhtml", ".mht": "mhtml",
    ".epub": "epub", ".txt": "text", ".md": "markdown",
    ".markdown": "markdown", ".csv": "csv", ".tsv": "csv", ".pdf": "pdf", ".tar": "webdataset",
    ".tgz": "webdataset", ".png": "folder", ".jpg": "folder", ".jpeg": "folder", ".webp": "folder",
}  # fmt: skip
_OF_RECORDS = (
    ".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".json.gz", *(".jsonl" + e for e in PACKED),
)  # fmt: skip
_OF_KEYS = (
    ("jsonl", frozenset({"segments"})),
    ("jsonl", frozenset({"task"})),
    ("pairs", frozenset({"chosen", "rejected"})),
    ("chat", frozenset({"messages"})),
    ("sharegpt", frozenset({"conversations"})),
    ("mmc4", frozenset({"text_list", "image_info"})),
    ("folder", frozenset({"images", "annotations"})),  # of COCO
)
_MOST_FILES = 200  # of a folder, by which it is known


def layout_of(record: Mapping[str, Any]) -> str:
    """Return the reader of a record by its keys; "" if none is known."""
    for reader, keys in _OF_KEYS:
        if keys <= record.keys():
            return reader
    if {"images", "texts"} <= record.keys():
        texts = record["texts"]
        is_of_turns = isinstance(texts, list) and any(isinstance(each, dict) for each in texts)
        return "cauldron" if is_of_turns else "obelics"
    return "folder" if "file_name" in record and len(record) > 1 else ""


def _named(what: str, reader: str) -> str:
    return f"{what} looks like {_CALLED[reader]}; reader = {reader!r} reads it."


def reader_of(path: Path) -> str:
    """Return the reader that a file or a folder is for; "" if none is known."""
    from pardalis.documents.readers._columns import TEXT_NAMES, first_of
    from pardalis.documents.readers._records import first_records

    if path.is_dir():
        return _of_folder(path)
    name = path.name.lower()
    if name.endswith((".tar.gz", ".tar.zst")):
        return "webdataset"
    if not name.endswith(_OF_RECORDS):
        return _OF_SUFFIX.get(path.suffix.lower(), "")
    layouts = [layout_of(record) for record in first_records(path)]
    known = next(filter(None, layouts), "")
    if known or not layouts:
        return known
    if name.endswith((".parquet", ".arrow")):
        return "parquet"
    return "jsonl" if any(first_of(record, TEXT_NAMES) for record in first_records(path)) else ""


def _of_folder(path: Path) -> str:
    """Return the reader of most files of a folder, of which the first ones are looked at."""
    files = (
        found.path / name
        for found in walk(path, lambda _: True)
        if isinstance(found, Folder)
        for name in found.names
    )
    counts: dict[str, int] = {}
    for file in islice(files, _MOST_FILES):
        if os.path.isfile(file) and (reader := reader_of(file)):
            counts[reader] = counts.get(reader, 0) + 1
    if "folder" in counts:  # the texts are captions of the images, or the images are the pages'
        counts.pop("text", None)
        if "html" in counts or "markdown" in counts:
            del counts["folder"]
    return max(counts, key=lambda reader: counts[reader], default="")


def hint_at(path: Path, reader: str = "") -> str:
    """Return a sentence that names the reader of what is at a path, if it is known and another."""
    try:
        found = reader_of(path) if path.exists() else ""
    except (OSError, ConfigError):  # a package is missing, say
        return ""
    return "" if found in ("", reader) else f" {_named(str(path), found)}"


def expect(path: Path, what: str, *, is_folder: bool | None = None) -> None:
    """Raise DataError unless there is a file or a folder at the path of a source.

    Args:
        what: what was expected there.
        is_folder: whether only a folder will do, or only a file; None: either will.
    """
    is_file, is_dir = path.is_file(), path.is_dir()
    if (is_file and is_folder is not True) or (is_dir and is_folder is not False):
        return
    raise DataError(f"{path} {found_at(path)}; {what} was expected there.{hint_at(path)}")


def telling(parse: Callable[[Record, Where], Item], reader: str) -> Callable[[Record, Where], Item]:
    """Return a function that parses a record, and says so of one that is for another reader."""

    def run(record: Record, where: Where) -> Item:
        try:
            return parse(record, where)
        except BadRecordError as error:
            found = layout_of(record)
            hint = "" if found in ("", reader) else f" {_named('The record', found)}"
            raise BadRecordError(error.kind, f"{error}{hint}") from error

    return run
