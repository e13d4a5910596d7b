"""Attention with grouped queries, QK-norm and RoPE."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from pardalis.model.config import (
    ModelShape,
    NoQKNormConfig,
    QKLayerNormConfig,
    QKNormConfig,
)
from pardalis.model.feed_forward import JoinLinear
from pardalis.model.masks import Mask, attend
from pardalis.model.norms import HeadNorm, HeadRMSNorm, WholeRMSNorm, joint_qk_norm
from pardalis.model.positions import Rotation, rotate


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


class Attention(nn.Module):
    """Attention under a mask, or over a key-value cache that masks by itself.

    Args:
        d_memory: width of a memory that keys and values are made from, instead of the input
            (cross-attention).
    """

    def __init__(self, config: ModelShape, d_memory: int | None = None) -> None:
        super().__init__()
        shape = config.attention
        self.n_heads, self.n_kv_heads, self.d_head = shape.n_heads, shape.kv_heads, config.d_head
        d_model, d_source = config.d_model, d_memory or config.d_model
        self.is_cross = d_memory is not None
        d_q, d_kv = self.n_heads * self.d_head, self.n_kv_heads * self.d_head
        has_bias = shape.bias != "none"
        self.q_proj = nn.Linear(d_model, d_q, bias=has_bias)
        self.k_proj = nn.Linear(d_source, d_kv, bias=has_bias)
        self.v_proj = nn.Linear(d_source, d_kv, bias=has_bias)
        self.o_proj = nn.Linear(d_q, d_model, bias=shape.bias == "all")
        self.q_norm = _qk_norm(shape.qk_norm, self.d_head, self.n_heads)
        self.k_norm = _qk_norm(shape.qk_norm, self.d_head, self.n_kv_heads)
        self.qkv_proj: nn.Module | None = None
        self.qk_norm: nn.Module | None = None

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rotation: Rotation | None,
        mask: Mask | None = None,
        cache: LayerKVCache | None = None,
        memory: Float[Tensor, "B S M"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return the attention of each position.

        Args:
            rotation: of queries and keys; None: neither is rotated.
            mask: ignored if there is a cache.
            memory: what keys and values are made from; default: ``x``. With a cache, or a rotation,
                it has a vector for each position of ``x``.
        """
        q, k, v = self.heads(x, rotation, memory)
        if cache is not None:
            attended = cache.attend(q, k, v)
        else:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            attended = attend(q, k, v, mask).transpose(1, 2)
        output: Tensor = self.o_proj(attended.flatten(-2))
        return output

    def heads(
        self,
        x: Float[Tensor, "B T D"],
        rotation: Rotation | None,
        memory: Float[Tensor, "B S M"] | None = None,
    ) -> tuple[Float[Tensor, "B T N H"], Float[Tensor, "B S K H"], Float[Tensor, "B S K H"]]:
        """Return queries and keys, normalised and rotated, and values."""
        if self.qkv_proj is not None and self.qk_norm is not None:
            heads = self.qkv_proj(x).unflatten(-1, (-1, self.d_head))
            n_rotated = self.n_heads + self.n_kv_heads
            rotated = rotate(self.qk_norm(heads[:, :, :n_rotated]), rotation)
            return (
                rotated[:, :, : self.n_heads],
                rotated[:, :, self.n_heads :],
                heads[:, :, n_rotated:],
            )
        source = x if memory is None else memory
        q = rotate(self.q_norm(self.q_proj(x).unflatten(-1, (-1, self.d_head))), rotation)
        k = rotate(self.k_norm(self.k_proj(source).unflatten(-1, (-1, self.d_head))), rotation)
        return q, k, self.v_proj(source).unflatten(-1, (-1, self.d_head))

    def fuse(self, join: JoinLinear) -> None:
        """Compute queries, keys and values in one product, and normalise both in one call."""
        if self.is_cross:  # queries and keys are made from different inputs
            return
        self.qkv_proj = join([self.q_proj, self.k_proj, self.v_proj])
        self.qk_norm = joint_qk_norm(self.q_norm, self.k_norm, self.n_heads, self.n_kv_heads)
        del self.q_proj, self.k_proj, self.v_proj, self.q_norm, self.k_norm


def _qk_norm(config: QKNormConfig, d_head: int, n_heads: int) -> nn.Module:
    if isinstance(config, NoQKNormConfig):
        return nn.Identity()
    if isinstance(config, QKLayerNormConfig):
        return HeadNorm(d_head, config.groups or n_heads, config.eps)
    if config.over == "head":
        return HeadRMSNorm(d_head, config.groups, config.eps)
    return WholeRMSNorm(d_head, n_heads, config.groups, config.eps)
