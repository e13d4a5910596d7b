"""An encoded document: token ids, and how much each of them counts in the loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Integer

Ids: TypeAlias = Sequence[int] | Integer[np.ndarray, " _"]
"""Token ids in any form."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Token ids with the weight of each as a target in the loss; 0: the model does not learn it."""

    ids: Integer[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Encoded):
            return NotImplemented
        return np.array_equal(self.ids, other.ids) and np.array_equal(self.weights, other.weights)

    __hash__ = None  # type: ignore[assignment]  # arrays have none

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "Encoded":
        return Encoded(self.ids[part], self.weights[part])

    @property
    def is_weighted(self) -> bool:
        """Whether a weight differs from 1."""
        return bool((self.weights != 1).any())

    @classmethod
    def of(cls, ids: Ids) -> "Encoded":
        """Return ids that all have the weight 1."""
        return cls(np.asarray(ids), np.ones(len(ids), dtype=np.float32))

    @classmethod
    def joined(cls, *parts: "Encoded") -> "Encoded":
        """Return the parts one behind the other; at least one is needed."""
        return cls(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.weights for part in parts]),
        )
