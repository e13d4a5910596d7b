"""A tiny bundle that is evaluated."""

from pathlib import Path

import pytest
import torch
from shapes import decoder_config

from pardalis.bundle import Bundle
from pardalis.model import Decoder, initialise


@pytest.fixture(scope="session")
def bundle(codec) -> Bundle:
    torch.set_num_threads(1)
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=64, d_model=32, n_layers=2, n_heads=4,
        n_kv_heads=2, d_ff=64, init_std=0.3,
    )  # fmt: skip
    return Bundle(initialise(Decoder(config), 0).eval(), codec, {"recipe": "tiny"})


@pytest.fixture(scope="session")
def bundle_folder(bundle, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    bundle.save(folder)
    return folder
