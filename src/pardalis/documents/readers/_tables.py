"""Rows of tables in text: CSV, TSV, and what spreadsheets call so."""

import csv
from collections.abc import Iterator
from pathlib import Path

from pardalis.documents.document import Rejection
from pardalis.documents.readers._text import text_lines

SUFFIXES = (".csv", ".tsv", ".tab")

_DELIMITERS = ",\t;|"
_LONGEST_FIELD = 1 << 25  # characters; a quote that is not closed takes what follows


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, str]] | Rejection]:
    """Yield the number of the line at which each row ends, and its fields by the first line.

    The delimiter is the one of tab, comma, semicolon and bar that the first line has most of. A
    field in quotes may hold line feeds.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    damaged: list[int] = []
    try:
        lines = _lines(path, damaged)
        head = next(lines, "")
        delimiter = max(_DELIMITERS, key=head.count)
        names = _header(head, delimiter)
        if not names:
            reason = "The file has no first line that names its columns."
            yield Rejection(str(path), "bad-table", reason)
            return
        reader = csv.reader(lines, delimiter=delimiter)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                where = f"{path}:{reader.line_num + 1}"
                yield Rejection(where, "bad-row", f"The line is no row of a table: {error}.")
                continue
            number = reader.line_num + 1
            if damaged:
                reason = "The row has bytes that are no text in any encoding."
                yield Rejection(f"{path}:{number}", "bad-row", reason)
                damaged.clear()
            elif row and len(row) != len(names):
                reason = f"The row has {len(row)} fields, and the first line names {len(names)}."
                yield Rejection(f"{path}:{number}", "bad-row", reason)
            elif any(row):
                yield number, dict(zip(names, row, strict=True))
    except ValueError as error:
        yield Rejection(str(path), "long-line", f"The file cannot be read further: {error}.")
    except OSError as error:
        yield Rejection(str(path), "unreadable-file", f"The file cannot be read: {error}.")


def _header(line: str, delimiter: str) -> list[str]:
    try:
        names = next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []
    return [name.strip() for name in names] if any(names) else []


def _lines(path: Path, damaged: list[int]) -> Iterator[str]:
    for number, line in enumerate(text_lines(path), start=1):
        if isinstance(line, ValueError):
            damaged.append(number)
        else:
            yield line.replace("\0", "")
