"""Keys and values of earlier positions, for a batch whose rows have different lengths."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pardalis.model import ModelConfig


class KeyValueCache:
    """One buffer per layer; row b holds its own sequence in columns 0 .. length_b - 1.

    Whoever decodes says before each forward at which columns the new ids stand (:meth:`place`).
    Columns beyond a row's length hold leftovers, which the mask hides and later ids overwrite.
    """

    def __init__(
        self, config: ModelConfig, n_rows: int, n_columns: int, like: Float[Tensor, "..."]
    ) -> None:
        shape = (n_rows, config.n_kv_heads, n_columns, config.d_head)
        self.layers = [
            _Layer(like.new_zeros(shape), like.new_zeros(shape), self)
            for _ in range(config.n_layers)
        ]
        self.columns: Int[Tensor, "B T"] = torch.zeros(n_rows, 0, dtype=torch.long)
        self.width = 0  # columns that any row uses, so that no work goes into the rest

    def place(self, columns: Int[Tensor, "B T"]) -> Bool[Tensor, "B 1 T S"]:
        """Set where the next forward writes; return its mask, causal within each row."""
        self.columns = columns
        self.width = int(columns.max()) + 1
        seen = torch.arange(self.width, device=columns.device) <= columns[:, :, None]
        return seen.unsqueeze(1)


class _Layer:
    """The buffers of one layer; satisfies :class:`pardalis.model.LayerCache`."""

    def __init__(
        self, keys: Float[Tensor, "B K S H"], values: Float[Tensor, "B K S H"], cache: KeyValueCache
    ) -> None:
        self.keys, self.values, self.cache = keys, values, cache

    def append(
        self, keys: Float[Tensor, "B K T H"], values: Float[Tensor, "B K T H"]
    ) -> tuple[Float[Tensor, "B K S H"], Float[Tensor, "B K S H"]]:
        rows = torch.arange(keys.shape[0], device=keys.device)[:, None]
        columns, width = self.cache.columns, self.cache.width
        self.keys[rows, :, columns] = keys.transpose(1, 2)
        self.values[rows, :, columns] = values.transpose(1, 2)
        return self.keys[:, :, :width], self.values[:, :, :width]
