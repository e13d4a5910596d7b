"""Configs of decoders in one call: options by the short names that a decoder's tables hold.

``decoder_config(n_heads=4, d_ff=64, ...)`` is a config with ``attention.n_heads`` and
``feed_forward.width``; the short names are those of :data:`pardalis.model.config.RENAMED`.
"""

from typing import Any

from pardalis import config as configs
from pardalis.model import ModelConfig, config_of
from pardalis.model.config import from_flat


def decoder_config(**options: Any) -> ModelConfig:
    """Return the config of a decoder."""
    config: ModelConfig = config_of(options)
    return config


def changed(config: ModelConfig, **options: Any) -> ModelConfig:
    """Return a config with other options."""
    values = configs.merged(configs.to_dict(config), from_flat(options))
    return decoder_config(**values)
