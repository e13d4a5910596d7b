"""The decoder transformer: config and presets, network, initial values, costs."""

from pardalis.model.attention import LayerKVCache
from pardalis.model.config import (
    PRESETS,
    ModelConfig,
    RopeScaling,
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
from pardalis.model.decoder import Decoder
from pardalis.model.init import initialise
from pardalis.model.masks import Mask, attention_mask, document_mask
