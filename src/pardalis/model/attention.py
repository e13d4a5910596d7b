"""Attention with QK-norm, RoPE and grouped queries."""

import math
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pardalis.model.config import ModelConfig, RopeScaling
from pardalis.model.masks import Mask, attend
from pardalis.parallel.heads import head_scales


@runtime_checkable
class LayerKVCache(Protocol):
    """The key-value cache of one layer, owned by the decoding loop."""

    def attend(
        self,
        q: Float[Tensor, "B T N H"],
        k: Float[Tensor, "B T K H"],
        v: Float[Tensor, "B T K H"],
    ) -> Float[Tensor, "B T N H"]:
        """Store the new keys and values; return attention over all allowed positions."""
        ...


class HeadNorm(nn.Module):
    """QK-norm: LayerNorm over a head's width, with a scale and shift for each group of heads.

    Chameleon (arXiv 2405.09818, section 2.3) normalises queries and keys before RoPE. In its
    released weights the heads of one model-parallel rank form a group and share a scale.
    """

    def __init__(self, d_head: int, n_groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_groups, d_head))
        self.bias = nn.Parameter(torch.empty(n_groups, d_head))
        self.eps = eps

    def forward(self, x: Float[Tensor, "B T N H"]) -> Float[Tensor, "B T N H"]:
        weight, bias = (head_scales(p, x.shape[2]) for p in (self.weight, self.bias))
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * weight + bias


class Attention(nn.Module):
    """Causal self-attention under a mask, or over a key-value cache that masks by itself."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        self.d_head = config.d_head
        d_kv = config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=False)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=False)
        self.o_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm == "layer_norm":
            eps, groups = config.qk_norm_eps, config.qk_norm_groups
            self.q_norm = HeadNorm(config.d_head, groups or config.n_heads, eps)
            self.k_norm = HeadNorm(config.d_head, groups or config.n_kv_heads, eps)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rotation: tuple[Float[Tensor, "B T 1 H"], Float[Tensor, "B T 1 H"]],
        mask: Mask | None,
        cache: LayerKVCache | None,
    ) -> Float[Tensor, "B T D"]:
        q, k, v = self.heads(x, rotation)
        if cache is not None:
            return self.o_proj(cache.attend(q, k, v).flatten(-2))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return self.o_proj(attend(q, k, v, mask).transpose(1, 2).flatten(-2))

    def heads(
        self, x: Float[Tensor, "B T D"], rotation: tuple[Tensor, Tensor]
    ) -> tuple[Float[Tensor, "B T N H"], Float[Tensor, "B T K H"], Float[Tensor, "B T K H"]]:
        """Return queries and keys, normalised and rotated, and values."""
        q = rotate(self.q_norm(self.q_proj(x).unflatten(-1, (-1, self.d_head))), rotation)
        k = rotate(self.k_norm(self.k_proj(x).unflatten(-1, (-1, self.d_head))), rotation)
        return q, k, self.v_proj(x).unflatten(-1, (-1, self.d_head))


def rope_frequencies(
    d_head: int,
    theta: float,
    scaling: RopeScaling | None = None,
    device: torch.device | None = None,
) -> Float[Tensor, "..."]:
    """Return RoPE's frequency of each channel pair, in radians a position; shape (d_head / 2,).

    Scaling is that of Llama 3.1 (arXiv 2407.21783; the formula is that of transformers'
    ``_compute_llama3_parameters``): with n turns within the original context, a frequency f becomes
    (1 - s) f / factor + s f, where s is (n - low) / (high - low), clamped to [0, 1].
    """
    exponents = torch.arange(0, d_head, 2, device=device, dtype=torch.float32) / d_head
    # The reciprocal of a power, not a negative power: this is the rounding of published models.
    frequencies = 1.0 / theta**exponents
    if scaling is None:
        return frequencies
    # Computed from the wavelength, and in this order, for the same rounding.
    turns = scaling.original_context / (2 * math.pi / frequencies)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def rotation_of(
    positions: Int[Tensor, "B T"], d_head: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Float[Tensor, "B T 1 H"], Float[Tensor, "B T 1 H"]]:
    """Return cosines and sines of RoPE (arXiv 2104.09864), which pairs the two halves of a head.

    The sines of the first half are negated, as :func:`rotate` needs them.
    """
    frequencies = rope_frequencies(d_head, theta, scaling, positions.device)
    angles = (positions[..., None].float() * frequencies).unsqueeze(2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


class Rotation(nn.Module):
    """Cosines and sines of RoPE at some positions; see :func:`rotation_of`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, positions: Int[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T 1 H"], Float[Tensor, "B T 1 H"]]:
        config = self.config
        return rotation_of(positions, config.d_head, config.rope_theta, config.rope_scaling)


def rotate(
    x: Float[Tensor, "B T N H"],
    rotation: tuple[Float[Tensor, "B T 1 H"], Float[Tensor, "B T 1 H"]],
) -> Float[Tensor, "B T N H"]:
    """Rotate each pair (x_i, x_{i + H/2}) by the angle of its position."""
    cos, sin = rotation
    return (x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin).to(x.dtype)
