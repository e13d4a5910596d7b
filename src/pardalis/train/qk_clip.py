"""QK-clip: scaling down query and key weights of heads with large attention logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from pardalis.errors import ConfigError
from pardalis.model import Decoder, LanguageModel, ModelShape, NoQKNormConfig
from pardalis.model.decoder import Block
from pardalis.parallel import Layout
from pardalis.parallel.sharding import scale_rows
from pardalis.train.statistics import AttentionCall, observed_blocks


def check_has_no_qk_norm(config: ModelShape) -> None:
    """Raise ConfigError for a model with QK-norm, which undoes the scaling."""
    if not isinstance(qk_norm := config.attention.qk_norm, NoQKNormConfig):
        raise ConfigError(
            "training.qk_clip needs a model without QK-norm, which undoes its scaling, and this "
            f"one has model.attention.qk_norm.kind = {qk_norm.kind!r}; leave qk_clip out, or set "
            "it to 'none'."
        )


class QKClip:
    """The clip of Kimi K2 (arXiv 2507.20534, Algorithm 1), for a decoder without QK-norm.

    If the largest attention logit of a head in a step is m > threshold, all its logits are
    multiplied by threshold / m: its query and key weights by the square root of that each. Here m
    is the largest absolute logit, in the paper the largest signed one. For query heads that share a
    key head, the key head gets the smallest root among them and each query head the remaining
    factor, so that the logits of every head are multiplied by its own factor.

    Raises:
        ConfigError: the model has QK-norm, or its heads are split among ranks.
    """

    def __init__(self, model: LanguageModel, threshold: float, layout: Layout) -> None:
        if not isinstance(model, Decoder):
            raise ConfigError(
                f"qk_clip knows the heads of a decoder, and this model is a "
                f"{type(model).__name__}; leave qk_clip out."
            )
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
        n_heads = config.attention.n_heads
        self._queries_of_key = n_heads // config.attention.kv_heads
        self._largest = torch.zeros(config.n_layers, n_heads, device=layout.device)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the largest logit of each head in all forward passes inside the block."""
        with observed_blocks(self._model, self._record):
            yield

    @torch.no_grad()
    def clip(self) -> Tensor:
        """Scale the weights by the logits recorded since the last call; return how many heads."""
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

    def _record(self, layer: int, output: Tensor, attention: list[AttentionCall]) -> None:
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
    """Return factors of query and key heads whose products are the given factors."""
    keys = heads.view(-1, queries_of_key).amin(1).sqrt()
    return heads / keys.repeat_interleave(queries_of_key), keys
