"""Weights in the layout that decoding reads fastest: packed for the processor, or 8-bit integers.

A step of few tokens is bound by reading the weights. Matrices that multiply the same vector are
fused into one where they are copied anyway, which saves calls.
"""

import copy
import itertools
from collections.abc import Sequence
from typing import Literal, cast
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8
from torch import Tensor, nn

from pardalis.inference.adapters import LoadedAdapters
from pardalis.inference.native.library import Library
from pardalis.inference.native.linear import RowsLinear
from pardalis.model import LanguageModel
from pardalis.model.positions import RoPE, Rotation
from pardalis.tokens import Grammar

Weights = Literal["stored", "int8"]

# With more tokens, dequantising the weights is faster than the integer kernel.
_INT8_KERNEL_TOKENS = 16
# The kernel reads so many weights at once, and past the end of other rows.
_INT8_KERNEL_WIDTH = 16
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


def keep_numbers(old: nn.Module, new: nn.Module) -> None:
    """Give the packed weights of a module those numbers that compiled code knows from another."""
    for before, after in zip(old.modules(), new.modules(), strict=True):
        if isinstance(before, PackedLinear) and isinstance(after, PackedLinear):
            after.number = before.number
            _NUMBERED[after.number] = after


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
        if len(tokens) <= _INT8_KERNEL_TOKENS and tokens.shape[1] % _INT8_KERNEL_WIDTH == 0:
            product = torch._weight_int8pack_mm(tokens, self.weight, self.scale)
        else:
            product = F.linear(tokens, self.weight.bfloat16()) * self.scale
        return product.to(x.dtype).view(*x.shape[:-1], -1)


class _Biased(nn.Module):
    """A linear map and a bias."""

    def __init__(self, linear: nn.Module, bias: Float[Tensor, " out"]) -> None:
        super().__init__()
        self.linear = linear
        self.bias = nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        output: Tensor = self.linear(x) + self.bias
        return output


class RotationTable(nn.Module):
    """Table of the cosines and sines of RoPE; positions beyond it are clamped."""

    def __init__(self, rope: RoPE, n_positions: int, device: torch.device) -> None:
        super().__init__()
        positions = torch.arange(n_positions, device=device)
        self.cos, self.sin = (table[0] for table in rope(positions[None]))

    def forward(self, positions: Int[Tensor, "B T"]) -> Rotation:
        positions = positions.clamp(max=len(self.cos) - 1)
        return self.cos[positions], self.sin[positions]


class Head:
    """The output head in the order of :meth:`Grammar.writable_ids`.

    ``image`` gives the logits of image tokens, the first ``n_codes`` of the order, and ``text``
    those of all other tokens. The tokens that are never generated follow in :meth:`whole`.

    Attributes:
        ids: token id of each logit of :meth:`whole`.
        index: logit of each token id.
    """

    def __init__(
        self,
        model: LanguageModel,
        grammar: Grammar,
        weights: Weights,
        adapters: LoadedAdapters | None = None,
        library: Library | None = None,
    ) -> None:
        table, writable = model.head.weight.detach(), grammar.writable_ids()
        order = [*writable, *sorted({*range(len(table))} - {*writable})]
        self.ids = torch.tensor(order, device=table.device)
        self.index = self.ids.argsort()
        self.n_codes = grammar.vocabulary.n_codes
        ends = [self.n_codes, len(writable)]
        of_parts = self.ids.tensor_split(ends)
        parts: list[nn.Module]
        if library is not None and weights == "stored":
            parts = [RowsLinear(library, table, ids) for ids in of_parts]
        else:
            parts = [_linear(table[ids], weights) for ids in of_parts]
        if adapters:
            parts = [adapters.around_head(*each) for each in zip(parts, of_parts, strict=True)]
        self.image, self.text, self.rest = parts

    def all(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N n"]:
        """Return the logits of all writable tokens."""
        return torch.cat([self.image(hidden), self.text(hidden)], dim=-1)

    def whole(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Return the logits of the whole vocabulary, in the order of ``ids``."""
        parts = (self.image, self.text, self.rest)
        return torch.cat([part(hidden) for part in parts], dim=-1)


@torch.no_grad()
def packed(
    model: LanguageModel,
    weights: Weights,
    adapters: LoadedAdapters | None = None,
    n_positions: int | None = None,
    library: Library | None = None,
) -> LanguageModel:
    """Return a copy of a model of any kind for decoding; the original is unchanged.

    Every linear map gets the fastest layout of its weights, and a module with a method ``fuse``
    first joins those of its maps that have the same input. The head is left out; see :class:`Head`.

    Args:
        weights: ``stored`` keeps every value: on a CPU the matrices are copied into oneDNN's
            layout, elsewhere all weights are shared. ``int8`` quantises the matrices.
        adapters: what a token may have beside the matrices, which it never quantises.
        n_positions: most that a sequence has, for which tables are made; None: the context, which
            a config may claim to be any number.
        library: multiplies by the rows of the matrices where they are, without a copy; then no maps
            are joined.
    """
    if n_positions is None:
        n_positions = model.context
    shared = {id(p): p for p in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared).eval()
    is_packed = weights == "int8" or library is not None or _has_layout(model.head.weight)
    names: dict[nn.Module, str] = {module: name for name, module in copied.named_modules()}

    def joined(linears: Sequence[nn.Module]) -> nn.Module:
        """Return one map of several that have the same input; their outputs are concatenated."""
        matrices = [cast(Tensor, linear.weight) for linear in linears]
        biases = [cast(Tensor, linear.bias) for linear in linears]
        product = _linear(_concatenated(matrices), weights, library)
        if adapters:
            maps = zip((names[linear] for linear in linears), matrices, strict=True)
            product = adapters.around(product, list(maps))
        return product if biases[0] is None else _Biased(product, _concatenated(biases))

    for module in list(copied.modules()):
        if is_packed and library is None and (fuse := getattr(module, "fuse", None)):
            fuse(joined)
        for name, child in list(module.named_children()):
            if isinstance(child, RoPE):
                module.add_module(name, RotationTable(child, n_positions, model.device))
            elif isinstance(child, nn.Linear) and child is not copied.head:
                if is_packed or adapters:
                    module.add_module(name, joined([child]))
            elif is_packed and isinstance(child, nn.Dropout):
                module.add_module(name, nn.Identity())
    if adapters and isinstance(embedding := getattr(copied, "embedding", None), nn.Embedding):
        copied.add_module("embedding", adapters.around_embedding(embedding))
    return copied


def _concatenated(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def linear_map(weight: Float[Tensor, "out in"]) -> nn.Module:
    """Return the fastest module for a linear map whose values are kept."""
    return _linear(weight, "stored")


def without_bias(module: nn.Module) -> tuple[nn.Module, Tensor | None]:
    """Return a linear map of a packed model without its bias, and the bias."""
    return (module.linear, module.bias) if isinstance(module, _Biased) else (module, None)


def _linear(
    weight: Float[Tensor, "out in"], weights: Weights, library: Library | None = None
) -> nn.Module:
    """Return the fastest module for a linear map."""
    if weights == "int8":
        return Int8Linear(weight)
    if library is not None:
        return RowsLinear(library, weight)
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
