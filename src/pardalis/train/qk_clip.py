"""QK-clip: heads whose attention logits grow too large get smaller query and key weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from pardalis.errors import ConfigError
from pardalis.model import Decoder, ModelConfig
from pardalis.model.decoder import Block
from pardalis.parallel import Layout
from pardalis.parallel.sharding import scale_rows
from pardalis.train.statistics import AttentionCall, watching


def check_has_no_qk_norm(config: ModelConfig) -> None:
    """Raise ConfigError for a model whose QK-norm undoes what a clip scales."""
    if config.qk_norm != "none":
        raise ConfigError(
            "training.qk_clip needs a model without QK-norm, which undoes what it scales, and this "
            f"one has model.qk_norm = {config.qk_norm!r}; leave qk_clip out, or set it to 'none'."
        )


class QKClip:
    """The clip of Kimi K2 (arXiv 2507.20534, Algorithm 1), for a decoder without QK-norm.

    A head whose largest attention logit of a step was m > threshold has all its logits multiplied
    by threshold / m: the rows of its query and key weights by the root of that each. Here m is
    absolute, where the paper takes the largest signed one. Query heads that share a key head need
    different factors: the key head gets the smallest root among them, and each query head what
    remains, so that every head's logits are multiplied by its own factor and no other's.

    Raises:
        ConfigError: the model has QK-norm, or its heads are split among ranks.
    """

    def __init__(self, model: Decoder, threshold: float, layout: Layout) -> None:
        check_has_no_qk_norm(model.config)
        if layout.tensor_size > 1:
            raise ConfigError(
                f"qk_clip scales whole heads and tensor = {layout.tensor_size} splits them among "
                "ranks; set tensor = 1 in [parallel] and raise shard, or leave qk_clip out."
            )
        self._model = model
        self._threshold = threshold
        self._world = layout.world
        config = model.config
        self._queries_of_key = config.n_heads // config.n_kv_heads
        self._largest = torch.zeros(config.n_layers, config.n_heads, device=layout.device)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note the largest logit of each head in all forward passes inside the block."""
        with watching(self._model, self._look):
            yield

    @torch.no_grad()
    def clip(self) -> Tensor:
        """Scale the weights by what was noted since the last time; return how many heads were."""
        largest = self._world.gather(self._largest[None]).amax(0)
        self._largest.zero_()
        factors = (self._threshold / largest).clamp(max=1.0)
        d_head = self._model.config.d_head
        for block, heads in zip(self._model.trunk.blocks, factors, strict=True):
            attention = cast(Block, block).attention
            queries, keys = shared_factors(heads, self._queries_of_key)
            scale_rows(attention.q_proj.weight, queries.repeat_interleave(d_head))
            scale_rows(attention.k_proj.weight, keys.repeat_interleave(d_head))
        return (factors < 1).sum().float()

    def _look(self, layer: int, output: Tensor, attention: list[AttentionCall]) -> None:
        if not attention:
            raise ConfigError(
                "qk_clip sees no attention scores in compiled code; set compile = false in "
                "[parallel], or leave qk_clip out."
            )
        for call in attention:
            heads = call().amax((0, 2))
            self._largest[layer] = torch.maximum(self._largest[layer], heads)


def shared_factors(
    heads: Float[Tensor, " N"], queries_of_key: int
) -> tuple[Float[Tensor, " N"], Float[Tensor, " K"]]:
    """Return factors of query heads and of key heads, whose products are those of the heads."""
    keys = heads.view(-1, queries_of_key).amin(1).sqrt()
    return heads / keys.repeat_interleave(queries_of_key), keys
