import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.batch import Batch
from pardalis.data import Loader, Location, Shards, ShardWriter
from pardalis.errors import ConfigError, DataError

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
        writer.add("", np.array(ids))
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
