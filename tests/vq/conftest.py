"""A tokenizer of 16-pixel images, 2 x 2 codes, with every option of the layout that has keys."""

import pytest
import torch

from pardalis.vq import QUANTIZERS, ImageTokenizer, ImageTokenizerConfig, initialise


@pytest.fixture
def small_config() -> ImageTokenizerConfig:
    return ImageTokenizerConfig(
        resolution=16,
        patch_size=4,
        channels=12,
        channel_multipliers=(1, 2),
        n_res_blocks=1,
        norm_groups=4,
        z_channels=8,
        code_width=6,
        n_codes=32,
        attention_resolutions=(4,),
        quantizer=QUANTIZERS["ema"](),
    )


@pytest.fixture
def small_tokenizer(small_config: ImageTokenizerConfig) -> ImageTokenizer:
    """Random weights, also where initialisation sets zeros, so every weight has an effect."""
    torch.set_num_threads(1)
    tokenizer = initialise(ImageTokenizer(small_config), seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return tokenizer
