"""Documents from tables in Parquet, and from datasets of Hugging Face: a row is texts, then images.

A source is a file, a folder of files as the hub has them (``data/train-00000-of-00002.parquet``),
or a folder that ``Dataset.save_to_disk`` wrote, in Arrow. An image is bytes, a path in the source's
folder, or ``{"bytes": ..., "path": ...}`` as Hugging Face stores one; a column may have lists.
Columns are named by options, or have names in use, such as ``text`` and ``image``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pardalis.documents.document import Document, Rejection
from pardalis.documents.readers._columns import (
    Place,
    TableOptions,
    row_document,
    unread_columns,
)
from pardalis.documents.readers._lines import BadRecordError
from pardalis.documents.readers._records import read_records
from pardalis.documents.readers.recognise import layout_of

_SUFFIXES = (".parquet", ".arrow")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParquetOptions(TableOptions):
    """Columns, and which files of a dataset are read."""

    # Such as "train": files whose name begins so, or in a folder of this name; "": all of them.
    split: str = ""


def read_parquet(
    path: Path, options: ParquetOptions | None = None
) -> Iterator[Document | Rejection]:
    """Yield the document of each row of a file, or of all files below a folder.

    Raises:
        DataError: there is nothing at the path.
    """
    options = options or ParquetOptions()
    what = "a file of Parquet, or a folder of such files,"
    parse = partial(_row, options=options)
    return read_records(path, parse, "parquet", what, suffixes=_SUFFIXES, split=options.split)


def _row(
    record: dict[str, Any], place: Place, options: TableOptions
) -> Iterator[Document | Rejection]:
    is_chosen = options.text or options.image
    if not is_chosen and layout_of(record) not in ("", "folder"):
        shown = ", ".join(map(str, record))
        raise BadRecordError("bad-record", f"The columns {shown[:200]} are of another layout.")
    yield row_document(record, place, options)
    if place.name.endswith(":1"):
        yield from unread_columns(record, options, place.where.removesuffix(":1"))
