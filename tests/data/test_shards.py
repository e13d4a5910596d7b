import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.data import Shards, ShardWriter
from pardalis.data import shards as shards_module
from pardalis.data.arrays import ArrayFile
from pardalis.errors import DataError
from pardalis.tokens import Encoded

DOCUMENTS = [[0, *range(10, 10 + n), 2] for n in (3, 30, 7, 40, 1, 12)]


def test_documents_round_trip_over_several_shards(write_shards):
    shards = write_shards(DOCUMENTS, 64)
    assert [shards.document(i).ids.tolist() for i in range(6)] == DOCUMENTS
    assert shards.names == [f"shards-{i}" for i in range(6)]
    assert (shards.n_documents, shards.n_tokens, shards.row_tokens) == (6, 105, 64)
    assert sorted(d for row in range(shards.n_rows) for d in shards.row(row)) == list(range(6))
    assert len(list(shards.folder.glob("ids-*.npy"))) == 2


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_token_ids_have_the_narrowest_dtype_for_the_vocabulary(write_shards, vocab_size, dtype):
    shards = write_shards([[0, vocab_size - 1, 2]], 8, vocab_size=vocab_size)
    assert shards.document(0).ids.tolist() == [0, vocab_size - 1, 2]
    assert np.load(shards.folder / "ids-00000.npy").dtype == dtype


def test_plain_numpy_opens_the_files(write_shards):
    folder = write_shards(DOCUMENTS, 64).folder
    documents = np.load(folder / "documents.npy")
    offsets = np.load(folder / "rows-64-offsets.npy")
    members = np.load(folder / "rows-64-members.npy")
    for row in range(len(offsets) - 1):
        lengths = documents[members[offsets[row] : offsets[row + 1]], 2]
        assert 0 < lengths.sum() <= 64
    shard, start, length = documents[3]
    ids = np.load(folder / f"ids-{shard:05d}.npy")[start : start + length]
    assert ids.tolist() == DOCUMENTS[3]


def test_a_name_may_hold_any_character(tmp_path: Path):
    names = ["a\nb", "\u2028 \x85", "naïve 🦉", "\udc80", ""]
    writer = ShardWriter(tmp_path, 100, 10)
    for name in names:
        writer.add(name, Encoded.of([0, 2]))
    writer.finish(8, codec="")
    assert Shards.open(tmp_path).names == names


def test_shards_without_documents_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="at least one document"):
        ShardWriter(tmp_path, 100, 10).finish(8, codec="")


def test_another_codec_is_refused(write_shards):
    folder = write_shards(DOCUMENTS, 64).folder
    assert Shards.open(folder, codec="codec-a").n_documents == 6
    with pytest.raises(DataError, match=r"are of codec codec-a, but codec-b is in use; prepare"):
        Shards.open(folder, codec="codec-b")


@pytest.mark.parametrize(
    "name", ["ids-00001.npy", "documents.npy", "rows-64-offsets.npy", "rows-64-members.npy"]
)
def test_a_missing_or_truncated_file_is_named(write_shards, name):
    file = write_shards(DOCUMENTS, 64).folder / name
    content = file.read_bytes()
    for n_bytes in (len(content) - 1, 60, 0):
        file.write_bytes(content[:n_bytes])
        with pytest.raises(DataError, match=rf"{name} is incomplete or damaged .*prepare the sour"):
            Shards.open(file.parent)
    file.unlink()
    with pytest.raises(DataError, match=rf"{name} is missing; delete the folder and prepare"):
        Shards.open(file.parent)


def test_a_file_of_another_size_than_the_index_says_is_refused(write_shards):
    folder = write_shards(DOCUMENTS, 64).folder
    np.save(folder / "ids-00000.npy", np.zeros(7, dtype=np.uint16))
    with pytest.raises(DataError, match=r"holds uint16\[7\] where index.json says uint16\[88\]"):
        Shards.open(folder)


def test_damaged_names_are_refused(write_shards):
    shards = write_shards(DOCUMENTS, 64)
    (shards.folder / "names.jsonl").write_text('"a"\n')
    with pytest.raises(DataError, match=r"names.jsonl has 1 names for 6 documents"):
        _ = shards.names
    (shards.folder / "names.jsonl").write_text('"a')
    with pytest.raises(DataError, match=r"names.jsonl cannot be read"):
        _ = shards.names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, r"format version 3, this version of pardalis reads up to 2; update"),
        ({"format": "other"}, r"index.json does not describe shards"),
        ({"rows": None}, r"index.json lacks rows; delete the folder and prepare"),
    ],
)
def test_an_invalid_index_is_refused(write_shards, change, message):
    path = write_shards(DOCUMENTS, 64).folder / "index.json"
    index = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in index.items() if value is not None}))
    with pytest.raises(DataError, match=message):
        Shards.open(path.parent)


