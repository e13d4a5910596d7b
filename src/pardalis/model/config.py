"""The config of a decoder, and presets: functions that return the shapes of decoders.

Each part has a config of its own. Where a part has several kinds, ``kind`` chooses among them:

    attention      heads, biases, QK-norm
    feed_forward   :data:`pardalis.model.feed_forward.FEED_FORWARDS`
    norm           RMSNorm or LayerNorm
    position       RoPE or a learned table
    residual       where the norms stand, and what skip and branch are multiplied by
    embedding      what happens to the embeddings before the first block
    init           initial values
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from pardalis import config as configs
from pardalis.config import (
    check_above,
    check_at_least,
    check_at_most,
    check_finite,
    check_fractions,
)
from pardalis.errors import ConfigError
from pardalis.model.feed_forward import (
    FEED_FORWARDS,
    FeedForwardConfig,
    MLPConfig,
    SwiGLUConfig,
)
from pardalis.model.norms import LayerNormConfig, NormConfig, RMSNormConfig
from pardalis.model.positions import LearnedPositionsConfig, RoPEConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class NoQKNormConfig:
    """Queries and keys are not normalised."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class QKLayerNormConfig:
    """LayerNorm over the width of a head (Chameleon, arXiv 2405.09818, section 2.3)."""

    kind: Literal["layer_norm"] = "layer_norm"
    groups: int | None = None  # groups of heads that share a scale and shift; None: one per head
    eps: float = 1e-5

    def __post_init__(self) -> None:
        check_at_least(self, groups=1, eps=0)
        check_finite(self, "eps")


@dataclass(frozen=True, kw_only=True, slots=True)
class QKRMSNormConfig:
    """RMSNorm over each head with one scale for all (Qwen3), or over all heads at once (OLMo-2)."""

    kind: Literal["rms_norm"] = "rms_norm"
    over: Literal["head", "heads"] = "head"
    groups: int = 1  # of heads: each has a scale of its own, or is normalised by itself
    eps: float = 1e-5

    def __post_init__(self) -> None:
        check_at_least(self, groups=1, eps=0)
        check_finite(self, "eps")


QKNormConfig = QKLayerNormConfig | QKRMSNormConfig | NoQKNormConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionConfig:
    """Shape and options of attention."""

    n_heads: int  # query heads
    n_kv_heads: int | None = None  # key and value heads; fewer: grouped queries; None: n_heads
    d_head: int | None = None  # width of a head; None: d_model / n_heads
    bias: Literal["none", "qkv", "all"] = "none"  # which projections have a bias
    qk_norm: QKNormConfig = field(default_factory=QKLayerNormConfig)  # before RoPE

    def __post_init__(self) -> None:
        check_at_least(self, n_heads=1, n_kv_heads=1, d_head=1)
        check_at_most(self, n_heads=2**16, d_head=2**16)
        if self.n_heads % self.kv_heads:
            raise ConfigError(
                f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})."
            )
        groups = getattr(self.qk_norm, "groups", None)
        if groups is not None and self.kv_heads % groups:
            raise ConfigError(
                f"qk_norm.groups ({groups}) must divide n_kv_heads ({self.kv_heads}): groups have "
                "equal numbers of key heads."
            )

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.n_kv_heads or self.n_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class ResidualConfig:
    """How a branch (attention or feed-forward) is added to the residual stream.

    ========== ==============================================
    pre        x = skip * x + branch * f(norm(x))
    reordered  x = skip * x + branch * norm(f(x))
    post       x = norm(skip * x + branch * f(x))
    ========== ==============================================

    ``reordered`` is that of Swin, Chameleon-34B and OLMo-2, which bounds what a branch can add.
    After ``post`` there is no norm behind the last block. The coefficients are those of DeepScaleLM
    (arXiv 2403.09635), where skip^2 + branch^2 = 1.
    """

    placement: Literal["pre", "reordered", "post"] = "pre"
    skip: float = 1.0
    branch: float = 1.0

    def __post_init__(self) -> None:
        check_above(self, skip=0, branch=0)
        check_finite(self, "skip", "branch")


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingConfig:
    """What happens to the embeddings of tokens before the first block."""

    # RMSNorm without a scale, in the groups of model.norm, so that embeddings enter the residual
    # stream at the size of a normalised branch, whatever the learning rate makes of the table.
    norm: bool = False
    scale: float = 1.0  # Gemma has sqrt(d_model)

    def __post_init__(self) -> None:
        check_above(self, scale=0)
        check_finite(self, "scale")


