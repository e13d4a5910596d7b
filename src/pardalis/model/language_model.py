"""What training, the engine and the commands ask of a model of any kind."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pardalis.batch import Soft
from pardalis.model.attention import LayerKVCache
from pardalis.model.masks import Mask
from pardalis.model.parameters import PARAMETERS
from pardalis.parameters import ParameterTable


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCacheSpec:
    """What one attention layer keeps for each token: keys and values of this shape."""

    n_kv_heads: int
    d_head: int


CacheSpec = tuple[LayerCacheSpec, ...]


class TiedHead(nn.Module):
    """A head whose matrix is that of the embedding (arXiv 1608.05859), and no parameter of its own.

    The embedding's parameter is looked up at each use, since sharding, loading and moving a model
    may replace it. It has one name, and is counted, stored and updated once.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self._embedding = (embedding,)  # in a tuple, so that it is no submodule

    @property
    def weight(self) -> Float[Tensor, "V D"]:
        return self._embedding[0].weight

    def forward(self, hidden: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        return F.linear(hidden, self.weight)


class LanguageModel(nn.Module, ABC):
    """A model that predicts the next token from all before it.

    Attributes:
        config: at least ``vocab_size``, ``context`` and ``d_model``.
        head: from hidden states (B, T, d_model) to logits (B, T, vocab_size), without bias. Its
            ``weight`` may be the embedding's.
        parameter_table: what each parameter is.
    """

    config: Any
    head: nn.Linear | TiedHead
    parameter_table: ClassVar[ParameterTable] = PARAMETERS

    @abstractmethod
    def hidden(
        self,
        ids: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        mask: Mask | None = None,
        cache: Sequence[LayerKVCache] | None = None,
        *,
        soft: Soft | None = None,
        memory: Tensor | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return the final hidden states, which the head reads.

        Args:
            positions: position of each token in its document; default: 0, 1, 2, ...
            mask: True where attention is allowed, or another form of :data:`pardalis.model.Mask`;
                default: causal.
            cache: the key-value cache of each layer of :meth:`cache_spec`, in its order, which also
                masks; ``mask`` is then ignored.
            soft: vectors that replace the embeddings of some positions.
            memory: hidden states to cross-attend to, in models that can.

        Raises:
            ValueError: the model cannot use a memory, and one is given.
        """

    @abstractmethod
    def cache_spec(self) -> CacheSpec:
        """Return what each attention layer keeps of a token."""

    @property
    def context(self) -> int:
        """The longest sequence, in tokens."""
        context: int = self.config.context
        return context

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def forward(
        self,
        ids: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        mask: Mask | None = None,
        cache: Sequence[LayerKVCache] | None = None,
        *,
        soft: Soft | None = None,
        memory: Tensor | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Return the logits of the next token at every position; arguments as in :meth:`hidden`."""
        logits: Tensor = self.head(
            self.hidden(ids, positions, mask, cache, soft=soft, memory=memory)
        )
        return logits
