"""The input of a training step: packed rows as tensors of one shape, aligned by position."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Soft:
    """Vectors that replace the embeddings of some positions, such as those of a vision encoder."""

    positions: Int[Tensor, "B S"]  # the index in its row of each vector; -1: unused
    values: Float[Tensor, "B S D"]

    def put_into(self, embedded: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return embeddings with the vectors in their places; differentiable in both."""
        places = self.positions.where(self.positions >= 0, embedded.shape[1])[..., None]
        padded = F.pad(embedded, (0, 0, 0, 1))  # unused vectors go behind the last position
        values = self.values.to(embedded.dtype)
        return padded.scatter(1, places.expand_as(values), values)[:, :-1]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of token ids with everything that the model and the objective need.

    The first dimension of every tensor counts the rows.
    """

    ids: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]  # the next id of the same document
    weights: Float[Tensor, "B T"]  # weight of each target in the loss; 0: no loss
    positions: Int[Tensor, "B T"]  # restart at 0 in each document
    documents: Int[Tensor, "B T"]  # number of the document inside its row; -1 at padding
    soft: Soft | None = None  # vectors in place of some embeddings
    extra: dict[str, Tensor] = field(default_factory=dict)  # what one objective needs, by name

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device."""
        return self.map(lambda tensor: tensor.to(device))

    def rows(self, which: slice) -> "Batch":
        """Return some of the rows."""
        return self.map(lambda tensor: tensor[which])

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with a function applied to each of its tensors."""
        soft = self.soft
        return Batch(
            function(self.ids),
            function(self.targets),
            function(self.weights),
            function(self.positions),
            function(self.documents),
            None if soft is None else Soft(function(soft.positions), function(soft.values)),
            {name: function(tensor) for name, tensor in self.extra.items()},
        )
