"""Norms: of the residual stream, and of queries and keys."""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pardalis.config import check_at_least, check_finite
from pardalis.parallel.heads import head_scales


@dataclass(frozen=True, kw_only=True, slots=True)
class RMSNormConfig:
    """RMSNorm (arXiv 1910.07467), with a scale."""

    kind: Literal["rms_norm"] = "rms_norm"
    eps: float = 1e-5
    groups: int = 1  # of channels, each normalised by itself: one for each parent of a wide model

    def __post_init__(self) -> None:
        check_at_least(self, eps=0, groups=1)
        check_finite(self, "eps")

    def build(self, width: int) -> nn.Module:
        """Return the norm of vectors of a width."""
        if self.groups > 1:
            return GroupedRMSNorm(width, self.groups, self.eps)
        return nn.RMSNorm(width, eps=self.eps)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerNormConfig:
    """LayerNorm (arXiv 1607.06450) with a scale and a shift, a scale only, or neither (CM3Leon)."""

    kind: Literal["layer_norm"] = "layer_norm"
    eps: float = 1e-5
    parameters: Literal["scale_and_shift", "scale", "none"] = "scale_and_shift"
    groups: int = 1  # as in RMSNormConfig

    def __post_init__(self) -> None:
        check_at_least(self, eps=0, groups=1)
        check_finite(self, "eps")

    def build(self, width: int) -> nn.Module:
        """Return the norm of vectors of a width."""
        affine, shift = self.parameters != "none", self.parameters == "scale_and_shift"
        if self.groups > 1:
            return GroupedLayerNorm(width, self.groups, self.eps, affine, shift)
        return nn.LayerNorm(width, eps=self.eps, elementwise_affine=affine, bias=shift)


NormConfig = RMSNormConfig | LayerNormConfig


def grouped_rms_norm(
    x: Float[Tensor, "*batch D"], groups: int, eps: float
) -> Float[Tensor, "*batch D"]:
    """Divide each of several groups of channels by its root mean square."""
    parts = torch.unflatten(x, -1, (groups, -1))
    return F.rms_norm(parts, parts.shape[-1:], eps=eps).flatten(-2)


class GroupedRMSNorm(nn.Module):
    """RMSNorm of each group of channels by itself, with a scale for each channel."""

    def __init__(self, width: int, groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.groups, self.eps = groups, eps

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        return grouped_rms_norm(x, self.groups, self.eps) * self.weight


class GroupedLayerNorm(nn.Module):
    """LayerNorm of each group of channels by itself, with what LayerNorm has for each channel."""

    def __init__(self, width: int, groups: int, eps: float, affine: bool, shift: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width)) if affine else None
        self.bias = nn.Parameter(torch.empty(width)) if shift else None
        self.groups, self.eps = groups, eps

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        parts = torch.unflatten(x, -1, (self.groups, -1))
        normed = F.layer_norm(parts, parts.shape[-1:], eps=self.eps).flatten(-2)
        if self.weight is not None:
            normed = normed * self.weight
        return normed if self.bias is None else normed + self.bias


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
        n_heads = x.shape[-2]
        normed = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        return normed * head_scales(self.weight, n_heads) + head_scales(self.bias, n_heads)


class HeadRMSNorm(nn.Module):
    """QK-norm: RMSNorm over each head, with a scale for each group of heads.

    Qwen3 (arXiv 2505.09388) has one group.
    """

    def __init__(self, d_head: int, n_groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_groups, d_head))
        self.eps = eps

    def forward(self, x: Float[Tensor, "B T N H"]) -> Float[Tensor, "B T N H"]:
        normed = F.rms_norm(x, x.shape[-1:], eps=self.eps)
        return normed * head_scales(self.weight, x.shape[-2])


class WholeRMSNorm(nn.Module):
    """QK-norm: RMSNorm over all heads of a group at once, with a scale per channel.

    OLMo-2 (arXiv 2501.00656) has one group. It cannot be divided among tensor-parallel ranks, which
    hold some of the heads each.
    """

    def __init__(self, d_head: int, n_heads: int, n_groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_heads, d_head))
        self.n_groups, self.eps = n_groups, eps

    def forward(self, x: Float[Tensor, "B T N H"]) -> Float[Tensor, "B T N H"]:
        if self.n_groups == 1:
            return F.rms_norm(x, x.shape[-2:], self.weight, eps=self.eps)
        grouped = torch.unflatten(x, -2, (self.n_groups, -1))
        normed = F.rms_norm(grouped, grouped.shape[-2:], eps=self.eps)
        return normed.flatten(-3, -2) * self.weight


class _PairNorm(nn.Module):
    """The norms of queries and of keys, applied to both side by side."""

    def __init__(self, q_norm: nn.Module, k_norm: nn.Module, n_heads: int) -> None:
        super().__init__()
        self.q_norm, self.k_norm, self.n_heads = q_norm, k_norm, n_heads

    def forward(self, x: Float[Tensor, "B T NK H"]) -> Float[Tensor, "B T NK H"]:
        q, k = x[:, :, : self.n_heads], x[:, :, self.n_heads :]
        return torch.cat([self.q_norm(q), self.k_norm(k)], dim=2)


def joint_qk_norm(q_norm: nn.Module, k_norm: nn.Module, n_heads: int, n_kv_heads: int) -> nn.Module:
    """Return one norm for queries and keys side by side."""
    if isinstance(q_norm, nn.Identity):
        return q_norm
    if not isinstance(q_norm, HeadNorm | HeadRMSNorm) or type(q_norm) is not type(k_norm):
        return _PairNorm(q_norm, k_norm, n_heads)
    joint = copy.deepcopy(q_norm)
    sizes = n_heads, n_kv_heads
    for name, _ in q_norm.named_parameters():
        by_head = [
            head_scales(getattr(norm, name).detach(), n).expand(n, -1)
            for norm, n in zip((q_norm, k_norm), sizes, strict=True)
        ]
        setattr(joint, name, nn.Parameter(torch.cat(by_head), requires_grad=False))
    return joint
