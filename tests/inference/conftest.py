"""A bundle that generates in milliseconds."""

import pytest
from shapes import decoder_config

from pardalis.bundle import Bundle
from pardalis.model import Decoder, initialise


@pytest.fixture
def bundle(codec) -> Bundle:
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=40, d_model=32, n_layers=2, n_heads=4,
        n_kv_heads=2, d_ff=64, init_std=0.3,
    )  # fmt: skip
    return Bundle(initialise(Decoder(config), 0).eval(), codec, {})
