"""The weights as a decoding step reads them: laid out for the processor, or as 8-bit integers.

A step of few rows does little but read weights, so their form decides its speed. Where they are
copied anyway, those that multiply the same vector become one matrix, which takes fewer calls.
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
from pardalis.parallel.heads import rows_of_heads
from pardalis.tokens import Grammar

Weights = Literal["stored", "int8"]

# Above as many rows, turning integers back into numbers costs less than multiplying by them.
_INT8_ROWS = 16
# oneDNN sums the product of a single row in another order when it is longer than this.
_LONG_ROW = 1024


class PackedLinear(nn.Module):
    """A linear map whose weights lie as oneDNN reads them.

    What it gives for a row does not depend, to the bit, on the rows beside it.
    """

    def __init__(self, weight: Float[Tensor, "out in"]) -> None:
        super().__init__()
        self.long = weight.shape[1] > _LONG_ROW
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self.n_outputs = len(weight)
        self.number = next(_NUMBERS)
        _NUMBERED[self.number] = self

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        if self.long and x.numel() == x.shape[-1]:
            return self._multiply(x.expand(*x.shape[:-2], 2, -1))[..., :1, :]
        return self._multiply(x)

    def _multiply(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        if torch.compiler.is_compiling():
            return torch.ops.pardalis.packed_linear(x, self.number, self.n_outputs)
        return _multiply(x, self.packed)


def _multiply(x: Tensor, packed_weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed_weight, None, "none", [], "")


# A compiler cannot trace such weights, so it sees an operation on a number that stands for them.
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
        # The kernel is fast in this type only.
        self.scale = scale[:, 0].bfloat16()

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        rows = x.flatten(0, -2).bfloat16()
        if len(rows) <= _INT8_ROWS:
            product = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        else:
            product = F.linear(rows, self.weight.bfloat16()) * self.scale
        return product.to(x.dtype).view(*x.shape[:-1], -1)


class FusedAttention(Attention):
    """Attention whose queries, keys and values come of one product and are normalised as one."""

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
    """SwiGLU whose gate and input come of one product."""

    def __init__(self, feed_forward: FeedForward, weights: Weights) -> None:
        nn.Module.__init__(self)
        both = torch.cat([feed_forward.gate_proj.weight, feed_forward.up_proj.weight])
        self.gate_up_proj = _linear(both, weights)
        self.down = _linear(feed_forward.down_proj.weight, weights)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class RotationTable(nn.Module):
    """Cosines and sines of RoPE, looked up; beyond the context those of its end."""

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
    """The output head in the order of :meth:`Grammar.writable_ids`, a copy of its rows.

    Args:
        weights: as of :func:`packed`.
    """

    def __init__(self, model: Decoder, grammar: Grammar, weights: Weights) -> None:
        table = model.head.weight.detach()
        table = table[torch.tensor(grammar.writable_ids(), device=table.device)]
        self.n_codes = grammar.vocabulary.n_codes
        self._image = _linear(table[: self.n_codes], weights)
        self._text = _linear(table[self.n_codes :], weights)

    def image(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N codes"]:
        """Return logits of the image ids: the first ``n_codes`` columns."""
        return self._image(hidden)

    def text(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N rest"]:
        """Return logits of all other ids: column 0 is number ``n_codes`` of the order."""
        return self._text(hidden)

    def all(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N n"]:
        """Return logits of every id that may be written."""
        return torch.cat([self._image(hidden), self._text(hidden)], dim=-1)


@torch.no_grad()
def packed(model: Decoder, weights: Weights) -> Decoder:
    """Return a copy of a decoder for decoding; the original stays as it is.

    Args:
        weights: ``stored`` keeps every number. On a CPU the trunk's matrices are copied into the
            layout that it reads fastest; elsewhere all is shared. ``int8`` rounds them.
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
    """Return the fastest form of a linear map without bias."""
    if weights == "int8":
        return Int8Linear(weight)
    if _has_layout(weight):
        return PackedLinear(weight)
    linear = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def _has_layout(weight: Float[Tensor, "..."]) -> bool:
    """Whether oneDNN has a layout of its own for such weights."""
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def _joint_norm(attention: Attention) -> nn.Module:
    """Return the QK-norm of queries and keys side by side."""
    norms = attention.q_norm, attention.k_norm
    if not isinstance(norms[0], HeadNorm):
        return nn.Identity()
    n_heads = attention.n_heads, attention.n_kv_heads
    joint = HeadNorm(attention.d_head, sum(n_heads), norms[0].eps)
    for name in ("weight", "bias"):
        rows = [
            rows_of_heads(getattr(norm, name), n).expand(n, -1)
            for norm, n in zip(norms, n_heads, strict=True)
        ]
        setattr(joint, name, nn.Parameter(torch.cat(rows), requires_grad=False))
    return joint
