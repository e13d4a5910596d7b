"""The config of a decoder, and presets: functions that return configs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pardalis.config import check_at_least, check_fractions
from pardalis.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """Llama 3.1's scaling of RoPE's frequencies, which extends a trained context.

    A channel pair that turns at least ``high_freq_factor`` times within the original context keeps
    its frequency. One that turns at most ``low_freq_factor`` times has it divided by ``factor``.
    Between the two it is interpolated; see :func:`pardalis.model.attention.rope_frequencies`.

    Raises:
        ConfigError: a number is out of range.
    """

    factor: float  # divisor of the lowest frequencies
    low_freq_factor: float  # turns within the original context
    high_freq_factor: float  # turns within the original context
    original_context: int  # positions of the context before it was extended

    def __post_init__(self) -> None:
        check_at_least(self, factor=1, original_context=1)
        if not 0.0 < self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"low_freq_factor ({self.low_freq_factor}) must lie above 0 and below "
                f"high_freq_factor ({self.high_freq_factor})."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Shape and options of a decoder."""

    vocab_size: int  # tokens of all modalities
    context: int  # longest sequence, in tokens
    d_model: int  # width of the residual stream
    n_layers: int
    n_heads: int  # query heads
    n_kv_heads: int  # key and value heads; fewer than n_heads: grouped-query attention
    d_ff: int  # hidden width of the SwiGLU feed-forward
    rope_theta: float = 10_000.0  # base of the rotary position embedding
    rope_scaling: RopeScaling | None = None  # scaling of its frequencies, as in Llama 3.1
    qk_norm: Literal["layer_norm", "none"] = "layer_norm"  # on queries and keys, before RoPE
    qk_norm_groups: int | None = None  # groups of heads that share a scale; None: one per head
    qk_norm_eps: float = 1e-5
    norm_placement: Literal["pre", "reordered"] = "pre"  # input or output of each branch
    # Apply RMSNorm without a scale to the embedding's output, so that it enters the residual stream
    # at the size of a normalised branch, whatever the learning rate makes of the table.
    embedding_norm: bool = False
    dropout: float = 0.0  # probability, on the outputs of attention and feed-forward
    norm_eps: float = 1e-5
    init_std: float = 0.02  # std of matrices; residual outputs get init_std / sqrt(2 n_layers)

    def __post_init__(self) -> None:
        check_at_least(
            self, vocab_size=1, context=1, d_model=1, n_layers=1, n_heads=1, n_kv_heads=1, d_ff=1
        )
        if self.d_model % (2 * self.n_heads):
            raise ConfigError(
                f"d_model ({self.d_model}) must be a multiple of twice n_heads "
                f"({self.n_heads}): the width of a head must be an even integer for RoPE."
            )
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})."
            )
        groups = self.qk_norm_groups
        if groups is not None and (groups < 1 or self.n_kv_heads % groups):
            raise ConfigError(
                f"qk_norm_groups ({groups}) must divide n_kv_heads ({self.n_kv_heads}): groups "
                "have equal numbers of key heads."
            )
        check_fractions(self, "dropout", below_one=True)

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads


def swiglu_width(d_model: int, multiplier: float = 1.0, multiple_of: int = 256) -> int:
    """Return Llama's feed-forward width: two thirds of 4 d times a factor, rounded up."""
    width = int(multiplier * (2 * 4 * d_model // 3))
    return -(-width // multiple_of) * multiple_of


def _preset(
    vocab_size: int, context: int, *, d_model: int, n_heads: int, **options: Any
) -> ModelConfig:
    """Return a config; the default is a key head per query head and Llama's feed-forward width."""
    options = {"n_kv_heads": n_heads, "d_ff": swiglu_width(d_model)} | options
    return ModelConfig(
        vocab_size=vocab_size, context=context, d_model=d_model, n_heads=n_heads, **options
    )


def tiny(vocab_size: int, context: int = 256) -> ModelConfig:
    """The quickstart's decoder, which learns a few hundred images on a laptop in minutes."""
    return _preset(vocab_size, context, d_model=128, n_layers=4, n_heads=4, d_ff=384)


def small(vocab_size: int, context: int = 1024) -> ModelConfig:
    """A decoder of 27.3 million parameters, without embedding and head."""
    return _preset(vocab_size, context, d_model=512, n_layers=8, n_heads=8)


def chameleon_7b(vocab_size: int = 65_536, context: int = 4096) -> ModelConfig:
    """Chameleon-7B (arXiv 2405.09818, Table 1): pre-norm, dropout 0.1 in pre-training."""
    return _preset(
        vocab_size, context, d_model=4096, n_layers=32, n_heads=32, qk_norm_groups=1, dropout=0.1
    )


def chameleon_34b(vocab_size: int = 65_536, context: int = 4096) -> ModelConfig:
    """Chameleon-34B: re-ordered norms, grouped-query attention, no dropout.

    The paper does not give the numbers of layers and heads. These give its size and agree with the
    four shards of the released checkpoint, which are the groups of QK-norm.
    """
    return _preset(
        vocab_size,
        context,
        d_model=8192,
        n_layers=48,
        n_heads=64,
        n_kv_heads=8,
        qk_norm_groups=4,
        norm_placement="reordered",
    )


PRESETS: dict[str, Callable[..., ModelConfig]] = {
    "tiny": tiny,
    "small": small,
    "chameleon_7b": chameleon_7b,
    "chameleon_34b": chameleon_34b,
}
