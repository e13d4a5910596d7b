"""Models: configs and presets, the decoder, other kinds, initial values, costs."""

from pardalis.model.attention import LayerKVCache
from pardalis.model.auxiliary import AuxiliaryLosses, add_auxiliary_loss, auxiliary_losses
from pardalis.model.config import (
    PRESETS,
    AttentionConfig,
    EmbeddingConfig,
    InitConfig,
    ModelConfig,
    ModelShape,
    NoQKNormConfig,
    QKLayerNormConfig,
    QKRMSNormConfig,
    ResidualConfig,
    chameleon_7b,
    chameleon_34b,
    small,
    swiglu_width,
    tiny,
)
from pardalis.model.costs import (
    Execution,
    ModelCosts,
    block_bytes_per_token,
    model_costs,
    recomputed_bytes_per_token,
)
from pardalis.model.cross import CrossAttentionConfig, CrossConfig, CrossModel, CrossShape
from pardalis.model.decoder import Decoder
from pardalis.model.feed_forward import FEED_FORWARDS, MLPConfig, SwiGLUConfig
from pardalis.model.init import initial_values, initialise
from pardalis.model.kinds import MODELS, ModelKind, build, config_of, shape_of
from pardalis.model.language_model import CacheSpec, LanguageModel, LayerCacheSpec, TiedHead
from pardalis.model.masks import Mask, attention_mask, document_mask, masks_as_tensors
from pardalis.model.norms import LayerNormConfig, RMSNormConfig
from pardalis.model.parameters import PARAMETERS, PARTS
from pardalis.model.positions import (
    LearnedPositionsConfig,
    LinearRoPEScaling,
    RoPEConfig,
    RoPEScaling,
)
