"""The decoder transformer: embedding, trunk, head; no loss, no sampling, no cache.

One trunk reads and writes every modality (early fusion). By default it is Llama's: linear layers
without bias, RMSNorm, SwiGLU, RoPE, untied embedding and head. Chameleon's changes for stability
are options of the config: QK-norm, and norms on the output of each branch. So is a head that is
tied to the embedding, as in small models, where the two would be most of the parameters.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pardalis.batch import Soft
from pardalis.model.attention import Attention, LayerKVCache
from pardalis.model.config import ModelConfig, ModelShape
from pardalis.model.language_model import CacheSpec, LanguageModel, LayerCacheSpec, TiedHead
from pardalis.model.masks import Mask
from pardalis.model.norms import grouped_rms_norm
from pardalis.model.positions import LearnedPositions, RoPE, RoPEConfig, Rotation


class Block(nn.Module):
    """Attention, then feed-forward, each added to the residual stream.

    See :class:`pardalis.model.config.ResidualConfig`.
    """

    def __init__(self, config: ModelShape) -> None:
        super().__init__()
        self.attention_norm = config.norm.build(config.d_model)
        self.attention = Attention(config)
        self.feed_forward_norm = config.norm.build(config.d_model)
        self.feed_forward = config.feed_forward.build(config.d_model)
        self.dropout: nn.Module = nn.Dropout(config.dropout)
        self.residual = config.residual

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rotation: Rotation | None,
        mask: Mask | None,
        cache: LayerKVCache | None,
    ) -> Float[Tensor, "B T D"]:
        placement = self.residual.placement
        if placement == "pre":
            x = self._add(x, self.attention(self.attention_norm(x), rotation, mask, cache))
            return self._add(x, self.feed_forward(self.feed_forward_norm(x)))
        if placement == "reordered":
            x = self._add(x, self.attention_norm(self.attention(x, rotation, mask, cache)))
            return self._add(x, self.feed_forward_norm(self.feed_forward(x)))
        x = self.attention_norm(self._add(x, self.attention(x, rotation, mask, cache)))
        x = self.feed_forward_norm(self._add(x, self.feed_forward(x)))
        return x

    def _add(
        self, x: Float[Tensor, "B T D"], branch: Float[Tensor, "B T D"]
    ) -> Float[Tensor, "B T D"]:
        skip, scale = self.residual.skip, self.residual.branch
        branch = self.dropout(branch)
        if skip == scale == 1:
            return x + branch
        return torch.add(skip * x, branch, alpha=scale)


class Trunk(nn.Module):
    """The blocks and the final norm."""

    def __init__(self, config: ModelShape) -> None:
        super().__init__()
        self.rotation: nn.Module | None = None
        if isinstance(config.position, RoPEConfig):
            self.rotation = RoPE(config.d_head, config.position)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm: nn.Module = nn.Identity()
        if config.residual.placement != "post":
            self.norm = config.norm.build(config.d_model)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        positions: Int[Tensor, "B T"],
        mask: Mask | None = None,
        cache: Sequence[LayerKVCache] | None = None,
    ) -> Float[Tensor, "B T D"]:
        rotation = None if self.rotation is None else self.rotation(positions)
        for i, block in enumerate(self.blocks):
            x = block(x, rotation, mask, None if cache is None else cache[i])
        output: Tensor = self.norm(x)
        return output


def embed(
    embedded: Float[Tensor, "B T D"], config: ModelShape, soft: Soft | None = None
) -> Float[Tensor, "B T D"]:
    """Return embeddings of tokens as the first block reads them, but for learned positions."""
    if config.embedding.scale != 1:
        embedded = embedded * config.embedding.scale
    if soft is not None:
        embedded = soft.put_into(embedded)
    if config.embedding.norm:
        embedded = grouped_rms_norm(embedded, config.norm.groups, config.norm.eps)
    return embedded


class Decoder(LanguageModel):
    """embedding → trunk → head.

    The parameters of a new decoder are uninitialised until :func:`pardalis.model.initialise` or a
    state dict sets them, so a large one can be built on the meta device.
    """

    config: ModelConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding: nn.Module | None = None
        if not isinstance(config.position, RoPEConfig):
            self.position_embedding = LearnedPositions(config.context, config.d_model)
        self.trunk = Trunk(config)
        self.head = (
            TiedHead(self.embedding)
            if config.tie_embeddings
            else nn.Linear(config.d_model, config.vocab_size, bias=False)
        )

    def embed(self, ids: Int[Tensor, "B T"], soft: Soft | None = None) -> Float[Tensor, "B T D"]:
        """Return what the first block reads, but for learned positions."""
        return embed(self.embedding(ids), self.config, soft)

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
        if memory is not None:
            raise ValueError("A Decoder has no cross-attention, so it takes no memory.")
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        x = self.embed(ids, soft)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        output: Tensor = self.trunk(x, positions, mask, cache)
        return output

    def cache_spec(self) -> CacheSpec:
        config = self.config
        layer = LayerCacheSpec(n_kv_heads=config.attention.kv_heads, d_head=config.d_head)
        return (layer,) * config.n_layers
