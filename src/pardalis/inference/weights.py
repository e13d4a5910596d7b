"""Weights in the layout that decoding reads fastest: packed for the processor, or 8-bit integers.

A step of few tokens is bound by reading the weights. Matrices that multiply the same vector are
fused into one where they are copied anyway, which saves calls.
"""

import copy
import itertools
from typing import Literal
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8
from torch import Tensor, nn

from pardalis.model import Decoder
from pardalis.model.attention import Attention, HeadNorm, rotate
from pardalis.model.decoder import Block, FeedForward
from pardalis.parallel.heads import head_scales
from pardalis.tokens import Grammar

Weights = Literal["stored", "int8"]

# With more tokens, dequantising the weights is faster than the integer kernel.
_INT8_KERNEL_TOKENS = 16
# oneDNN sums the product with a single vector in another order when it is longer than this.
_LONG_VECTOR = 1024


class PackedLinear(nn.Module):
    """A linear map with weights in oneDNN's layout.

    The output for a token does not depend, to the bit, on the other tokens of the batch.
    """

    def __init__(self, weight: Float[Tensor, "out in"]) -> None:
        super().__init__()
        self.long = weight.shape[1] > _LONG_VECTOR
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self.n_outputs = len(weight)
        self.number = next(_NUMBERS)
        _NUMBERED[self.number] = self

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        if self.long and x.numel() == x.shape[-1]:
            return self._multiply(x.expand(*x.shape[:-2], 2, -1))[..., :1, :]
        return self._multiply(x)

    def _multiply(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        if torch.compiler.is_compiling():
            return torch.ops.pardalis.packed_linear(x, self.number, self.n_outputs)
        return _multiply(x, self.packed)


def _multiply(x: Tensor, packed_weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed_weight, None, "none", [], "")


# A compiler cannot trace packed weights, so it sees an operation on a number that refers to them.
_NUMBERS = itertools.count()
_NUMBERED: WeakValueDictionary[int, PackedLinear] = WeakValueDictionary()
_OPERATION = "pardalis::packed_linear"
torch.library.define(_OPERATION, "(Tensor x, int number, int n_outputs) -> Tensor")
torch.library.impl(_OPERATION, "cpu", lambda x, number, _: _multiply(x, _NUMBERED[number].packed))
torch.library.register_fake(_OPERATION, lambda x, _, n: x.new_empty(*x.shape[:-1], n))


class Int8Linear(nn.Module):
    """A linear map whose weights are 8-bit integers, with a scale for each output."""

    def __init__(self, weight: Float[Tensor, "out in"]) -> None:
        super().__init__()
        weight = weight.detach().float()
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        self.weight: Int8[Tensor, "out in"] = (weight / scale).round().to(torch.int8)
        # The kernel is fast only in bfloat16.
        self.scale = scale[:, 0].bfloat16()

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        tokens = x.flatten(0, -2).bfloat16()
        if len(tokens) <= _INT8_KERNEL_TOKENS:
            product = torch._weight_int8pack_mm(tokens, self.weight, self.scale)
        else:
            product = F.linear(tokens, self.weight.bfloat16()) * self.scale
        return product.to(x.dtype).view(*x.shape[:-1], -1)


class FusedAttention(Attention):
    """Attention with one projection and one normalisation for queries, keys and values."""

    def __init__(self, attention: Attention, weights: Weights) -> None:
        nn.Module.__init__(self)
        self.d_head = attention.d_head
        self.splits = attention.n_heads, attention.n_heads + attention.n_kv_heads
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        self.qkv_proj = _linear(torch.cat([p.weight for p in projections]), weights)
        self.add_module("o_proj", _linear(attention.o_proj.weight, weights))
        self.qk_norm = _joint_norm(attention)

    def heads(
        self, x: Float[Tensor, "B T D"], rotation: tuple[Tensor, Tensor]
    ) -> tuple[Float[Tensor, "B T N H"], Float[Tensor, "B T K H"], Float[Tensor, "B T K H"]]:
        n_queries, n_rotated = self.splits
        heads = self.qkv_proj(x).unflatten(-1, (-1, self.d_head))
        rotated = rotate(self.qk_norm(heads[:, :, :n_rotated]), rotation)
        return rotated[:, :, :n_queries], rotated[:, :, n_queries:], heads[:, :, n_rotated:]


class FusedFeedForward(FeedForward):
    """SwiGLU with one projection for gate and input."""

    def __init__(self, feed_forward: FeedForward, weights: Weights) -> None:
        nn.Module.__init__(self)
        both = torch.cat([feed_forward.gate_proj.weight, feed_forward.up_proj.weight])
        self.gate_up_proj = _linear(both, weights)
        self.down = _linear(feed_forward.down_proj.weight, weights)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class RotationTable(nn.Module):
    """Table of the cosines and sines of RoPE; positions beyond the context are clamped."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        positions = torch.arange(model.config.context, device=model.embedding.weight.device)
        self.cos, self.sin = (table[0] for table in model.trunk.rotation(positions[None]))

    def forward(
        self, positions: Int[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T 1 H"], Float[Tensor, "B T 1 H"]]:
        positions = positions.clamp(max=len(self.cos) - 1)
        return self.cos[positions], self.sin[positions]


class Head:
    """A copy of the output head in the order of :meth:`Grammar.writable_ids`.

    ``image`` gives the logits of image tokens, the first ``n_codes`` of the order, and ``text``
    those of all other tokens.
    """

    def __init__(self, model: Decoder, grammar: Grammar, weights: Weights) -> None:
        table = model.head.weight.detach()
        table = table[torch.tensor(grammar.writable_ids(), device=table.device)]
        self.n_codes = grammar.vocabulary.n_codes
        self.image = _linear(table[: self.n_codes], weights)
        self.text = _linear(table[self.n_codes :], weights)

    def all(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N n"]:
        """Return the logits of all writable tokens."""
        return torch.cat([self.image(hidden), self.text(hidden)], dim=-1)


@torch.no_grad()
def packed(model: Decoder, weights: Weights) -> Decoder:
    """Return a copy of a decoder for decoding; the original is unchanged.

    Args:
        weights: ``stored`` keeps every value: on a CPU the trunk's matrices are copied into
            oneDNN's layout, elsewhere all weights are shared. ``int8`` quantises the matrices.
    """
    shared = {id(p): p for p in (*model.parameters(), *model.buffers())}
    decoder = copy.deepcopy(model, shared).eval()
    decoder.trunk.add_module("rotation", RotationTable(model))
    if weights == "int8" or _has_layout(model.head.weight):
        for block in decoder.trunk.modules():
            if isinstance(block, Block):
                block.add_module("dropout", nn.Identity())
                block.attention = FusedAttention(block.attention, weights)
                block.feed_forward = FusedFeedForward(block.feed_forward, weights)
    return decoder


def _linear(weight: Float[Tensor, "out in"], weights: Weights) -> nn.Module:
    """Return the fastest module for a linear map without bias."""
    if weights == "int8":
        return Int8Linear(weight)
    if _has_layout(weight):
        return PackedLinear(weight)
    linear = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def _has_layout(weight: Float[Tensor, "..."]) -> bool:
    """Whether oneDNN has a packed layout for such weights."""
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def _joint_norm(attention: Attention) -> nn.Module:
    """Return one QK-norm for concatenated queries and keys."""
    norms = attention.q_norm, attention.k_norm
    if not isinstance(norms[0], HeadNorm):
        return nn.Identity()
    n_heads = attention.n_heads, attention.n_kv_heads
    joint = HeadNorm(attention.d_head, sum(n_heads), norms[0].eps)
    for name in ("weight", "bias"):
        by_head = [
            head_scales(getattr(norm, name), n).expand(n, -1)
            for norm, n in zip(norms, n_heads, strict=True)
        ]
        setattr(joint, name, nn.Parameter(torch.cat(by_head), requires_grad=False))
    return joint
