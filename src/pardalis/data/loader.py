"""The loader: a step number in, the batch of that step out.

A position of the data is one integer: step s has the positions from s·batch_rows on. The curriculum
gives the source that serves a position, the order gives one of its rows, and the shards hold its
documents. All are pure functions of the seed, so a run resumes without stored state, and
the sequence does not depend on the number of ranks that share its positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pardalis.batch import Batch
from pardalis.data.curriculum import Curriculum, CurriculumStage
from pardalis.data.order import Order
from pardalis.data.shards import Shards
from pardalis.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Location:
    """Where the row at a position comes from."""

    source: str
    epoch: int  # complete passes over the source before
    row: int
    documents: tuple[str, ...]  # names


class Loader:
    """Rows of several sources as batches.

    Args:
        sources: opened shards by name.
        weights: shares of rows by source, of which only ratios matter; or the stages of a
            curriculum.
        row_tokens: tokens of a row, for which the shards must have been prepared.
        batch_rows: rows of a step, over all ranks.
        seed: the root seed of the run.
        pad_id: fills the end of a row.

    Raises:
        ConfigError: a source has no weight, a weight has no source, or :class:`Curriculum` refuses
            the stages.
        DataError: shards were prepared for rows of another length.
    """

    def __init__(
        self,
        sources: Mapping[str, Shards],
        weights: Mapping[str, float] | Sequence[CurriculumStage],
        row_tokens: int,
        batch_rows: int,
        seed: int,
        pad_id: int,
    ) -> None:
        if isinstance(weights, Mapping):
            weights = [CurriculumStage(from_step=0, weights=dict(weights))]
        for name, shards in sources.items():
            if shards.row_tokens != row_tokens:
                raise DataError(
                    f"Source {name!r} in {shards.folder} was prepared for rows of "
                    f"{shards.row_tokens} tokens, but row_tokens is {row_tokens}; prepare it again "
                    f"with row_tokens = {row_tokens}."
                )
        self.batch_rows = batch_rows
        self._sources = dict(sources)
        self._row_tokens = row_tokens
        self._pad_id = pad_id
        self._curriculum = Curriculum(weights, sources, batch_rows)
        self._orders = {name: Order(s.n_rows, seed, name) for name, s in sources.items()}

    def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch:
        """Return a rank's share of the rows of a step, whatever was requested before.

        Raises:
            ConfigError: the rows of a step are not a multiple of ``size``.
        """
        rows, rest = divmod(self.batch_rows, size)
        if rest:
            raise ConfigError(
                f"batch_rows ({self.batch_rows}) must be a multiple of the {size} ranks that share "
                "them."
            )
        first = step * self.batch_rows + rank * rows
        return self.at(range(first, first + rows))

    def at(self, positions: Sequence[int]) -> Batch:
        """Return the rows at some positions."""
        rows = []
        for position in positions:
            source, _, row = self._find(position)
            rows.append((source, row))
        return self._build(rows)

    def row(self, source: str, row: int) -> Batch:
        """Return one row of a source, for inspection."""
        return self._build([(source, row)])

    def locate(self, position: int) -> Location:
        """Say where the row at a position comes from."""
        source, epoch, row = self._find(position)
        shards = self._sources[source]
        names = tuple(shards.names[document] for document in shards.row(row))
        return Location(source, epoch, row, names)

    def _find(self, position: int) -> tuple[str, int, int]:
        source, own_position = self._curriculum.at(position)
        return source, *self._orders[source].at(own_position)

    def _build(self, rows: Sequence[tuple[str, int]]) -> Batch:
        shape = (len(rows), self._row_tokens)
        ids = np.full(shape, self._pad_id, dtype=np.int64)
        targets = np.full(shape, self._pad_id, dtype=np.int64)
        weights = np.zeros(shape, dtype=np.float32)
        positions = np.zeros(shape, dtype=np.int64)
        documents = np.full(shape, -1, dtype=np.int64)
        for b, (source, row) in enumerate(rows):
            shards = self._sources[source]
            members = [shards.document(document) for document in shards.row(row)]
            lengths = np.array([len(member) for member in members])
            ends = np.cumsum(lengths)
            n = ends[-1]
            ids[b, :n] = np.concatenate(members)
            targets[b, : n - 1] = ids[b, 1:n]
            targets[b, ends - 1] = self._pad_id  # the next token is of another document
            weights[b, :n] = 1
            weights[b, ends - 1] = 0
            positions[b, :n] = np.arange(n) - np.repeat(ends - lengths, lengths)
            documents[b, :n] = np.repeat(np.arange(len(members)), lengths)
        return Batch(
            ids=torch.from_numpy(ids),
            targets=torch.from_numpy(targets),
            weights=torch.from_numpy(weights),
            positions=torch.from_numpy(positions),
            documents=torch.from_numpy(documents),
        )
