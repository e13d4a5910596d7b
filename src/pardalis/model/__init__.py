"""The decoder transformer: its config and presets, its network, its initial values, its size."""

from pardalis.model.attention import LayerCache, document_mask
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
from pardalis.model.counts import Counts, count
from pardalis.model.decoder import Decoder
from pardalis.model.init import initialise

__all__ = [
    "PRESETS",
    "Counts",
    "Decoder",
    "LayerCache",
    "ModelConfig",
    "RopeScaling",
    "chameleon_7b",
    "chameleon_34b",
    "count",
    "document_mask",
    "initialise",
    "small",
    "swiglu_width",
    "tiny",
]
