"""Keys and values in pages on the device, and attention over them.

Which page belongs to whom is book-keeping of the host (:mod:`pardalis.inference.pages`). Here a
page is a run of slots in one buffer per layer, and a row of a pass is a list of pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pardalis.model import ModelConfig


class PagedCache:
    """Room for the keys and values of ``n_pages`` pages, in every layer.

    Page 0 belongs to nobody: what has no place is written there.
    """

    def __init__(
        self, config: ModelConfig, n_pages: int, page_size: int, like: Float[Tensor, "..."]
    ) -> None:
        shape = (n_pages * page_size, config.n_kv_heads, config.d_head)
        self.page_size = page_size
        self.keys = [like.new_zeros(shape) for _ in range(config.n_layers)]
        self.values = [like.new_zeros(shape) for _ in range(config.n_layers)]

    @property
    def device(self) -> torch.device:
        return self.keys[0].device


@dataclass(frozen=True, slots=True)
class Row:
    """A stream's part of a pass."""

    pages: Sequence[int]
    n_ids: int  # that the pass reads of it
    extent: int  # columns that the pass may reach: no query stands at or beyond this


class Rows:
    """The rows of one pass, or of passes that follow one another and differ in columns only.

    The ids of all rows stand one after another in a single sequence. Before each pass
    :meth:`place` says at which column of its own row each of them stands.
    """

    def __init__(self, cache: PagedCache, rows: Sequence[Row]) -> None:
        self.cache, self.rows = cache, rows
        n_columns = max(row.extent for row in rows)
        table = np.zeros((len(rows), n_columns), dtype=np.int64)
        for line, row in zip(table, rows, strict=True):
            slots = _slots(row.pages, cache.page_size)[:n_columns]
            line[: len(slots)] = slots
        self.table = torch.from_numpy(table).to(cache.device)
        widths = torch.tensor([row.n_ids for row in rows])
        self.row_of = torch.arange(len(rows)).repeat_interleave(widths).to(cache.device)
        ends = widths.cumsum(0).tolist()
        self.spans = [slice(end - row.n_ids, end) for end, row in zip(ends, rows, strict=True)]
        self.every_column = torch.arange(n_columns, device=cache.device)
        self.layers = [
            _LayerRows(self, keys, values)
            for keys, values in zip(cache.keys, cache.values, strict=True)
        ]

    def place(self, columns: Int[Tensor, " T"]) -> "list[_LayerRows]":
        """Set where each id stands; return the layers, with which the model is called."""
        self.written = self.table[self.row_of, columns]
        hidden = self.every_column > columns[:, None]
        self.bias = self.cache.keys[0].new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        return self.layers

    def columns_of(
        self, buffer: Float[Tensor, "slots K H"], number: int
    ) -> Float[Tensor, "1 K S H"]:
        """Return a row's part of a buffer: a view where its pages follow one another."""
        row = self.rows[number]
        size = self.cache.page_size
        n_slots = min(row.extent, len(row.pages) * size)
        if all(b - a == 1 for a, b in zip(row.pages, row.pages[1:], strict=False)):
            part = buffer.narrow(0, row.pages[0] * size, n_slots)
        else:
            part = buffer.index_select(0, self.table[number, :n_slots])
        return part.transpose(0, 1).unsqueeze(0)


class _LayerRows:
    """One layer of the cache, for some rows; satisfies :class:`pardalis.model.LayerCache`."""

    def __init__(
        self, rows: Rows, keys: Float[Tensor, "slots K H"], values: Float[Tensor, "slots K H"]
    ) -> None:
        self.rows, self.keys, self.values = rows, keys, values

    def attend(
        self,
        q: Float[Tensor, "1 T N H"],
        k: Float[Tensor, "1 T K H"],
        v: Float[Tensor, "1 T K H"],
    ) -> Float[Tensor, "1 T N H"]:
        rows = self.rows
        self.keys.index_copy_(0, rows.written, k[0])
        self.values.index_copy_(0, rows.written, v[0])
        queries = q.transpose(1, 2)
        grouped = q.shape[2] != k.shape[2]
        attended = []
        for number, span in enumerate(rows.spans):
            keys = rows.columns_of(self.keys, number)
            attended.append(
                F.scaled_dot_product_attention(
                    queries[:, :, span],
                    keys,
                    rows.columns_of(self.values, number),
                    attn_mask=rows.bias[span, : keys.shape[2]],
                    enable_gqa=grouped,
                )
            )
        together = attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)
        return together.transpose(1, 2)


class _LayerTable:
    """One layer of the cache, for rows that a table places; made to be compiled.

    A compiler turns products and sums over gathered columns into loops without copies. It satisfies
    :class:`pardalis.model.LayerCache`.
    """

    def __init__(
        self,
        keys: Float[Tensor, "slots K H"],
        values: Float[Tensor, "slots K H"],
        table: Int[Tensor, "R C"],
        written: Int[Tensor, " T"],
        unseen: Bool[Tensor, "R W C"],
    ) -> None:
        self.keys, self.values, self.table = keys, values, table
        self.written, self.unseen = written, unseen

    def attend(
        self,
        q: Float[Tensor, "1 T N H"],
        k: Float[Tensor, "1 T K H"],
        v: Float[Tensor, "1 T K H"],
    ) -> Float[Tensor, "1 T N H"]:
        self.keys.index_copy_(0, self.written, k[0])
        self.values.index_copy_(0, self.written, v[0])
        keys, values = self.keys[self.table], self.values[self.table]
        n_rows, window, _ = self.unseen.shape
        _, _, n_heads, d_head = q.shape
        n_kv_heads = keys.shape[2]
        queries = q.view(n_rows, window, 1, n_kv_heads, n_heads // n_kv_heads, d_head)
        scores = (queries * keys[:, None, :, :, None]).sum(-1) * d_head**-0.5
        scores = scores.masked_fill(self.unseen[..., None, None], -torch.inf)
        weights = scores.softmax(2)[..., None]
        return (weights * values[:, None, :, :, None]).sum(2).view(q.shape)


def layers_of_table(
    keys: Sequence[Float[Tensor, "slots K H"]],
    values: Sequence[Float[Tensor, "slots K H"]],
    table: Int[Tensor, "R C"],
    columns: Int[Tensor, "R W"],
) -> list[_LayerTable]:
    """Return the layers with which a compiled model reads ids at some columns of rows.

    Args:
        table: the slot of each column of a row.
    """
    written = table.gather(1, columns).view(-1)
    unseen = torch.arange(table.shape[1], device=table.device) > columns[..., None]
    return [_LayerTable(*layer, table, written, unseen) for layer in zip(keys, values, strict=True)]


def _slots(pages: Sequence[int], page_size: int) -> np.ndarray:
    return (np.array(pages)[:, None] * page_size + np.arange(page_size)).ravel()
