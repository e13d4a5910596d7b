"""Rows of tables in text: CSV, TSV, and what spreadsheets call so."""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pardalis.documents.document import Rejection
from pardalis.documents.readers._packed import PACKED
from pardalis.documents.readers._text import text_lines

_ENDS = (".csv", ".tsv", ".tab")
SUFFIXES = (*_ENDS, *(end + packed for end in _ENDS for packed in PACKED))

_DELIMITERS = ",\t;|"
_STATED = re.compile(r"\ufeff?\"?sep=([^\w\s\"]|\t)\"?\s*", re.IGNORECASE)
_LONGEST_FIELD = 1 << 25  # characters; a quote that is not closed takes what follows


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, str]] | Rejection]:
    """Yield the number of the line at which each row ends, and its fields by the first line.

    The delimiter is the one of tab, comma, semicolon and bar that the first line has most of, or
    the one that a line ``sep=;`` before it states. A field in quotes may hold line feeds.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    damaged: list[int] = []
    try:
        lines = _Lines(_lines(path, damaged))
        head = next((line for line in lines if line.strip("\ufeff \t\r\n")), "")
        if stated := _STATED.fullmatch(head):  # as Excel reads it
            head = next(lines, "")
        delimiter = stated[1] if stated else max(_DELIMITERS, key=head.count)
        # Spaces after a delimiter may stand before the quotes of a field.
        how: Any = {"delimiter": delimiter, "skipinitialspace": True}
        names = _header(chain([head], lines), how)
        if not names:
            reason = "The file has no first line that names its columns."
            yield Rejection(str(path), "bad-table", reason)
            return
        reader = csv.reader(lines, **how)
        while True:
            first = lines.number + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Rejection(
                    f"{path}:{lines.number}", "bad-row", f"The line is no row of a table: {error}."
                )
                continue
            number = lines.number
            if damaged:
                reason = "The row has bytes that are no text in any encoding."
                yield Rejection(f"{path}:{number}", "bad-row", reason)
                damaged.clear()
            elif row and len(row) != len(names):
                reason = f"The row has {len(row)} fields, and the first line names {len(names)}."
                if number > first:
                    reason += f" It goes from line {first} to {number}; is a quote not closed?"
                yield Rejection(f"{path}:{number}", "bad-row", reason)
            elif row:
                yield number, dict(zip(names, row, strict=True))
    except ValueError as error:
        yield Rejection(str(path), "long-line", f"The file cannot be read further: {error}.")
    except OSError as error:
        yield Rejection(str(path), "unreadable-file", f"The file cannot be read: {error}.")


class _Lines:
    """Lines, of which the number of the last one is known."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        return line


def _header(lines: Iterator[str], how: Any) -> list[str]:
    """Return the names of columns, which differ: of several equal ones the first keeps its name."""
    try:
        names = [name.strip() for name in next(csv.reader(lines, **how), [])]
    except csv.Error:
        return []
    return distinct(names) if any(names) else []


def distinct(names: Sequence[str]) -> list[str]:
    """Return names with a number behind those that stand before, as text.2."""
    counts: Counter[str] = Counter()
    found = []
    for name in names:
        counts[name] += 1
        found.append(f"{name}.{counts[name]}" if counts[name] > 1 else name)
    return found


def _lines(path: Path, damaged: list[int]) -> Iterator[str]:
    for number, line in enumerate(text_lines(path), start=1):
        if isinstance(line, ValueError):
            damaged.append(number)
        else:
            yield line.replace("\0", "").replace("\r\n", "\n")
