"""What the whole suite shares: shapes checked at run time, and a tiny model built in a second."""

import checks

# Every annotated function of the package checks its dtypes and shapes while tests run.
checks.install()

from pathlib import Path

import pytest
import torch
from shapes import decoder_config

from pardalis.codec import Codec
from pardalis.model import Decoder, ModelConfig, initialise
from pardalis.tokens import Grammar, TextTokenizer, Vocabulary, train_text_tokenizer
from pardalis.vq import ImageTokenizer, ImageTokenizerConfig

# Files that take longest. They begin first, so that no process waits for another's at the end.
LONGEST = ("docs/test_pages_run.py", "parallel/test_sharding.py", "flow/test_forms.py")

TEXTS = ["An owl sat on the old oak.", "The owl, the cat and the fox.", "A fox ran. naïve 🦉\tok\n"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent
    order = {folder / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="session")
def text_tokenizer() -> TextTokenizer:
    return train_text_tokenizer(TEXTS, 300)


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    """12 codes and 20 text pieces: small enough to enumerate."""
    return Vocabulary.build(n_codes=12, n_text=20)


@pytest.fixture(scope="session")
def grammar(vocabulary: Vocabulary) -> Grammar:
    return Grammar(vocabulary, codes_per_image=4)


@pytest.fixture(scope="session")
def tiny_config(vocabulary: Vocabulary) -> ModelConfig:
    return decoder_config(
        vocab_size=vocabulary.size,
        context=48,
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        d_ff=64,
        init_std=0.3,  # large, so that logits differ enough to show a wrong position
    )


@pytest.fixture
def tiny_model(tiny_config: ModelConfig) -> Decoder:
    torch.set_num_threads(1)
    return initialise(Decoder(tiny_config), seed=0).eval()


@pytest.fixture(scope="session")
def codec(text_tokenizer: TextTokenizer) -> Codec:
    """16-pixel images as 2 x 2 codes of 32; untrained, but a real network."""
    config = ImageTokenizerConfig(
        resolution=16,
        patch_size=4,
        channels=8,
        channel_multipliers=(1, 2),
        n_res_blocks=1,
        norm_groups=4,
        z_channels=8,
        code_width=8,
        n_codes=32,
    )
    torch.set_num_threads(1)
    tokenizer = ImageTokenizer(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return Codec.of(text_tokenizer, tokenizer)
