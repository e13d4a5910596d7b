"""Packing: which documents share a row, decided from their lengths alone.

Best-fit-decreasing over whole documents, as in "Fewer truncations improve language modeling"
(arXiv 2404.10830): the longest document first, each into the row that it fills best. Nothing is cut
here, so an image is never cut. What is longer than a row is split before, between images
(:func:`split_long`). A plan is an index; no id is copied.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer

from pardalis.errors import DataError
from pardalis.tokens import Grammar, SpanKind


@dataclass(frozen=True, slots=True)
class Packing:
    """Rows of documents: row r holds the documents ``members[offsets[r]:offsets[r + 1]]``."""

    offsets: Integer[np.ndarray, " offsets"]
    members: Integer[np.ndarray, " documents"]

    @property
    def n_rows(self) -> int:
        return len(self.offsets) - 1

    def row(self, row: int) -> Integer[np.ndarray, " members"]:
        """Return the documents of a row, in ascending order."""
        return self.members[self.offsets[row] : self.offsets[row + 1]]


def best_fit(lengths: Integer[np.ndarray, " documents"], row_tokens: int) -> Packing:
    """Pack every document into exactly one row of at most ``row_tokens``.

    The same result as handling documents one by one, but all documents of one length that meet rows
    of one remaining room are placed at once, so that a million documents take a second or less.

    Raises:
        ValueError: a length is not in 1..row_tokens.
    """
    shortest, longest = (lengths.min(), lengths.max()) if len(lengths) else (1, 1)
    if not 1 <= shortest <= longest <= row_tokens:
        raise ValueError(f"lengths must be in 1..{row_tokens}, got {shortest}..{longest}")
    longest_first = np.argsort(-lengths.astype(np.int64), kind="stable")
    descending = lengths[longest_first]
    ends = np.append(np.flatnonzero(np.diff(descending)) + 1, len(lengths))  # of each equal length
    row_of = np.empty(len(lengths), dtype=np.int64)
    rooms = _Rooms()
    n_rows = first = 0
    for end in ends.tolist():
        while first < end:
            length = int(descending[first])
            found = rooms.take(at_least=length)
            if found is None:  # no open row fits: open as many as the rest of this length needs
                n_new = -(-(end - first) // (row_tokens // length))
                found = row_tokens, np.arange(n_rows, n_rows + n_new)
                n_rows += n_new
            room, rows = found
            # A row that fits best once goes on fitting best until this length no longer fits.
            per_row = room // length
            n_placed = min(end - first, len(rows) * per_row)
            row_of[longest_first[first : first + n_placed]] = rows[np.arange(n_placed) // per_row]
            first += n_placed
            n_full, n_last = divmod(n_placed, per_row)
            rooms.put(room - per_row * length, rows[:n_full])
            rooms.put(room - n_last * length, rows[n_full : n_full + 1])
            rooms.put(room, rows[n_full + 1 :])
    sizes = np.bincount(row_of, minlength=n_rows)
    return Packing(
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        members=np.argsort(row_of, kind="stable"),
    )


class _Rooms:
    """Open rows by their remaining room; the smallest sufficient room is found in a bit mask."""

    def __init__(self) -> None:
        self._mask = 0  # bit r is set while a row with room r is open
        self._rows: dict[int, list[np.ndarray]] = {}

    def put(self, room: int, rows: np.ndarray) -> None:
        if room and len(rows):
            self._rows.setdefault(room, []).append(rows)
            self._mask |= 1 << room

    def take(self, at_least: int) -> tuple[int, np.ndarray] | None:
        """Remove some of the rows that have the smallest room of at least so much."""
        fitting = self._mask >> at_least
        if not fitting:
            return None
        room = at_least + (fitting & -fitting).bit_length() - 1
        rows = self._rows[room].pop()
        if not self._rows[room]:
            self._mask ^= 1 << room
        return room, rows


def split_long(
    ids: Integer[np.ndarray, " n"], row_tokens: int, grammar: Grammar
) -> list[Integer[np.ndarray, " piece"]]:
    """Cut a document into pieces of at most ``row_tokens`` ids, never inside an image.

    Every piece begins with bos; only the last ends with eos, which is not cut off what it ends.

    Args:
        ids: a valid document, bos to eos.

    Raises:
        DataError: an image does not fit into a row.
    """
    if len(ids) <= row_tokens:
        return [ids]
    may_cut = np.ones(len(ids) + 1, dtype=bool)  # before each id, and at the end
    for span in grammar.spans(ids):
        if span.kind is SpanKind.IMAGE:
            may_cut[span.start + 1 : span.stop] = False
        elif span.kind is SpanKind.EOS:
            may_cut[span.start] = False
    cuts = np.flatnonzero(may_cut)
    pieces = []
    start, room = 1, row_tokens - 1  # the body, without the bos that every piece is given
    while start < len(ids):
        end = int(cuts[np.searchsorted(cuts, start + room, side="right") - 1])
        if end <= start:
            needed = int(cuts[np.searchsorted(cuts, start, side="right")]) - start + 1
            raise DataError(
                f"An image at position {start} needs {needed} ids with its <bos>, but a row has "
                f"{row_tokens}; raise row_tokens or use an image tokenizer with fewer codes."
            )
        pieces.append(np.concatenate([ids[:1], ids[start:end]]))
        start = end
    return pieces
