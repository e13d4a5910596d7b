"""Positions: rotations of queries and keys (RoPE), or a learned table that is added."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pardalis.config import check_above, check_at_least, check_finite
from pardalis.errors import ConfigError

# Cosines and sines, as :func:`rotation_of` returns them.
Rotation = tuple[Float[Tensor, "B T 1 H"], Float[Tensor, "B T 1 H"]]


@dataclass(frozen=True, kw_only=True, slots=True)
class RoPEScaling:
    """Llama 3.1's scaling of RoPE's frequencies, which extends a trained context.

    A channel pair that turns at least ``high_freq_factor`` times within the original context keeps
    its frequency. One that turns at most ``low_freq_factor`` times has it divided by ``factor``.
    Between the two it is interpolated; see :func:`rope_frequencies`.

    Raises:
        ConfigError: a number is out of range.
    """

    kind: Literal["llama3"] = "llama3"
    factor: float  # divisor of the lowest frequencies
    low_freq_factor: float  # turns within the original context
    high_freq_factor: float  # turns within the original context
    original_context: int  # positions of the context before it was extended

    def __post_init__(self) -> None:
        check_at_least(self, factor=1, original_context=1)
        check_finite(self, "factor", "high_freq_factor")
        if not 0.0 < self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"low_freq_factor ({self.low_freq_factor}) must lie above 0 and below "
                f"high_freq_factor ({self.high_freq_factor})."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearRoPEScaling:
    """All frequencies are divided by one factor (position interpolation, arXiv 2306.15595)."""

    kind: Literal["linear"] = "linear"
    factor: float

    def __post_init__(self) -> None:
        check_at_least(self, factor=1)
        check_finite(self, "factor")


@dataclass(frozen=True, kw_only=True, slots=True)
class RoPEConfig:
    """Rotary position embedding (arXiv 2104.09864)."""

    kind: Literal["rope"] = "rope"
    theta: float = 10_000.0  # base of the frequencies
    scaling: RoPEScaling | LinearRoPEScaling | None = None  # of the frequencies; None: as trained

    def __post_init__(self) -> None:
        check_above(self, theta=0)
        check_finite(self, "theta")


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedPositionsConfig:
    """A learned vector for each position of the context, added to the embedding (GPT-2, OPT)."""

    kind: Literal["learned"] = "learned"


def rope_frequencies(
    d_head: int,
    theta: float,
    scaling: RoPEScaling | LinearRoPEScaling | None = None,
    device: torch.device | None = None,
) -> Float[Tensor, "..."]:
    """Return RoPE's frequency of each channel pair, in radians a position; shape (d_head / 2,).

    Scaling of kind ``llama3`` is that of Llama 3.1 (arXiv 2407.21783; the formula is that of
    ``_compute_llama3_parameters`` in transformers): with n turns within the original context, a
    frequency f becomes (1 - s) f / factor + s f, where s is (n - low) / (high - low), clamped to
    [0, 1]. With kind ``linear`` it becomes f / factor.
    """
    exponents = torch.arange(0, d_head, 2, device=device, dtype=torch.float32) / d_head
    # The reciprocal of a power, not a negative power: this is the rounding of published models.
    frequencies = 1.0 / theta**exponents
    if scaling is None:
        return frequencies
    if isinstance(scaling, LinearRoPEScaling):
        return frequencies / scaling.factor
    # Computed from the wavelength, and in this order, for the same rounding.
    turns = scaling.original_context / (2 * math.pi / frequencies)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def rotation_of(
    positions: Int[Tensor, "B T"],
    d_head: int,
    theta: float,
    scaling: RoPEScaling | LinearRoPEScaling | None = None,
) -> Rotation:
    """Return cosines and sines of RoPE (arXiv 2104.09864), which pairs the two halves of a head.

    The sines of the first half are negated, as :func:`rotate` needs them.
    """
    frequencies = rope_frequencies(d_head, theta, scaling, positions.device)
    angles = (positions[..., None].float() * frequencies).unsqueeze(2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


class RoPE(nn.Module):
    """Cosines and sines of RoPE at some positions; see :func:`rotation_of`."""

    def __init__(self, d_head: int, config: RoPEConfig) -> None:
        super().__init__()
        self.d_head, self.config = d_head, config

    def forward(self, positions: Int[Tensor, "B T"]) -> Rotation:
        return rotation_of(positions, self.d_head, self.config.theta, self.config.scaling)


def rotate(
    x: Float[Tensor, "B T N H"],
    rotation: Rotation | None,
) -> Float[Tensor, "B T N H"]:
    """Rotate each pair (x_i, x_{i + H/2}) by the angle of its position; without one, return x."""
    if rotation is None:
        return x
    cos, sin = rotation
    return (x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin).to(x.dtype)


class LearnedPositions(nn.Embedding):
    """The vector of each position. Positions beyond the table have the last vector.

    A decoding step asks for such positions for sequences that are over already.
    """

    def forward(self, positions: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        return F.embedding(positions.clamp(max=self.num_embeddings - 1), self.weight)
