"""Packing: which documents share a row, decided from their lengths alone.

Best-fit-decreasing over whole documents, as in "Fewer truncations improve language modeling"
(arXiv 2404.10830): the longest document first, each into the row that it fills best. Documents are
not cut here; those longer than a row are split before, outside images (:func:`split_long`). A plan
is an index; no token id is copied.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer

from pardalis.errors import DataError
from pardalis.tokens import Encoded, Grammar, SpanKind


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

    The result is that of placing documents one by one. All documents of one length are placed at
    once in rows of equal remaining space, so that a million documents take a second or less.

    Raises:
        ValueError: a length is not in 1..row_tokens.
    """
    shortest, longest = (lengths.min(), lengths.max()) if len(lengths) else (1, 1)
    if not 1 <= shortest <= longest <= row_tokens:
        raise ValueError(f"lengths must be in 1..{row_tokens}, got {shortest}..{longest}")
    longest_first = np.argsort(-lengths.astype(np.int64), kind="stable")
    descending = lengths[longest_first]
    ends = np.append(np.flatnonzero(np.diff(descending)) + 1, len(lengths))
    row_of = np.empty(len(lengths), dtype=np.int64)
    open_rows = _OpenRows()
    n_rows = first = 0
    for end in ends.tolist():
        while first < end:
            length = int(descending[first])
            found = open_rows.take(at_least=length)
            if found is None:  # no open row fits: open as many as the rest of this length needs
                n_new = -(-(end - first) // (row_tokens // length))
                found = row_tokens, np.arange(n_rows, n_rows + n_new)
                n_rows += n_new
            space, rows = found
            # A row that fits best once goes on fitting best until this length no longer fits.
            per_row = space // length
            n_placed = min(end - first, len(rows) * per_row)
            row_of[longest_first[first : first + n_placed]] = rows[np.arange(n_placed) // per_row]
            first += n_placed
            n_full, n_last = divmod(n_placed, per_row)
            open_rows.put(space - per_row * length, rows[:n_full])
            open_rows.put(space - n_last * length, rows[n_full : n_full + 1])
            open_rows.put(space, rows[n_full + 1 :])
    sizes = np.bincount(row_of, minlength=n_rows)
    return Packing(
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        members=np.argsort(row_of, kind="stable"),
    )


def two_by_two(n_documents: int) -> Packing:
    """Keep each two documents together, whatever their lengths: row r has 2r and 2r + 1.

    Raises:
        ValueError: the number of documents is odd.
    """
    if n_documents % 2:
        raise ValueError(f"pairs need an even number of documents, got {n_documents}")
    return Packing(
        offsets=np.arange(0, n_documents + 1, 2, dtype=np.int64),
        members=np.arange(n_documents, dtype=np.int64),
    )


class _OpenRows:
    """Rows by their remaining space; a bit mask finds the smallest sufficient space."""

    def __init__(self) -> None:
        self._mask = 0  # bit s is set while there is a row with s tokens of space
        self._rows: dict[int, list[np.ndarray]] = {}

    def put(self, space: int, rows: np.ndarray) -> None:
        if space and len(rows):
            self._rows.setdefault(space, []).append(rows)
            self._mask |= 1 << space

    def take(self, at_least: int) -> tuple[int, np.ndarray] | None:
        """Remove and return some of the rows with the smallest space that is large enough."""
        fitting = self._mask >> at_least
        if not fitting:
            return None
        space = at_least + (fitting & -fitting).bit_length() - 1
        rows = self._rows[space].pop()
        if not self._rows[space]:
            self._mask ^= 1 << space
        return space, rows


def split_long(document: Encoded, row_tokens: int, grammar: Grammar) -> list[Encoded]:
    """Split a document into parts of at most ``row_tokens`` ids, never inside an image.

    Every part begins with bos, if the document does. Only the last ends with eos, which never
    stands in a part alone. Every id keeps its weight.

    Args:
        document: a valid one, bos to eos.

    Raises:
        DataError: an image does not fit into a row.
    """
    if len(document) <= row_tokens:
        return [document]
    ids = document.ids
    may_cut = np.ones(len(ids) + 1, dtype=bool)  # before each id, and at the end
    for span in grammar.spans(ids):
        if span.kind is SpanKind.IMAGE:
            may_cut[span.start + 1 : span.stop] = False
        elif span.kind is SpanKind.EOS:
            may_cut[span.start] = False
    cuts = np.flatnonzero(may_cut)
    parts = []
    opening = grammar.opening_length(ids)  # with which every part begins
    start, space = opening, row_tokens - opening
    while start < len(ids):
        end = int(cuts[np.searchsorted(cuts, start + space, side="right") - 1])
        if end <= start:
            needed = int(cuts[np.searchsorted(cuts, start, side="right")]) - start + opening
            raise DataError(
                f"An image at position {start} needs {needed} tokens with its <bos>, but a row has "
                f"{row_tokens}; raise row_tokens or use an image tokenizer with fewer codes."
            )
        parts.append(Encoded.joined(document[:opening], document[start:end]))
        start = end
    return parts
