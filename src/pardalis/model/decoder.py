"""The decoder transformer: embedding, trunk, head; no loss, no sampling, no cache.

One Llama-like trunk reads and writes every modality (early fusion): linear layers without bias,
RMSNorm, SwiGLU, RoPE, untied embedding and head. Chameleon's changes for stability are options of
the config: QK-norm, and norms on the output of each branch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pardalis.model.attention import Attention, LayerKVCache, Rotation
from pardalis.model.config import ModelConfig
from pardalis.model.masks import Mask


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down_proj = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention, then feed-forward, each added to the residual stream.

    ``pre`` norms compute x + branch(norm(x)). ``reordered`` norms (Swin; Chameleon-34B) compute
    x + norm(branch(x)), which bounds what a branch can add.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)
        self.norm_placement = config.norm_placement

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rotation: tuple[Float[Tensor, "B T 1 H"], Float[Tensor, "B T 1 H"]],
        mask: Mask | None,
        cache: LayerKVCache | None,
    ) -> Float[Tensor, "B T D"]:
        if self.norm_placement == "pre":
            attended = self.attention(self.attention_norm(x), rotation, mask, cache)
            x = x + self.dropout(attended)
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        attended = self.attention_norm(self.attention(x, rotation, mask, cache))
        x = x + self.dropout(attended)
        return x + self.dropout(self.feed_forward_norm(self.feed_forward(x)))


class Trunk(nn.Module):
    """The blocks and the final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.rotation = Rotation(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        positions: Int[Tensor, "B T"],
        mask: Mask | None = None,
        cache: Sequence[LayerKVCache] | None = None,
    ) -> Float[Tensor, "B T D"]:
        rotation = self.rotation(positions)
        for i, block in enumerate(self.blocks):
            x = block(x, rotation, mask, None if cache is None else cache[i])
        return self.norm(x)


class Decoder(nn.Module):
    """embedding → trunk → head.

    The parameters of a new decoder are uninitialised until :func:`pardalis.model.initialise` or a
    state dict sets them, so a large one can be built on the meta device.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.trunk = Trunk(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def hidden(
        self,
        ids: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        mask: Mask | None = None,
        cache: Sequence[LayerKVCache] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return the final hidden states, which the head reads.

        Args:
            positions: position of each token in its document, for RoPE; default: 0, 1, 2, ...
            mask: True where attention is allowed, or another form of :data:`pardalis.model.Mask`;
                default: causal.
            cache: the key-value cache of each layer, which also masks; ``mask`` is then ignored.
        """
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        embedded = self.embedding(ids)
        if self.config.embedding_norm:
            embedded = F.rms_norm(embedded, embedded.shape[-1:], eps=self.config.norm_eps)
        return self.trunk(embedded, positions, mask, cache)

    def forward(
        self,
        ids: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        mask: Mask | None = None,
        cache: Sequence[LayerKVCache] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Return the logits of the next token at every position; arguments as in :meth:`hidden`."""
        return self.head(self.hidden(ids, positions, mask, cache))
