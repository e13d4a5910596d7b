"""Merges that keep the architecture: means of weights, in the forms of the literature.

========================== =====================================================================
uniform                    sum of w_i θ_i (JAM-Uniform, arXiv 2309.15564; model soups, 2203.05482)
slerp                      along the arc between θ_1 and θ_2, tensor by tensor
task_arithmetic            θ_0 + sum of w_i (θ_i - θ_0) for a common ancestor θ_0 (2212.04089)
========================== =====================================================================
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pardalis.config import check_fractions
from pardalis.errors import ConfigError
from pardalis.fusion.parents import Merged, Parent, made_of

_AT_ONCE = 1 << 17  # values that are computed at a time, so that they stay in the cache
_TOLERANCE = 1e-6  # of the sum of weights
_PARALLEL = 1e-6  # sine of the angle below which an arc is a line


@dataclass(frozen=True, kw_only=True, slots=True)
class UniformConfig:
    """The mean of all parents, with weights that sum to 1."""

    kind: Literal["uniform"] = "uniform"
    weights: tuple[float, ...] | None = None  # one for each parent; None: equal

    def __post_init__(self) -> None:
        if self.weights is not None and abs(sum(self.weights) - 1) > _TOLERANCE:
            raise ConfigError(
                f"weights must sum to 1, and {_listed(self.weights)} sum to {sum(self.weights):g}."
            )

    def config_of(self, config: Any) -> Any:
        """Return the config of the mean: that of the parents."""
        return config

    def merged(self, parents: Sequence[Parent], seed: int) -> Merged:
        """Return the mean; raises ConfigError unless there is a weight for each parent."""
        weights = self.weights or (1 / len(parents),) * len(parents)
        _check_weights(weights, parents)
        return _tensorwise(parents, lambda *values: weighted_sum(values, weights))


@dataclass(frozen=True, kw_only=True, slots=True)
class SlerpConfig:
    """Spherical interpolation of two parents, each tensor as one vector.

    With the angle Ω between both, sin((1 - t) Ω) / sin Ω times the first and sin(t Ω) / sin Ω times
    the second. Parallel tensors are interpolated linearly.
    """

    kind: Literal["slerp"] = "slerp"
    t: float = 0.5  # from 0, the first parent, to 1, the second

    def __post_init__(self) -> None:
        check_fractions(self, "t")

    def config_of(self, config: Any) -> Any:
        """Return the config of the mean: that of the parents."""
        return config

    def merged(self, parents: Sequence[Parent], seed: int) -> Merged:
        """Return the interpolation; raises ConfigError unless there are two parents."""
        check_two(parents, self.kind)
        return _tensorwise(parents, self._interpolated)

    def _interpolated(self, first: Tensor, second: Tensor) -> Tensor:
        return weighted_sum((first, second), arc_weights(first, second, self.t))


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskArithmeticConfig:
    """What the parents have learnt since a common ancestor, added to it."""

    kind: Literal["task_arithmetic"] = "task_arithmetic"
    base: Path  # the bundle of the ancestor
    weights: tuple[float, ...] | None = None  # one for each parent; None: 1 for each

    def config_of(self, config: Any) -> Any:
        """Return the config of the mean: that of the parents."""
        return config

    def merged(self, parents: Sequence[Parent], seed: int) -> Merged:
        """Return the sum; the last of the parents is the ancestor.

        Raises:
            ConfigError: there is not one weight for each parent.
        """
        weights = self.weights or (1.0,) * (len(parents) - 1)
        _check_weights(weights, parents[:-1])
        together = (*weights, 1 - sum(weights))
        return _tensorwise(parents, lambda *values: weighted_sum(values, together))


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the sum of tensors of one dtype times their weights, rounded once.

    Products and sums are in 64 bits, or 32 for tensors of 16: so the sum of equal tensors is that
    tensor to the bit if the weights sum to 1, and a mean does not depend on the order.
    """
    if [*weights] == [0.5, 0.5]:  # the sum is rounded, and its half is exact
        return torch.add(tensors[0], tensors[1]).mul_(0.5)
    wide = torch.float32 if tensors[0].dtype.itemsize < 4 else torch.float64
    result = torch.empty_like(tensors[0], memory_format=torch.contiguous_format)
    places = torch.split(result.view(-1), _AT_ONCE)
    parts = zip(*(torch.split(tensor.reshape(-1), _AT_ONCE) for tensor in tensors), strict=True)
    for place, values in zip(places, parts, strict=True):
        total = values[0].to(wide, copy=True).mul_(weights[0])
        for value, weight in zip(values[1:], weights[1:], strict=True):
            total.add_(value.to(wide), alpha=weight)
        place.copy_(total)
    return result


def arc_weights(first: Tensor, second: Tensor, t: float) -> tuple[float, float]:
    """Return the weights of spherical interpolation between two tensors as vectors."""
    norms = math.sqrt(_product(first, first) * _product(second, second))
    cosine = _product(first, second) / norms if norms else 1.0
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if (sine := math.sin(angle)) < _PARALLEL:
        return 1 - t, t
    return math.sin((1 - t) * angle) / sine, math.sin(t * angle) / sine


def _product(first: Tensor, second: Tensor) -> float:
    """Return the scalar product of two tensors as vectors, in 64 bits."""
    parts = (torch.split(each.reshape(-1), _AT_ONCE) for each in (first, second))
    return sum(float(a.double() @ b.double()) for a, b in zip(*parts, strict=True))


def check_two(parents: Sequence[Parent], kind: str) -> None:
    """Raise ConfigError unless there are two parents."""
    if len(parents) != 2:
        raise ConfigError(
            f"kind = {kind!r} merges two models, got {len(parents)}; merge them two by two."
        )


def _check_weights(weights: Sequence[float], parents: Sequence[Parent]) -> None:
    if len(weights) != len(parents):
        raise ConfigError(
            f"weights must have one number for each of the {len(parents)} models, got "
            f"{_listed(weights)}."
        )
    if not all(map(math.isfinite, weights)):
        raise ConfigError(f"weights must be finite numbers, got {_listed(weights)}.")


def _listed(weights: Sequence[float]) -> str:
    return ", ".join(f"{weight:g}" for weight in weights)


def _tensorwise(parents: Sequence[Parent], function: Callable[..., Tensor]) -> Merged:
    first = parents[0]
    tensors = {
        name: made_of([parent.tensors[name] for parent in parents], tensor.shape, function)
        for name, tensor in first.tensors.items()
    }
    return Merged(first.config, tensors)
