"""The decoder transformer: its config and presets, its network, its initial values, its size."""

from pardalis.model.attention import LayerCache
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
from pardalis.model.counts import (
    Counts,
    Execution,
    block_bytes_per_token,
    count,
    recomputed_bytes_per_token,
)
from pardalis.model.decoder import Decoder
from pardalis.model.init import initialise
from pardalis.model.masks import Mask, attention_mask, document_mask

__all__ = [
    "PRESETS",
    "Counts",
    "Decoder",
    "Execution",
    "LayerCache",
    "Mask",
    "ModelConfig",
    "RopeScaling",
    "attention_mask",
    "block_bytes_per_token",
    "chameleon_7b",
    "chameleon_34b",
    "count",
    "document_mask",
    "initialise",
    "recomputed_bytes_per_token",
    "small",
    "swiglu_width",
    "tiny",
]