def test_a_missing_or_garbled_index_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"No shards in .*index.json is missing; prepare"):
        Shards.open(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(DataError, match=r"index.json is not valid JSON"):
        Shards.open(tmp_path)


# ── weights and pairs ────────────────────────────────────────────────────────────────────────────


def write(folder: Path, documents: list[Encoded], tokens_per_shard: int = 10, **options) -> Shards:
    writer = ShardWriter(folder, 100, tokens_per_shard)
    for number, document in enumerate(documents):
        writer.add(str(number), document)
    writer.finish(64, codec="c", **options)
    return Shards.open(folder)


weighted = st.lists(
    st.tuples(st.integers(0, 99), st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0])),
    min_size=1,
    max_size=12,
).map(
    lambda pairs: Encoded(
        np.array([i for i, _ in pairs]), np.array([w for _, w in pairs], dtype=np.float32)
    )
)


@given(st.lists(weighted, min_size=1, max_size=8), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_weights_survive(tmp_path_factory, documents, tokens_per_shard):
    shards = write(tmp_path_factory.mktemp("shards"), documents, tokens_per_shard)
    assert [shards.document(i) for i in range(len(documents))] == documents
    files = len(list(shards.folder.glob("weights-*.npy")))
    assert (files > 0) == any(document.is_weighted for document in documents)


def test_weights_are_written_only_where_one_differs_from_1(tmp_path: Path):
    plain = Encoded.of([0, 9, 2])
    (tmp_path / "plain").mkdir()
    (tmp_path / "weighted").mkdir()
    folder = write(tmp_path / "plain", [plain] * 6, 6).folder
    assert not list(folder.glob("weights-*"))
    assert json.loads((folder / "index.json").read_text())["version"] == 1
    masked = Encoded(plain.ids, np.array([0, 0, 1], dtype=np.float32))
    shards = write(tmp_path / "weighted", [plain, plain, plain, masked], 6)
    assert [path.name for path in shards.folder.glob("weights-*")] == ["weights-00001.npy"]
    assert np.load(shards.folder / "weights-00001.npy").dtype == np.float16
    assert json.loads((shards.folder / "index.json").read_text())["version"] == 2
    (shards.folder / "weights-00001.npy").unlink()
    with pytest.raises(DataError, match=r"weights-00001.npy is missing; delete the folder"):
        Shards.open(shards.folder)


def test_room_is_kept_in_rows(tmp_path: Path):
    rooms = np.arange(65) + 30
    shards = write(tmp_path, [Encoded.of([0, 9, 2])] * 4, rooms=rooms)
    assert shards.n_rows == 4  # twice 3 + 30 exceeds 64
    assert shards.n_tokens == 12


def test_pairs_stand_in_the_place_of_rows(tmp_path: Path):
    documents = [Encoded.of([0, *[9] * n, 2]) for n in (60, 1, 3, 40)]
    shards = write(tmp_path, documents, pairs=True)
    assert [shards.row(row) for row in range(shards.n_rows)] == [[0, 1], [2, 3]]
    assert shards.has_pairs
    assert json.loads((tmp_path / "index.json").read_text())["version"] == 2


def test_half_a_pair_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="an even number of documents, got 3"):
        write(tmp_path, [Encoded.of([0, 2])] * 3, pairs=True)


# ── files that grow ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lengths", [(), (0,), (1,), (3, 0, 5), (99_999, 1), (7,) * 200])
def test_an_array_that_grows_is_that_of_numpy(tmp_path, lengths):
    for dtype in (np.uint16, np.uint32, np.float16):
        parts = [(np.arange(n) % 1_000).astype(dtype) for n in lengths]
        file = ArrayFile(tmp_path / "grown.npy", np.dtype(dtype))
        for part in parts:
            file.append(part)
        file.close()
        np.save(tmp_path / "whole.npy", np.concatenate([np.empty(0, dtype), *parts]))
        grown, whole = (tmp_path / f"{name}.npy" for name in ("grown", "whole"))
        assert grown.read_bytes() == whole.read_bytes()


def test_what_waits_in_memory_changes_no_shards(tmp_path, monkeypatch):
    """Also where weights begin in the middle of a shard, so that the ones before are filled in."""
    found = []
    for waiting in (1, 7, 1 << 20):
        monkeypatch.setattr(shards_module, "_WAITING_TOKENS", waiting)
        folder = tmp_path / str(waiting)
        folder.mkdir()
        writer = ShardWriter(folder, 100, tokens_per_shard=30)
        for n in range(12):
            weights = np.full(5, 0.5 if n == 3 else 1, np.float32)
            writer.add(f"d{n}", Encoded(np.arange(5) + n, weights))
        writer.finish(row_tokens=10, codec="a")
        found.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
        assert Shards.open(folder).document(3).weights.tolist() == [0.5] * 5
    assert found[0] == found[1] == found[2]
    assert [name for name in found[0] if name.startswith("weights")] == ["weights-00000.npy"]
