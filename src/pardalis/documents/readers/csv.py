"""Documents from tables in text, CSV and TSV: a row is its texts and then its images.

    image,caption
    owls/1.png,"A snowy owl, at dawn"

The columns are named by options, or have names in use, such as ``caption`` and ``image``. An image
is the path of a file in the source's folder, relative to the table, or a ``data:`` URI.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pardalis.documents.document import Document, Rejection
from pardalis.documents.readers._columns import (
    Place,
    TableOptions,
    row_document,
    unread_columns,
)
from pardalis.documents.readers._lines import BadRecordError
from pardalis.documents.readers._tables import SUFFIXES, read_rows
from pardalis.documents.readers._walk import files_below, of_files
from pardalis.documents.readers.recognise import expect

_EMPTY = "The row has neither text nor images."


def read_csv(path: Path, options: TableOptions | None = None) -> Iterator[Document | Rejection]:
    """Yield the document of each row of a table, or of all tables below a folder.

    Raises:
        DataError: there is nothing at the path.
    """
    expect(path, "a table in CSV or TSV, or a folder of such files,")
    read = partial(_read, options=options or TableOptions())
    return of_files(path, files_below(path, SUFFIXES), read)


def _read(file: Path, root: Path, options: TableOptions) -> Iterator[Document | Rejection]:
    stem = file.relative_to(root).with_suffix("").as_posix()
    is_first = True
    for row in read_rows(file):
        if isinstance(row, Rejection):
            yield row
            continue
        number, record = row
        if not any(record.values()):  # told at once: a small compressed file may hold millions
            yield Rejection(f"{file}:{number}", "empty-document", _EMPTY)
            continue
        try:
            yield row_document(record, Place(file.parent, root, f"{stem}:{number}"), options)
        except BadRecordError as error:
            yield Rejection(f"{file}:{number}", error.kind, str(error))
        else:
            if is_first:
                yield from unread_columns(record, options, str(file))
            is_first = False
