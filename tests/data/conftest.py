"""What the tests of data/ share: a whole codec that is tiny, and shards written from plain ids."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from pardalis.codec import Codec
from pardalis.data import Shards, ShardWriter
from pardalis.tokens import TextTokenizer
from pardalis.vq import ImageTokenizer, ImageTokenizerConfig

WriteShards = Callable[..., Shards]


@pytest.fixture(scope="session")
def codec(text_tokenizer: TextTokenizer) -> Codec:
    """Byte-pair text, and pictures of 2 x 2 codes from an untrained network."""
    config = ImageTokenizerConfig(
        resolution=16,
        patch_size=4,
        channels=8,
        channel_multipliers=(1, 2),
        n_res_blocks=1,
        norm_groups=4,
        z_channels=8,
        code_width=4,
        n_codes=12,
    )
    return Codec.of(text_tokenizer, ImageTokenizer(config))


@pytest.fixture
def write_shards(tmp_path: Path) -> WriteShards:
    def write(
        documents: Sequence[Sequence[int]],
        row_tokens: int,
        *,
        name: str = "shards",
        vocab_size: int = 100,
        tokens_per_shard: int = 50,
    ) -> Shards:
        folder = tmp_path / name
        folder.mkdir()
        writer = ShardWriter(folder, vocab_size, tokens_per_shard)
        for number, ids in enumerate(documents):
            writer.add(f"{name}-{number}", np.array(ids))
        writer.finish(row_tokens, codec="codec-a")
        return Shards.open(folder)

    return write
