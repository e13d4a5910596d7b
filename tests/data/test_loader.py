from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.batch import Batch
from pardalis.data import Loader, Location, PairLoader, Shards, ShardWriter
from pardalis.errors import ConfigError, DataError
from pardalis.tokens import Encoded

PAD = 1
ROW_TOKENS = 24


@pytest.fixture
def sources(write_shards):
    def documents(n: int, offset: int) -> list[list[int]]:
        return [[0, *[offset + i % 20] * (1 + i * 7 % 20), 2] for i in range(n)]

    return {
        "owls": write_shards(documents(40, 10), ROW_TOKENS, name="owls"),
        "foxes": write_shards(documents(9, 50), ROW_TOKENS, name="foxes"),
    }


def make_loader(sources, *, batch_rows: int = 8, seed: int = 5) -> Loader:
    weights = {"owls": 3.0, "foxes": 1.0}
    return Loader(sources, weights, ROW_TOKENS, batch_rows, seed, PAD)


def assert_equal(first: Batch, second: Batch) -> None:
    for name in ("ids", "targets", "weights", "positions", "documents"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_example(write_shards):
    shards = write_shards([[0, 11, 12, 2], [0, 21, 2]], 9)
    batch = Loader({"a": shards}, {"a": 1.0}, 9, 1, 0, PAD).row("a", 0)
    assert batch.ids.tolist() == [[0, 11, 12, 2, 0, 21, 2, 1, 1]]
    assert batch.targets.tolist() == [[11, 12, 2, 1, 21, 2, 1, 1, 1]]
    assert batch.weights.tolist() == [[1, 1, 1, 0, 1, 1, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 0]]
    assert batch.documents.tolist() == [[0, 0, 0, 0, 1, 1, 1, -1, -1]]


@given(
    st.lists(st.lists(st.integers(2, 99), min_size=1, max_size=12), min_size=1, max_size=20),
    st.integers(0, 30),
)
@settings(max_examples=40, deadline=None)
def test_every_position_agrees_with_its_document(tmp_path_factory, documents, step):
    folder = tmp_path_factory.mktemp("shards")
    writer = ShardWriter(folder, 100, 30)
    for ids in documents:
        writer.add("", Encoded.of(ids))
    writer.finish(12, codec="")
    shards = Shards.open(folder)
    loader = Loader({"a": shards}, {"a": 1.0}, 12, 2, 0, PAD)
    batch = loader.batch(step)
    for b in range(2):
        row = loader.locate(2 * step + b).row
        members = [documents[document] for document in shards.row(row)]
        for t, number in enumerate(batch.documents[b].tolist()):
            position = int(batch.positions[b, t])
            if number == -1:
                assert (batch.ids[b, t], batch.weights[b, t]) == (PAD, 0)
                continue
            ids = members[number]
            assert batch.ids[b, t] == ids[position]
            is_last = position == len(ids) - 1
            assert batch.weights[b, t] == (0 if is_last else 1)
            assert batch.targets[b, t] == (PAD if is_last else ids[position + 1])
        assert (batch.documents[b] >= 0).sum() == sum(map(len, members))


def test_a_step_is_the_same_in_a_new_loader(sources):
    begun = make_loader(sources)
    earlier = [begun.batch(step) for step in range(7)]
    assert_equal(begun.batch(7), make_loader(sources).batch(7))
    assert_equal(begun.batch(3), earlier[3])


def test_another_seed_gives_other_rows(sources):
    first, second = make_loader(sources, seed=0), make_loader(sources, seed=1)
    assert not torch.equal(first.batch(0).ids, second.batch(0).ids)


def test_the_sequence_of_rows_does_not_depend_on_how_it_is_sliced(sources):
    whole, halves = make_loader(sources, batch_rows=8), make_loader(sources, batch_rows=4)
    for step in range(5):
        ids = torch.cat([halves.batch(2 * step).ids, halves.batch(2 * step + 1).ids])
        assert torch.equal(whole.batch(step).ids, ids)
        for size in (1, 2, 4, 8):
            ranks = [whole.batch(step, rank, size).ids for rank in range(size)]
            assert torch.equal(whole.batch(step).ids, torch.cat(ranks))


def test_ranks_must_divide_the_rows_of_a_step(sources):
    with pytest.raises(ConfigError, match=r"batch_rows \(8\) must be a multiple of the 3 ranks"):
        make_loader(sources).batch(0, 0, 3)


def test_locate_agrees_with_batches(sources):
    loader = make_loader(sources)
    batch = loader.batch(11)
    for j in range(8):
        location = loader.locate(11 * 8 + j)
        assert torch.equal(loader.row(location.source, location.row).ids[0], batch.ids[j])
        shards = sources[location.source]
        assert location.documents == tuple(shards.names[d] for d in shards.row(location.row))
        assert all(name.startswith(location.source) for name in location.documents)


def test_an_epoch_serves_every_document_of_a_source_once(sources):
    loader = make_loader(sources)
    seen: list[str] = []
    position = 0
    while (location := loader.locate(position)) and len(seen) < 40:
        if location.source == "owls":
            assert location.epoch == 0
            seen += location.documents
        position += 1
    assert sorted(seen) == sorted(sources["owls"].names)


def test_weights_decide_the_share_of_rows(sources):
    loader = make_loader(sources)
    served = [loader.locate(position).source for position in range(400)]
    assert served.count("owls") == 300


def test_location_is_a_plain_record(write_shards):
    loader = Loader({"a": write_shards([[0, 11, 2]], 8)}, {"a": 1.0}, 8, 1, 0, PAD)
    assert loader.locate(3) == Location("a", 3, 0, ("shards-0",))


def test_shards_for_other_rows_are_refused(sources):
    with pytest.raises(
        DataError, match=r"'owls' in .* rows of 24 tokens, but row_tokens is 32; prepare"
    ):
        Loader(sources, {"owls": 1.0, "foxes": 1.0}, 32, 8, 0, PAD)


def test_sources_without_weights_are_refused(sources):
    with pytest.raises(ConfigError, match=r"'foxes' has no weight .* give every source one weight"):
        Loader(sources, {"owls": 1.0}, ROW_TOKENS, 8, 0, PAD)
    with pytest.raises(ConfigError, match=r"weighs 'newts', which is no source; .* foxes, owls"):
        Loader(sources, {"owls": 1.0, "foxes": 1.0, "newts": 1.0}, ROW_TOKENS, 8, 0, PAD)


# ── weights ──────────────────────────────────────────────────────────────────────────────────────


def test_the_weight_of_a_position_is_that_of_its_target(tmp_path):
    writer = ShardWriter(tmp_path, 100, 100)
    for ids, weights in (([0, 11, 12, 13, 2], [0, 0, 0.5, 1, 2]), ([0, 21, 2], [1, 1, 0])):
        writer.add("", Encoded(np.array(ids), np.array(weights, dtype=np.float32)))
    writer.finish(9, codec="")
    batch = Loader({"a": Shards.open(tmp_path)}, {"a": 1.0}, 9, 1, 0, PAD).row("a", 0)
    assert batch.ids.tolist() == [[0, 11, 12, 13, 2, 0, 21, 2, 1]]
    assert batch.weights.tolist() == [[0, 0.5, 1, 2, 0, 1, 0, 0, 0]]
    assert batch.weights.dtype == torch.float32


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────

PAIR_TOKENS = 12


def write_pairs(folder: Path, n_pairs: int, first: int = 0) -> Shards:
    """Pair i has the prompt 30 + i, and a chosen and a rejected completion of other lengths."""
    writer = ShardWriter(folder, 100, 20)
    for i in range(first, first + n_pairs):
        for word, n in (("chosen", 1 + i % 7), ("rejected", 8 - i % 7)):
            ids = [0, 30 + i, *[10 if word == "chosen" else 20] * n, 2]
            weights = np.array([0, 0, *[1] * (n + 1)], dtype=np.float32)
            writer.add(f"{i}#{word}", Encoded(np.array(ids), weights))
    writer.finish(PAIR_TOKENS, codec="", pairs=True)
    return Shards.open(folder)


@pytest.fixture
def pairs(tmp_path) -> dict[str, Shards]:
    for name in ("owls", "foxes"):
        (tmp_path / "pairs" / name).mkdir(parents=True)
    return {
        "owls": write_pairs(tmp_path / "pairs" / "owls", 11),
        "foxes": write_pairs(tmp_path / "pairs" / "foxes", 5, first=11),
    }


def pair_loader(pairs, *, batch_rows: int = 8) -> PairLoader:
    return PairLoader(pairs, {"owls": 3.0, "foxes": 1.0}, PAIR_TOKENS, batch_rows, 5, PAD)


def prompts(batch: Batch) -> list[int]:
    return batch.ids[:, 1].tolist()


def test_rows_of_a_pair_are_adjacent_and_padded(tmp_path):
    shards = write_pairs(tmp_path, 1)
    batch = PairLoader({"a": shards}, {"a": 1.0}, PAIR_TOKENS, 2, 0, PAD).batch(3)
    assert batch.ids.tolist() == [
        [0, 30, 10, 2, 1, 1, 1, 1, 1, 1, 1, 1],
        [0, 30, 20, 20, 20, 20, 20, 20, 20, 20, 2, 1],
    ]
    assert batch.weights.tolist() == [[0, 1, 1, *[0] * 9], [0, *[1] * 9, 0, 0]]
    assert batch.documents.tolist() == [[0] * 4 + [-1] * 8, [0] * 11 + [-1]]


@given(st.integers(0, 50), st.sampled_from([1, 2, 4]))
@settings(deadline=None, max_examples=30)
def test_pairs_are_never_torn_apart(tmp_path_factory, step, size):
    if not _PAIRS:
        for name, (n, first) in {"owls": (11, 0), "foxes": (5, 11)}.items():
            _PAIRS[name] = write_pairs(tmp_path_factory.mktemp(name), n, first)
    loader = pair_loader(_PAIRS)
    shares = [pair_loader(_PAIRS).batch(step, rank, size) for rank in range(size)]
    for share in shares:
        assert len(share.ids) == 8 // size
        for i in range(0, len(share.ids), 2):
            assert share.ids[i, 1] == share.ids[i + 1, 1]
            assert (share.ids[i, 2], share.ids[i + 1, 2]) == (10, 20)
    whole = loader.batch(step)
    assert torch.equal(torch.cat([share.ids for share in shares]), whole.ids)
    assert_equal(loader.at(range(4 * step, 4 * step + 4)), whole)
    for i in range(4):
        location = loader.locate(4 * step + i)
        prompt = prompts(whole)[2 * i] - 30
        assert location.documents == (f"{prompt}#chosen", f"{prompt}#rejected")


_PAIRS: dict[str, Shards] = {}  # written once for all examples


def test_an_epoch_serves_every_pair_once(pairs):
    loader = PairLoader({"owls": pairs["owls"]}, {"owls": 1.0}, PAIR_TOKENS, 2, 5, PAD)
    for epoch in range(3):
        served = [prompts(loader.batch(11 * epoch + step))[0] for step in range(11)]
        assert sorted(served) == [30 + i for i in range(11)]


@pytest.mark.parametrize("size", [3, 8])
def test_ranks_share_whole_pairs(pairs, size):
    with pytest.raises(
        ConfigError, match=rf"batch_rows \(8\) must be a multiple of 2 rows for each of the {size}"
    ):
        pair_loader(pairs).batch(0, 0, size)


def test_rows_and_pairs_are_not_mistaken(pairs, sources):
    with pytest.raises(DataError, match=r"'owls' .* holds pairs .* load it with `PairLoader`"):
        Loader(pairs, {"owls": 1.0, "foxes": 1.0}, PAIR_TOKENS, 8, 0, PAD)
    with pytest.raises(DataError, match=r"'owls' .* holds no pairs .* the reader 'pairs'"):
        PairLoader(sources, {"owls": 1.0, "foxes": 1.0}, ROW_TOKENS, 8, 0, PAD)
