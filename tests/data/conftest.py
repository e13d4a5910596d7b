"""What the tests of data/ share: shards written from plain ids."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pardalis.data import Shards, ShardWriter
from pardalis.tokens import Encoded

WriteShards = Callable[..., Shards]


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
            writer.add(f"{name}-{number}", Encoded.of(ids))
        writer.finish(row_tokens, codec="codec-a")
        return Shards.open(folder)

    return write
