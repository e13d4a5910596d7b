"""Rows of embedding and head that are trained whole, in frozen matrices."""

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pardalis.errors import ConfigError
from pardalis.tokens import Vocabulary


def row_ids(names: Sequence[str], vocabulary: Vocabulary) -> list[int]:
    """Return the ids of named tokens, ascending.

    Args:
        names: "all", "special" (all special ids), modalities and special ids.

    Raises:
        ConfigError: the vocabulary has no such name.
    """
    ids: set[int] = set()
    for name in names:
        if name == "all":
            ids |= {*range(vocabulary.size)}
        elif name == "special":
            ids |= {*vocabulary.special.values()}
        elif name in vocabulary.modalities:
            ids |= {*vocabulary.modalities[name]}
        elif name in vocabulary.special:
            ids.add(vocabulary.special[name])
        else:
            known = ("all", "special", *vocabulary.modalities, *vocabulary.special)
            raise ConfigError(
                f"rows names {name!r}, which the vocabulary does not have; it has "
                f"{', '.join(known)}."
            )
    return sorted(ids)


def spans_of(ids: Sequence[int]) -> list[range]:
    """Return ascending ids as ranges."""
    spans = []
    for _, run in groupby(enumerate(ids), key=lambda item: item[1] - item[0]):
        numbers = [i for _, i in run]
        spans.append(range(numbers[0], numbers[-1] + 1))
    return spans


def places_of(ids: Int[Tensor, "..."], spans: Sequence[range]) -> Int[Tensor, "..."]:
    """Return the place of each id among those of the spans; -1 where it is in none."""
    places = torch.full_like(ids, -1)
    before = 0
    for span in spans:
        is_inside = (ids >= span.start) & (ids < span.stop)
        places = torch.where(is_inside, ids - span.start + before, places)
        before += len(span)
    return places


class _Rows(nn.Module):
    """A frozen matrix with trained rows: ``weight`` is the matrix with the rows in it.

    It is in the dtype of products. The stored matrix keeps its name in state dicts. Without rows,
    and while ranks hold parts of it only, ``weight`` is that matrix.
    """

    rows: nn.Parameter | None
    spans: Sequence[range]

    @property
    def frozen(self) -> Tensor:
        """The stored matrix."""
        stored = self._parameters["weight"]
        assert stored is not None
        return stored

    @property
    def weight(self) -> Tensor:
        if "weight" not in self._parameters:
            raise AttributeError("weight")  # it is being registered
        if self.rows is None or hasattr(self.frozen, "placements"):
            return self.frozen
        dtype, device = self.rows.dtype, self.rows.device
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        ids = torch.cat([torch.arange(s.start, s.stop, device=device) for s in self.spans])
        return self.frozen.to(dtype).index_copy(0, ids, self.rows.to(dtype))

    def add_rows(self, spans: Sequence[range]) -> None:
        """Add rows for the ids of some spans, uninitialised; none, if there are no spans."""
        n_rows = sum(map(len, spans))
        stored, self.spans = self.frozen.requires_grad_(False), spans
        rows = torch.empty(n_rows, stored.shape[1], device=stored.device)
        self.register_parameter("rows", nn.Parameter(rows) if n_rows else None)


class RowsEmbedding(_Rows, nn.Embedding):  # type: ignore[override]  # computes its weight
    """A frozen embedding with trained rows.

    Attributes:
        vectors_dtype: dtype of its output, in whatever dtype the matrix is stored.
    """

    vectors_dtype: torch.dtype = torch.float32

    @staticmethod
    def of(
        embedding: nn.Embedding, spans: Sequence[range], vectors_dtype: torch.dtype
    ) -> "RowsEmbedding":
        """Turn an embedding into one with trained rows; a head that is tied to it sees both."""
        embedding.__class__ = RowsEmbedding
        assert isinstance(embedding, RowsEmbedding)
        embedding.add_rows(spans)
        embedding.vectors_dtype = vectors_dtype
        return embedding

    def forward(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        embedded = F.embedding(ids, self.frozen).to(self.vectors_dtype)
        if self.rows is None:
            return embedded
        places = places_of(ids, self.spans)
        own = F.embedding(places.clamp(min=0), self.rows).to(self.vectors_dtype)
        return torch.where((places >= 0)[..., None], own, embedded)


class RowsHead(_Rows, nn.Linear):  # type: ignore[override]  # computes its weight
    """A frozen head with trained rows."""

    @staticmethod
    def of(head: nn.Linear, spans: Sequence[range]) -> "RowsHead":
        """Turn a head into one with trained rows."""
        head.__class__ = RowsHead
        assert isinstance(head, RowsHead)
        head.add_rows(spans)
        return head

    def forward(self, hidden: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        return F.linear(hidden, self.weight.to(hidden.dtype))
