"""The input of a training step: packed rows as tensors of one shape, aligned by position."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of token ids with everything that the model and the objective need."""

    ids: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]  # the next id of the same document
    weights: Float[Tensor, "B T"]  # weight of each target in the loss; 0: no loss
    positions: Int[Tensor, "B T"]  # restart at 0 in each document
    documents: Int[Tensor, "B T"]  # number of the document inside its row; -1 at padding

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with a function applied to each of its tensors."""
        return Batch(**{field.name: function(getattr(self, field.name)) for field in fields(self)})
