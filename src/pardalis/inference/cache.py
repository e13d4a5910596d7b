"""Paged keys and values on the device, and attention over them.

An entry holds the key and the value of one token. A page is a run of consecutive entries in one
buffer per layer. The host decides which sequence holds which pages
(:mod:`pardalis.inference.pages`).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pardalis.model import CacheSpec


class PagedCache:
    """Buffers for the keys and values of ``n_pages`` pages in every layer.

    No sequence holds page 0. Tokens without a page are written there.
    """

    def __init__(
        self,
        spec: CacheSpec,
        n_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shapes = [(n_pages * page_size, layer.n_kv_heads, layer.d_head) for layer in spec]
        self.n_pages, self.page_size, self.dtype = n_pages, page_size, dtype
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]

    def clear(self) -> None:
        """Set every key and value to 0, so that no NaN of an earlier model can reach a new one."""
        for buffer in (*self.keys, *self.values):
            buffer.zero_()


@dataclass(frozen=True, slots=True)
class SequencePart:
    """The tokens of one sequence that a pass reads."""

    pages: Sequence[int]
    n_tokens: int
    extent: int  # upper bound of the positions in the pass, exclusive
    adapter: int = 0  # number of the sequence's adapter; 0: none


class PassLayout:
    """The sequences of one pass, or of successive passes that differ in positions only.

    The tokens of all parts are concatenated into a single sequence. Before each pass :meth:`place`
    sets the position of every token in its own sequence.
    """

    def __init__(self, cache: PagedCache, parts: Sequence[SequencePart]) -> None:
        self.cache, self.parts = cache, parts
        n_positions = max(part.extent for part in parts)
        table = np.zeros((len(parts), n_positions), dtype=np.int64)
        in_page = np.arange(cache.page_size)
        for entries_of_part, part in zip(table, parts, strict=True):
            pages = np.array(part.pages)[:, None]
            entries = (pages * cache.page_size + in_page).ravel()[:n_positions]
            entries_of_part[: len(entries)] = entries
        self.table = torch.from_numpy(table).to(cache.keys[0].device)  # entry of each position
        self.adapters = [part.adapter for part in parts]

    # What only torch needs is made when it is first used.

    @cached_property
    def part_of_token(self) -> Int[Tensor, " T"]:
        widths = torch.tensor([part.n_tokens for part in self.parts])
        return torch.arange(len(self.parts)).repeat_interleave(widths).to(self.table.device)

    @cached_property
    def adapter_of_token(self) -> Int[Tensor, " T"] | None:
        """The adapter of each token; None: no part has one."""
        if not any(self.adapters):
            return None
        return torch.tensor(self.adapters, device=self.table.device)[self.part_of_token]

    @cached_property
    def spans(self) -> list[slice]:
        """The tokens of each part."""
        ends = itertools.accumulate(part.n_tokens for part in self.parts)
        return [slice(e - part.n_tokens, e) for e, part in zip(ends, self.parts, strict=True)]

    @cached_property
    def _layers(self) -> "list[_SlicedLayer]":
        buffers = zip(self.cache.keys, self.cache.values, strict=True)
        return [_SlicedLayer(self, keys, values) for keys, values in buffers]

    @cached_property
    def _key_positions(self) -> Int[Tensor, " S"]:
        return torch.arange(self.table.shape[1], device=self.table.device)

    def place(self, positions: Int[Tensor, " T"]) -> "list[_SlicedLayer]":
        """Set the position of each token; return the layers to call the model with."""
        self.written = self.table[self.part_of_token, positions]
        masked = self._key_positions > positions[:, None]
        self.bias = self.cache.keys[0].new_zeros(masked.shape).masked_fill_(masked, -torch.inf)
        return self._layers

    def entries_of(
        self, buffer: Float[Tensor, "entries K H"], number: int
    ) -> Float[Tensor, "1 K S H"]:
        """Return the entries of one sequence: a view if its pages are consecutive, else a copy."""
        part = self.parts[number]
        size = self.cache.page_size
        n_entries = min(part.extent, len(part.pages) * size)
        if all(b - a == 1 for a, b in zip(part.pages, part.pages[1:], strict=False)):
            entries = buffer.narrow(0, part.pages[0] * size, n_entries)
        else:
            entries = buffer.index_select(0, self.table[number, :n_entries])
        return entries.transpose(0, 1).unsqueeze(0)


@dataclass(eq=False)
class _SlicedLayer:
    """One layer of the cache, sequence by sequence; a :class:`pardalis.model.LayerKVCache`."""

    layout: PassLayout
    keys: Float[Tensor, "entries K H"]
    values: Float[Tensor, "entries K H"]

    def attend(
        self,
        q: Float[Tensor, "1 T N H"],
        k: Float[Tensor, "1 T K H"],
        v: Float[Tensor, "1 T K H"],
    ) -> Float[Tensor, "1 T N H"]:
        layout = self.layout
        self.keys.index_copy_(0, layout.written, k[0])
        self.values.index_copy_(0, layout.written, v[0])
        queries = q.transpose(1, 2)
        grouped = q.shape[2] != k.shape[2]
        attended = []
        for number, span in enumerate(layout.spans):
            keys = layout.entries_of(self.keys, number)
            attended.append(
                F.scaled_dot_product_attention(
                    queries[:, :, span],
                    keys,
                    layout.entries_of(self.values, number),
                    attn_mask=layout.bias[span, : keys.shape[2]],
                    enable_gqa=grouped,
                )
            )
        together = attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)
        return together.transpose(1, 2)


@dataclass(eq=False)
class _GatheredLayer:
    """One layer of the cache, gathered by a table; a :class:`pardalis.model.LayerKVCache`.

    It is made to be compiled: a compiler fuses the gather with the products and sums, without
    copies.
    """

    keys: Float[Tensor, "entries K H"]
    values: Float[Tensor, "entries K H"]
    table: Int[Tensor, "B S"]
    written: Int[Tensor, " T"]
    masked: Bool[Tensor, "B W S"]

    def attend(
        self,
        q: Float[Tensor, "1 T N H"],
        k: Float[Tensor, "1 T K H"],
        v: Float[Tensor, "1 T K H"],
    ) -> Float[Tensor, "1 T N H"]:
        self.keys.index_copy_(0, self.written, k[0])
        self.values.index_copy_(0, self.written, v[0])
        keys, values = self.keys[self.table], self.values[self.table]
        n_sequences, window, _ = self.masked.shape
        _, _, n_heads, d_head = q.shape
        n_kv_heads = keys.shape[2]
        queries = q.view(n_sequences, window, 1, n_kv_heads, n_heads // n_kv_heads, d_head)
        scores = (queries * keys[:, None, :, :, None]).sum(-1) * d_head**-0.5
        scores = scores.masked_fill(self.masked[..., None, None], -torch.inf)
        weights = scores.softmax(2)[..., None]
        return (weights * values[:, None, :, :, None]).sum(2).view(q.shape)


def gathered_layers(
    keys: Sequence[Float[Tensor, "entries K H"]],
    values: Sequence[Float[Tensor, "entries K H"]],
    table: Int[Tensor, "B S"],  # the entry of each position of each sequence
    positions: Int[Tensor, "B W"],
) -> list[_GatheredLayer]:
    """Return the layers with which a compiled model reads tokens at some positions."""
    written = table.gather(1, positions).view(-1)
    masked = torch.arange(table.shape[1], device=table.device) > positions[..., None]
    return [
        _GatheredLayer(*layer, table, written, masked) for layer in zip(keys, values, strict=True)
    ]