@dataclass(frozen=True, kw_only=True, slots=True)
class InitConfig:
    """Initial values; the table :data:`pardalis.model.parameters.PARAMETERS` says of which."""

    std: float = 0.02  # std of matrices
    # The matrices that end a branch: std divided by the root of the number of branches, or not, or
    # all zero, so that the first blocks change nothing (CM3Leon).
    outputs: Literal["by_depth", "same", "zero"] = "by_depth"
    positions: float | None = None  # std of learned positions; None: std

    def __post_init__(self) -> None:
        check_above(self, std=0, positions=0)
        check_finite(self, "std")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Everything about a decoder but its vocabulary and context, which the data decides."""

    kind: str = "decoder"  # a line of pardalis.model.MODELS
    d_model: int  # width of the residual stream
    n_layers: int
    attention: AttentionConfig
    feed_forward: Annotated[FeedForwardConfig, FEED_FORWARDS]
    norm: NormConfig = field(default_factory=RMSNormConfig)
    position: RoPEConfig | LearnedPositionsConfig = field(default_factory=RoPEConfig)
    residual: ResidualConfig = field(default_factory=ResidualConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    tie_embeddings: bool = False  # whether the matrix of the head is that of the embedding
    init: InitConfig = field(default_factory=InitConfig)
    dropout: float = 0.0  # probability, on the outputs of attention and feed-forward

    def __post_init__(self) -> None:
        check_at_least(self, d_model=1, n_layers=1)
        check_at_most(self, d_model=2**20, n_layers=2**12)
        if self.d_model % self.norm.groups:
            raise ConfigError(
                f"norm.groups ({self.norm.groups}) must divide d_model ({self.d_model})."
            )
        n_heads = self.attention.n_heads
        if self.attention.d_head is None and self.d_model % n_heads:
            raise ConfigError(
                f"d_model ({self.d_model}) must be a multiple of attention.n_heads ({n_heads}), or "
                "attention.d_head must be given."
            )
        if isinstance(self.position, RoPEConfig) and self.d_head % 2:
            raise ConfigError(
                f"The width of a head must be an even integer for RoPE, got {self.d_head}; change "
                "d_model, attention.n_heads or attention.d_head."
            )
        check_fractions(self, "dropout", below_one=True)

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return self.attention.d_head or self.d_model // self.attention.n_heads

    @property
    def n_blocks(self) -> int:
        """Blocks of a forward pass, which are sharded and recomputed one by one."""
        return self.n_layers

    @property
    def summary(self) -> str:
        """The shape in a few words."""
        return (
            f"{self.n_layers} layers, width {self.d_model}, {self.attention.n_heads} heads, "
            f"{self.residual.placement} norms"
        )

    def sized(self, vocab_size: int, context: int) -> "ModelConfig":
        """Return the config of a decoder of this shape."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return ModelConfig(vocab_size=vocab_size, context=context, **values)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig(ModelShape):
    """Shape and options of a decoder."""

    vocab_size: int  # tokens of all modalities
    context: int  # longest sequence, in tokens

    def __post_init__(self) -> None:
        ModelShape.__post_init__(self)
        check_at_least(self, vocab_size=1, context=1)
        check_at_most(self, vocab_size=2**31 - 1, context=2**31 - 1)

    def check_tensor(self, tensor: int) -> None:
        """Raise ConfigError unless tensor-parallel ranks can divide the decoder evenly."""
        qk_norm = self.attention.qk_norm
        if tensor > 1 and isinstance(qk_norm, QKRMSNormConfig) and qk_norm.over == "heads":
            raise ConfigError(
                f"tensor = {tensor} splits heads among ranks, and attention.qk_norm is over all "
                "heads; set tensor = 1 in [parallel] and raise shard."
            )
        for name, size in (
            ("attention.n_kv_heads", self.attention.kv_heads),
            ("attention.n_heads", self.attention.n_heads),
            ("feed_forward.width", self.feed_forward.width),
            ("vocab_size", self.vocab_size),
        ):
            if size % tensor:
                raise ConfigError(
                    f"tensor = {tensor} does not divide {name} = {size}; change tensor in "
                    "[parallel] or the shape of the model."
                )


# Keys of earlier versions, when a decoder's config had no tables.
RENAMED = {
    "n_heads": "attention.n_heads",
    "n_kv_heads": "attention.n_kv_heads",
    "qk_norm": "attention.qk_norm.kind",
    "qk_norm_groups": "attention.qk_norm.groups",
    "qk_norm_eps": "attention.qk_norm.eps",
    "d_ff": "feed_forward.width",
    "rope_theta": "position.theta",
    "rope_scaling": "position.scaling",
    "norm_placement": "residual.placement",
    "norm_eps": "norm.eps",
    "embedding_norm": "embedding.norm",
    "init_std": "init.std",
}


