"""A linear probe: which of a few labels features of images have, such as their style."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_DECAY = 1e-3  # weight of the squared weights in the loss
_ITERATIONS = 100
_SCALE = 10.0  # of unit vectors, whose components are small


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LinearProbe:
    """Logistic regression on unit vectors of features."""

    labels: tuple[str, ...]
    weight: Float[Tensor, "D L"]
    bias: Float[Tensor, " L"]

    @classmethod
    def fit(cls, features: Float[Tensor, "B D"], labels: Sequence[str]) -> "LinearProbe":
        """Fit the probe to features and their labels; the same input gives the same probe.

        Raises:
            ValueError: there are no features.
        """
        if not len(features):
            raise ValueError("a probe needs features to learn from")
        names = tuple(sorted(set(labels)))
        targets = torch.tensor([names.index(label) for label in labels])
        weight = torch.zeros(features.shape[1], len(names), requires_grad=True)
        bias = torch.zeros(len(names), requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS)

        def loss() -> Tensor:
            optimizer.zero_grad()
            logits = _SCALE * features @ weight + bias
            value = F.cross_entropy(logits, targets) + _DECAY * weight.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        return cls(labels=names, weight=weight.detach(), bias=bias.detach())

    def predict(self, features: Float[Tensor, "B D"]) -> list[str]:
        """Return the most likely label of each vector."""
        best = (_SCALE * features @ self.weight + self.bias).argmax(dim=1)
        return [self.labels[index] for index in best.tolist()]
