"""Weights in the layout that decoding reads fastest: packed for the processor, or rounded.

A step of few tokens is bound by reading the weights. Matrices that multiply the same vector are
fused into one where they are copied anyway, which saves calls.
"""

import copy
import ctypes
import itertools
import mmap
import sys
from collections.abc import Sequence
from typing import Literal, cast
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8, Num
from torch import Tensor, nn

from pardalis.inference.adapters import LoadedAdapters
from pardalis.inference.native.library import Library
from pardalis.inference.native.linear import RowsLinear
from pardalis.model import LanguageModel, TiedHead
from pardalis.model.positions import RoPE, Rotation
from pardalis.tokens import Grammar

Weights = Literal["stored", "bfloat16", "int8"]

# With more tokens, dequantising the weights is faster than the integer kernel.
_INT8_KERNEL_TOKENS = 16
# The kernel reads so many weights at once, and past the end of other rows.
_INT8_KERNEL_WIDTH = 16
# bfloat16 rounds by a 256th part at most, so 127 and a half is not reached.
_LARGEST_INT8 = 126.5
_PAGE_OUT = 21  # MADV_PAGEOUT
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

    def __init__(self, weight: Int8[Tensor, "out in"], scale: Float[Tensor, " out"]) -> None:
        super().__init__()
        self.weight = weight
        self.scale = scale.bfloat16()  # without loss; the kernel is fast only in bfloat16

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        tokens = x.flatten(0, -2).bfloat16()
        if len(tokens) <= _INT8_KERNEL_TOKENS and tokens.shape[1] % _INT8_KERNEL_WIDTH == 0:
            product = torch._weight_int8pack_mm(tokens, self.weight, self.scale)
        else:
            product = F.linear(tokens, self.weight.bfloat16()) * self.scale
        return product.to(x.dtype).view(*x.shape[:-1], -1)


class _BFloat16Linear(nn.Module):
    """A linear map that is computed in bfloat16, between activations of another dtype."""

    def __init__(self, weight: Float[Tensor, "out in"]) -> None:
        super().__init__()
        self.linear = _linear(weight, "stored")

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        output: Tensor = self.linear(x.bfloat16())
        return output.to(x.dtype)


class RowsEmbedding(nn.Module):
    """An embedding with a table of any dtype.

    Args:
        scale: factor of each row; None: 1.
        dtype: of its output.
    """

    def __init__(
        self, weight: Num[Tensor, "V D"], scale: Float[Tensor, " V"] | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.weight, self.scale, self.dtype = weight.detach(), scale, dtype

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch D"]:
        rows = self.weight[ids].to(self.dtype)
        return rows if self.scale is None else rows * self.scale[ids][..., None].to(self.dtype)


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
        embedding: nn.Module | None = None,
    ) -> None:
        table, writable = model.head.weight.detach(), grammar.writable_ids()
        order = [*writable, *sorted({*range(len(table))} - {*writable})]
        self.ids = torch.tensor(order, device=table.device)
        self.index = self.ids.argsort()
        self.n_codes = grammar.vocabulary.n_codes
        ends = [self.n_codes, len(writable)]
        of_parts = self.ids.tensor_split(ends)
        parts: list[nn.Module]
        if library is not None:
            if isinstance(model.head, TiedHead) and isinstance(embedding, RowsEmbedding):
                values, scale = embedding.weight, embedding.scale
            else:
                values, scale = rounded(table, weights)
            parts = [
                RowsLinear(library, values, None if scale is None else scale[ids], ids)
                for ids in of_parts
            ]
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
        weights: ``stored`` keeps every value: on a CPU without a library the matrices are copied
            into oneDNN's layout, else all weights are shared. ``bfloat16`` and ``int8`` round the
            matrices and the embedding.
        adapters: what a token may have beside the matrices, which it never quantises.
        n_positions: most that a sequence has, for which tables are made; None: the context, which
            a config may claim to be any number.
        library: multiplies by the rows of the matrices where they are, without a copy; then no maps
            are joined, and activations have 32 bits, whatever the matrices have.
    """
    if n_positions is None:
        n_positions = model.context
    shared = {id(p): p for p in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared).eval()
    is_packed = weights != "stored" or library is not None or _has_layout(model.head.weight)
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
    embedding = getattr(copied, "embedding", None)
    if isinstance(embedding, nn.Embedding):
        copied.add_module("embedding", _embedding(embedding, weights, adapters, library))
    return copied if library is None else _widened(copied)


def _embedding(
    embedding: nn.Embedding,
    weights: Weights,
    adapters: LoadedAdapters | None,
    library: Library | None,
) -> nn.Module:
    """Return the fastest module for an embedding."""
    packed: nn.Module = embedding
    if library is not None or weights != "stored":
        dtype = embedding.weight.dtype if library is None else torch.float32
        packed = RowsEmbedding(*rounded(embedding.weight, weights), dtype)
    return adapters.around_embedding(packed) if adapters else packed


def _widened(model: LanguageModel) -> LanguageModel:
    """Give all parameters but the head's 32 bits."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if module is not model.head and parameter.dtype != torch.float32:
                widened = nn.Parameter(parameter.detach().float(), requires_grad=False)
                module.register_parameter(name, widened)
    return model


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
    if library is not None:
        return RowsLinear(library, *rounded(weight, weights))
    if weights == "int8":
        values, scale = rounded(weight, weights)
        assert scale is not None
        return Int8Linear(values, scale)
    if weights == "bfloat16" and weight.dtype != torch.bfloat16:
        return _BFloat16Linear(weight.detach().bfloat16())
    if _has_layout(weight):
        return PackedLinear(weight)
    linear = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def rounded(
    weight: Float[Tensor, "out in"], weights: Weights
) -> tuple[Num[Tensor, "out in"], Float[Tensor, " out"] | None]:
    """Return a matrix as it is kept, and the scale of each row if there is one.

    Scales of 8-bit integers are numbers of bfloat16, since kernels need such, and as small as lets
    no value be cut. What the matrix was read from may be dropped from memory.
    """
    weight = weight.detach()
    if weights == "stored" or (weights == "bfloat16" and weight.dtype == torch.bfloat16):
        return weight, None
    if weights == "bfloat16":
        values, scale = weight.bfloat16(), None
    else:
        scale = weight.abs().amax(dim=1).float().clamp(min=1e-12) / _LARGEST_INT8
        scale = scale.bfloat16().float()
        values = (weight.float() / scale[:, None]).round_().to(torch.int8)
    _drop_from_memory(weight)
    return values, scale


def _drop_from_memory(tensor: Tensor) -> None:
    """Tell the system that a tensor in a file is not needed now; its pages are read again if so."""
    if sys.platform != "linux" or tensor.device.type != "cpu":
        return
    if tensor.untyped_storage().filename is None:
        return
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < stop:
        madvise = ctypes.CDLL(None).madvise  # if it fails, the pages stay, which is no error
        madvise(ctypes.c_void_p(first), ctypes.c_size_t(stop - first), _PAGE_OUT)


def _has_layout(weight: Float[Tensor, "..."]) -> bool:
    """Whether oneDNN has a packed layout for such weights."""
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
