"""A linear probe: which of a few labels features of images have, such as their style."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_DECAY = 1e-2  # weight of the squared weights in the loss
_ITERATIONS = 100
_SCALE = 10.0  # of unit vectors, whose components are small
_LEAST_STD = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LinearProbe:
    """Logistic regression on features that are standardised, and then of length 1."""

    labels: tuple[str, ...]
    mean: Float[Tensor, " D"]
    std: Float[Tensor, " D"]
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
        mean, std = features.mean(0), features.std(0, correction=0).clamp(min=_LEAST_STD)
        vectors = _SCALE * F.normalize((features - mean) / std, dim=1)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS)

        def loss() -> Tensor:
            optimizer.zero_grad()
            logits = vectors @ weight + bias
            value = F.cross_entropy(logits, targets) + _DECAY * weight.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        return cls(labels=names, mean=mean, std=std, weight=weight.detach(), bias=bias.detach())

    def predict(self, features: Float[Tensor, "B D"]) -> list[str]:
        """Return the most likely label of each vector."""
        vectors = _SCALE * F.normalize((features - self.mean) / self.std, dim=1)
        best = (vectors @ self.weight + self.bias).argmax(dim=1)
        return [self.labels[index] for index in best.tolist()]