def from_flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a config without tables, as earlier versions wrote it, in today's."""
    tables = {name: dict(v) if isinstance(v, Mapping) else v for name, v in values.items()}
    configs.rename(tables, RENAMED)
    attention = tables.get("attention")
    if not isinstance(attention, dict):
        return tables
    qk_norm = attention.get("qk_norm")
    if isinstance(qk_norm, dict) and qk_norm.get("kind") == "none":
        attention["qk_norm"] = {"kind": "none"}  # whose eps and groups said nothing
    return tables


def swiglu_width(d_model: int, multiplier: float = 1.0, multiple_of: int = 256) -> int:
    """Return Llama's feed-forward width: two thirds of 4 d times a factor, rounded up."""
    width = int(multiplier * (2 * 4 * d_model // 3))
    return -(-width // multiple_of) * multiple_of


def tiny() -> ModelShape:
    """The quickstart's decoder, which learns a few hundred images on a laptop in minutes."""
    return ModelShape(
        d_model=128,
        n_layers=4,
        attention=AttentionConfig(n_heads=4),
        feed_forward=SwiGLUConfig(width=384),
    )


def small() -> ModelShape:
    """A decoder of 27.3 million parameters, without embedding and head."""
    return ModelShape(
        d_model=512,
        n_layers=8,
        attention=AttentionConfig(n_heads=8),
        feed_forward=SwiGLUConfig(width=swiglu_width(512)),
    )


def chameleon_7b() -> ModelShape:
    """Chameleon-7B (arXiv 2405.09818, Table 1): pre-norm, dropout 0.1 in pre-training.

    Its vocabulary has 65,536 tokens and its context 4,096.
    """
    return ModelShape(
        d_model=4096,
        n_layers=32,
        attention=AttentionConfig(n_heads=32, qk_norm=QKLayerNormConfig(groups=1)),
        feed_forward=SwiGLUConfig(width=swiglu_width(4096)),
        dropout=0.1,
    )


def chameleon_34b() -> ModelShape:
    """Chameleon-34B: re-ordered norms, grouped-query attention, no dropout.

    The paper does not give the numbers of layers and heads. These give its size and agree with the
    four shards of the released checkpoint, which are the groups of QK-norm.
    """
    return ModelShape(
        d_model=8192,
        n_layers=48,
        attention=AttentionConfig(n_heads=64, n_kv_heads=8, qk_norm=QKLayerNormConfig(groups=4)),
        feed_forward=SwiGLUConfig(width=swiglu_width(8192)),
        residual=ResidualConfig(placement="reordered"),
    )


def _cm3leon(d_model: int, n_layers: int, n_heads: int) -> ModelShape:
    """CM3Leon (arXiv 2309.02591, section 3): OPT's decoder without biases, dropout and LayerNorm's
    parameters. Its context is 4,096.

    The paper gives layers and width; the rest of the shape is OPT's (arXiv 2205.01068): heads,
    ReLU, and a head that is tied to the embedding.
    """
    return ModelShape(
        d_model=d_model,
        n_layers=n_layers,
        attention=AttentionConfig(n_heads=n_heads, qk_norm=NoQKNormConfig()),
        feed_forward=MLPConfig(width=4 * d_model, activation="relu", bias=False),
        norm=LayerNormConfig(parameters="none"),
        position=LearnedPositionsConfig(),
        tie_embeddings=True,
        init=InitConfig(std=0.006, outputs="zero", positions=0.0002),
    )


def cm3leon_350m() -> ModelShape:
    """CM3Leon-350M: 372 million parameters with 64,528 tokens."""
    return _cm3leon(1024, 24, 16)


def cm3leon_760m() -> ModelShape:
    """CM3Leon-760M: 785 million parameters with 64,528 tokens."""
    return _cm3leon(1536, 24, 16)


def cm3leon_7b() -> ModelShape:
    """CM3Leon-7B: 6.72 billion parameters with 64,528 tokens."""
    return _cm3leon(4096, 32, 32)


PRESETS: dict[str, Callable[[], ModelShape]] = {
    "tiny": tiny,
    "small": small,
    "chameleon_7b": chameleon_7b,
    "chameleon_34b": chameleon_34b,
    "cm3leon_350m": cm3leon_350m,
    "cm3leon_760m": cm3leon_760m,
    "cm3leon_7b": cm3leon_7b,
}
