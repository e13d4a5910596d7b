"""The loaders: a step number in, the batch of that step out.

A position of the data is one integer: step s has the positions from s·batch_rows on. The curriculum
gives the source that serves a position, the order gives one of its rows, and the shards hold its
documents, which the transforms of the source may change anew in each epoch. All are pure functions
of the seed, so a run resumes without stored state, and the sequence does not depend on the number
of ranks that share its positions. For pairs a position is a pair in the place of a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import torch

from pardalis.batch import Batch
from pardalis.data.curriculum import Curriculum, CurriculumStage
from pardalis.data.order import Order
from pardalis.data.shards import Shards
from pardalis.data.transforms import Transforms
from pardalis.errors import ConfigError, DataError
from pardalis.tokens import Encoded

Place: TypeAlias = tuple[str, int, int]
"""Source, epoch and row."""


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
        transforms: of those sources whose documents change when they are loaded.

    Raises:
        ConfigError: a source has no weight, a weight has no source, or :class:`Curriculum` refuses
            the stages.
        DataError: shards were prepared for rows of another length, or hold pairs.
    """

    rows_per_position: ClassVar[int] = 1  # rows of a batch that belong together

    def __init__(
        self,
        sources: Mapping[str, Shards],
        weights: Mapping[str, float] | Sequence[CurriculumStage],
        row_tokens: int,
        batch_rows: int,
        seed: int,
        pad_id: int,
        transforms: Mapping[str, Transforms] | None = None,
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
            self._check_content(name, shards)
        self.batch_rows = batch_rows
        self._sources = dict(sources)
        self._row_tokens = row_tokens
        self._seed = seed
        self._pad_id = pad_id
        self._transforms = dict(transforms or {})
        self._curriculum = Curriculum(weights, sources, batch_rows // self.rows_per_position)
        self._orders = {name: Order(s.n_rows, seed, name) for name, s in sources.items()}

    def _check_content(self, name: str, shards: Shards) -> None:
        if shards.has_pairs:
            raise DataError(
                f"Source {name!r} in {shards.folder} holds pairs of chosen and rejected "
                "completions, which are no rows to imitate; load it with `PairLoader`."
            )

    def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch:
        """Return a rank's share of the rows of a step, whatever was requested before.

        Raises:
            ConfigError: the rows of a step cannot be divided among ``size`` ranks.
            DataError: a transform takes more tokens than it has declared.
        """
        positions, rest = divmod(self.batch_rows, size * self.rows_per_position)
        if rest:
            each = (
                "" if self.rows_per_position == 1 else f"{self.rows_per_position} rows for each of "
            )
            raise ConfigError(
                f"batch_rows ({self.batch_rows}) must be a multiple of {each}the {size} ranks that "
                "share them."
            )
        first = (step * size + rank) * positions
        return self.at(range(first, first + positions))

    def at(self, positions: Sequence[int]) -> Batch:
        """Return the rows at some positions."""
        return self._build([self._find(position) for position in positions])

    def row(self, source: str, row: int, epoch: int = 0) -> Batch:
        """Return one row of a source as an epoch has it, for inspection."""
        return self._build([(source, epoch, row)])

    def documents(self, source: str, row: int, epoch: int = 0) -> list[Encoded]:
        """Return the documents of a row as an epoch has them."""
        transforms = self._transforms.get(source)
        return documents_of(self._sources[source], row, transforms, self._seed, epoch)

    def locate(self, position: int) -> Location:
        """Say where the row at a position comes from."""
        source, epoch, row = self._find(position)
        shards = self._sources[source]
        names = tuple(shards.names[document] for document in shards.row(row))
        return Location(source, epoch, row, names)

    def _find(self, position: int) -> Place:
        source, own_position = self._curriculum.at(position)
        return source, *self._orders[source].at(own_position)

    def _build(self, places: Sequence[Place]) -> Batch:
        rows = [self.documents(source, row, epoch) for source, epoch, row in places]
        for (source, _, row), documents in zip(places, rows, strict=True):
            if (n_tokens := sum(map(len, documents))) > self._row_tokens:
                raise DataError(
                    f"Row {row} of source {source!r} has {n_tokens} tokens after its transforms, "
                    f"but row_tokens is {self._row_tokens}; prepare the source again with these "
                    "transforms."
                )
        return to_batch(rows, self._row_tokens, self._pad_id)


class PairLoader(Loader):
    """Pairs of chosen and rejected completions as batches.

    Rows 2i and 2i + 1 of a batch are chosen and rejected of pair i, one document each. A position
    is a pair, so both are in the same batch and on the same rank. Micro-batches of an even number
    of rows keep them together too.

    Args:
        sources: opened shards of pairs by name.
        batch_rows: rows of a step, over all ranks: two for each pair.

    The other arguments are those of :class:`Loader`, without ``transforms``.

    Raises:
        DataError: shards hold rows; else as :class:`Loader`.
    """

    rows_per_position = 2

    def _check_content(self, name: str, shards: Shards) -> None:
        if not shards.has_pairs:
            raise DataError(
                f"Source {name!r} in {shards.folder} holds no pairs of chosen and rejected "
                "completions; write them with the reader 'pairs'."
            )

    def _build(self, places: Sequence[Place]) -> Batch:
        rows = [
            [document]
            for source, epoch, row in places
            for document in self.documents(source, row, epoch)
        ]
        return to_batch(rows, self._row_tokens, self._pad_id)


def documents_of(
    shards: Shards, row: int, transforms: Transforms | None, seed: int, epoch: int
) -> list[Encoded]:
    """Return the documents of a row as an epoch has them; ``seed`` is that of the loader."""
    numbers = shards.row(row)
    documents = [shards.document(number) for number in numbers]
    if not transforms:
        return documents
    return [
        transforms.load(document, shards.names[number], seed, epoch)
        for number, document in zip(numbers, documents, strict=True)
    ]


def to_batch(rows: Sequence[Sequence[Encoded]], row_tokens: int, pad_id: int) -> Batch:
    """Lay the documents of each row one behind the other.

    The weight of a position is that of the next id, which is its target; the last id of a document
    has no target.
    """
    shape = (len(rows), row_tokens)
    ids = np.full(shape, pad_id, dtype=np.int64)
    targets = np.full(shape, pad_id, dtype=np.int64)
    weights = np.zeros(shape, dtype=np.float32)
    positions = np.zeros(shape, dtype=np.int64)
    documents = np.full(shape, -1, dtype=np.int64)
    for b, members in enumerate(rows):
        lengths = np.array([len(member) for member in members])
        ends = np.cumsum(lengths)
        row, n = Encoded.joined(*members), ends[-1]
        ids[b, :n] = row.ids
        targets[b, : n - 1] = row.ids[1:]
        targets[b, ends - 1] = pad_id  # the next token is of another document
        weights[b, : n - 1] = row.weights[1:]
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
