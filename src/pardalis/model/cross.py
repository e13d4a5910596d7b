"""Two decoders that read the same tokens and attend to each other (JAM-Cross, arXiv 2309.15564).

                     ┌─ text trunk ──┐   after every k-th layer each trunk
    embedding(ids) ──┤   ▲│  ▲│  ▲│  ├─► attends to the states of the other
                     └─ image trunk ─┘
    [text states, image states] ── combine ──► head

Embedding and head are shared. Where the paper is silent, or only known from what others say of it,
:mod:`pardalis.fusion.cross` and docs/merge.md say what was chosen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import repeat
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pardalis.batch import Soft
from pardalis.config import check_at_least
from pardalis.model.attention import Attention, LayerKVCache
from pardalis.model.config import ModelConfig, ModelShape
from pardalis.model.decoder import Block, Trunk, embed
from pardalis.model.language_model import CacheSpec, LanguageModel, LayerCacheSpec, TiedHead
from pardalis.model.masks import Mask
from pardalis.model.positions import LearnedPositions, RoPEConfig, Rotation


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossAttentionConfig:
    """How two trunks attend to each other."""

    interval: int = 2  # layers from one cross-attention to the next; more than n_layers: none
    feed_forward: bool = True  # whether a feed-forward layer follows each cross-attention

    def __post_init__(self) -> None:
        check_at_least(self, interval=1)


class _TwoTrunks:
    """What follows from ``cross`` and the shape of a trunk."""

    __slots__ = ()
    n_layers: int
    d_model: int
    cross: CrossAttentionConfig

    @property
    def n_blocks(self) -> int:
        """Blocks of both trunks, and those between them."""
        return 2 * (self.n_layers + self.n_layers // self.cross.interval)

    @property
    def summary(self) -> str:
        """The shape in a few words."""
        return (
            f"two trunks of {self.n_layers} layers, width {self.d_model}, cross-attention after "
            f"every {self.cross.interval} layers"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossShape(_TwoTrunks, ModelShape):
    """The shape of each of two trunks, and how they attend to each other."""

    kind: str = "cross"
    cross: CrossAttentionConfig = field(default_factory=CrossAttentionConfig)

    def sized(self, vocab_size: int, context: int) -> "CrossConfig":
        """Return the config of a model of this shape."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return CrossConfig(vocab_size=vocab_size, context=context, **values)


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossConfig(_TwoTrunks, ModelConfig):
    """Shape and options of a :class:`CrossModel`."""

    kind: str = "cross"
    cross: CrossAttentionConfig = field(default_factory=CrossAttentionConfig)


class CrossBlock(nn.Module):
    """Attention of a trunk to the states of the other, then feed-forward, both added to the stream.

    Norms stand before the branches and skips have no coefficient, whatever the trunks have, so that
    a block whose output matrices are 0 is the identity.
    """

    def __init__(self, config: CrossShape | CrossConfig) -> None:
        super().__init__()
        self.attention_norm = config.norm.build(config.d_model)
        self.memory_norm = config.norm.build(config.d_model)
        self.attention = Attention(config, d_memory=config.d_model)
        self.feed_forward_norm: nn.Module | None = None
        self.feed_forward: nn.Module | None = None
        if config.cross.feed_forward:
            self.feed_forward_norm = config.norm.build(config.d_model)
            self.feed_forward = config.feed_forward.build(config.d_model)
        self.dropout: nn.Module = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rotation: Rotation | None,
        mask: Mask | None,
        cache: LayerKVCache | None,
        other: Float[Tensor, "B T D"],
    ) -> Float[Tensor, "B T D"]:
        memory = self.memory_norm(other)
        attended = self.attention(self.attention_norm(x), rotation, mask, cache, memory)
        x = x + self.dropout(attended)
        if self.feed_forward is None or self.feed_forward_norm is None:
            return x
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class CrossTrunk(nn.Module):
    """Both trunks, the blocks between them, and the map from both final states to one."""

    def __init__(self, config: CrossShape | CrossConfig) -> None:
        super().__init__()
        self.interval = config.cross.interval
        self.text, self.image = Trunk(config), Trunk(config)
        n_crossings = config.n_layers // self.interval
        self.text_cross_blocks, self.image_cross_blocks = (
            nn.ModuleList(CrossBlock(config) for _ in range(n_crossings)) for _ in range(2)
        )
        self.combine = nn.Linear(2 * config.d_model, config.d_model, bias=False)

    def blocks(self) -> Iterator[tuple[int, Block | CrossBlock]]:
        """Yield all blocks in the order in which they run, each with its trunk: 0 text, 1 image."""
        for i, pair in enumerate(zip(self.text.blocks, self.image.blocks, strict=True), 1):
            yield from enumerate(cast(tuple[Block, Block], pair))
            number, rest = divmod(i, self.interval)
            if rest == 0:
                crossing = self.text_cross_blocks, self.image_cross_blocks
                yield from enumerate(cast(CrossBlock, each[number - 1]) for each in crossing)

    def forward(
        self,
        text: Float[Tensor, "B T D"],
        image: Float[Tensor, "B T D"],
        positions: Int[Tensor, "B T"],
        mask: Mask | None = None,
        cache: Sequence[LayerKVCache] | None = None,
    ) -> Float[Tensor, "B T D"]:
        rotation = None if self.text.rotation is None else self.text.rotation(positions)
        caches: Iterator[LayerKVCache | None] = repeat(None) if cache is None else iter(cache)
        for i, blocks in enumerate(zip(self.text.blocks, self.image.blocks, strict=True), 1):
            text = blocks[0](text, rotation, mask, next(caches))
            image = blocks[1](image, rotation, mask, next(caches))
            number, rest = divmod(i, self.interval)
            if rest == 0:  # both read what the other was before
                text, image = (
                    self.text_cross_blocks[number - 1](text, rotation, mask, next(caches), image),
                    self.image_cross_blocks[number - 1](image, rotation, mask, next(caches), text),
                )
        states = torch.cat([self.text.norm(text), self.image.norm(image)], dim=-1)
        output: Tensor = self.combine(states)
        return output


class CrossModel(LanguageModel):
    """embedding → two trunks → head. Learned positions are each trunk's own."""

    config: CrossConfig

    def __init__(self, config: CrossConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.text_position_embedding: nn.Module | None = None
        self.image_position_embedding: nn.Module | None = None
        if not isinstance(config.position, RoPEConfig):
            self.text_position_embedding = LearnedPositions(config.context, config.d_model)
            self.image_position_embedding = LearnedPositions(config.context, config.d_model)
        self.trunk = CrossTrunk(config)
        self.head = (
            TiedHead(self.embedding)
            if config.tie_embeddings
            else nn.Linear(config.d_model, config.vocab_size, bias=False)
        )

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
            raise ValueError("The trunks of a CrossModel attend to each other, and to no memory.")
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        text = image = embed(self.embedding(ids), self.config, soft)
        if self.text_position_embedding is not None and self.image_position_embedding is not None:
            text = text + self.text_position_embedding(positions)
            image = image + self.image_position_embedding(positions)
        output: Tensor = self.trunk(text, image, positions, mask, cache)
        return output

    def cache_spec(self) -> CacheSpec:
        config = self.config
        layer = LayerCacheSpec(n_kv_heads=config.attention.kv_heads, d_head=config.d_head)
        return (layer,) * config.n_blocks
