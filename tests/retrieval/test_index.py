"""Building an index, and opening what others may have written."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from indexed_documents import write_source
from small_nets import write_clip

from pardalis.codec import Codec
from pardalis.data import SourceConfig
from pardalis.documents import Document, read_jsonl
from pardalis.errors import BundleError, ConfigError, DataError
from pardalis.retrieval import ClipConfig, Index, IndexConfig, SeparateNetsConfig, build_index
from pardalis.retrieval.embedders import embed


def test_documents_are_numbered_and_encoded(index, source, codec, clip_folder):
    documents = [each for each in read_jsonl(source.path) if isinstance(each, Document)]
    assert len(index) == len(documents) == 7
    assert index.numbers_of("pairs") == {f"pairs-{n}": n for n in range(7)}
    assert index.numbers_of("others") == {}
    embedder = index.embedder(ClipConfig(folder=clip_folder))
    for number, document in enumerate(documents):
        assert index.document(number) == codec.encode(document)
        assert index.lengths[number] == len(codec.encode(document))
        assert index.source_and_name(number) == ("pairs", document.name)
    np.testing.assert_allclose(index.vectors, embed(embedder, documents).whole, atol=1e-6)
    assert index.is_mixed.tolist() == [True] * 6 + [False]


def test_several_sources_follow_each_other(tmp_path, source, codec, config):
    more = write_source(tmp_path, "more", ["an oak", "a cat"], [8, None])
    both = build_index(tmp_path / "index", [source, more], codec, config)
    assert len(both) == 9
    assert both.source_and_name(7) == ("more", "more-0")
    assert both.numbers_of("more") == {"more-0": 7, "more-1": 8}
    assert both.document(8) == codec.encode(list(read_jsonl(more.path))[1])


def test_what_is_too_long_or_damaged_is_left_out(tmp_path, codec, config):
    source = write_source(tmp_path, "some", ["an owl", "owl " * 60, "a fox"], [0, None, 1])
    (tmp_path / "0.png").write_bytes(b"damaged")
    index = build_index(tmp_path / "index", [source], codec, config)
    assert index.numbers_of("some") == {"some-2": 0}
    assert np.linalg.norm(index.vectors[0]) == pytest.approx(1.0)


def test_an_unchanged_index_is_kept(tmp_path, codec, config):
    source = write_source(tmp_path, "some", ["an owl", "a fox"], [0, 1])
    folder = tmp_path / "index"
    first = build_index(folder, [source], codec, config)
    time = (folder / "index.json").stat().st_mtime_ns
    assert build_index(folder, [source], codec, config).identity == first.identity
    assert (folder / "index.json").stat().st_mtime_ns == time
    write_source(tmp_path, "some", ["an owl", "a cat"], [0, 1])
    assert build_index(folder, [source], codec, config).identity != first.identity
    assert (folder / "index.json").stat().st_mtime_ns != time


def test_an_index_names_no_file_outside_it(index, source, clip_folder):
    text = (index.folder / "index.json").read_text()
    assert str(clip_folder) not in text and str(source.path.parent) not in text


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


def test_nothing_is_replaced_that_is_no_index(tmp_path, source, codec, config):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(ConfigError, match=r"mine exists and holds no index\.json"):
        build_index(tmp_path / "mine", [source], codec, config)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]
    (tmp_path / "mine" / "file").rename(tmp_path / "mine" / "index.json")
    with pytest.raises(ConfigError, match=r"holds index\.json alone, which is no index"):
        build_index(tmp_path / "mine", [source], codec, config)
    folder = tmp_path / "index"
    build_index(folder, [source], codec, config)
    for kept in (folder, folder / "shards" / source.name):  # the latter has an index.json too
        (folder / "thesis").touch()
        with pytest.raises(ConfigError, match="also holds"):
            build_index(kept, [source], codec, replace(config, document_tokens=64))
        assert (folder / "thesis").is_file() and (folder / "shards" / source.name).is_dir()


def test_sources_that_hold_no_documents_to_retrieve(tmp_path, source, codec, config):
    folder = tmp_path / "index"
    with pytest.raises(ConfigError, match="sources is empty"):
        build_index(folder, [], codec, config)
    pairs = SourceConfig(name="pairs", reader="pairs", path=source.path)
    with pytest.raises(ConfigError, match="Source 'pairs' has pairs of completions"):
        build_index(folder, [pairs], codec, config)
    with pytest.raises(DataError, match="has no usable document"):
        build_index(folder, [source], codec, replace(config, document_tokens=3))
    with pytest.raises(DataError, match="The separator 'break' of retrieved documents is no"):
        build_index(folder, [source], codec, replace(config, separator="break"))
    assert not folder.exists()


def test_an_index_of_another_codec_is_refused(index, codec):
    other = Codec(codec.vocabulary, codec.text_tokenizer, codec.image_tokenizer, "pad")
    with pytest.raises(DataError, match=r"codec .* but the model has codec .* build an index"):
        Index.open(index.folder, other)


def test_an_index_of_other_nets_is_refused(index, tmp_path):
    other = ClipConfig(folder=write_clip(tmp_path / "other", seed=1))
    with pytest.raises(DataError, match=r"was made by nets of the fingerprint .* \('clip'\)"):
        index.embedder(other)
    with pytest.raises(ConfigError, match="was made by a CLIP, of which it keeps no copy"):
        index.embedder()


@pytest.fixture
def copied(index, tmp_path):
    return shutil.copytree(index.folder, tmp_path / "copy")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "does not describe an index"),
        ({"version": 99}, "has format version 99, this version of pardalis reads up to 1"),
        ({"sources": ["../../etc"]}, "lacks a value, or has one of another type"),
        ({"sources": []}, "lacks a value"),
        ({"sources": ["pairs", "pairs"]}, "lacks a value"),
        ({"width": -1}, "lacks a value"),
        ({"width": 7}, r"vectors.npy holds float32\[7, 24\] where index.json"),
        ({"codec": None}, "lacks a value"),
        ({"codec": "0123"}, "are of codec"),
    ],
)
def test_a_changed_description_is_refused(copied, changes, message):
    values = json.loads((copied / "index.json").read_text())
    (copied / "index.json").write_text(json.dumps(values | changes))
    with pytest.raises(DataError, match=message):
        Index.open(copied)


def test_missing_and_damaged_files_are_refused(copied, tmp_path):
    with pytest.raises(DataError, match="none does not exist; build an index there, or name"):
        Index.open(tmp_path / "none")
    with pytest.raises(DataError, match=r"has no index.json; build an index"):
        Index.open(tmp_path)
    (copied / "modalities.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"modalities.npy is missing or damaged"):
        Index.open(copied)
    (copied / "index.json").write_text("{")
    with pytest.raises(DataError, match=r"index.json cannot be read"):
        Index.open(copied)


def test_nets_without_weights_are_named(source, codec, tmp_path):
    config = IndexConfig(embedder=ClipConfig(folder=tmp_path / "none"))
    with pytest.raises(BundleError, match=r"none/config.json cannot be read"):
        build_index(tmp_path / "index", [source], codec, config)
    assert isinstance(IndexConfig().embedder_config, SeparateNetsConfig)


def test_an_index_keeps_the_licences_of_its_documents(tmp_path, source, codec, config):
    stated = replace(source, licence="CC BY 4.0", attribution="Jane Doe")
    index = build_index(tmp_path / "index", [stated], codec, config)
    assert index.licences.endswith("| pairs | CC BY 4.0 | Jane Doe |\n")
    assert "| pairs | not stated |" in build_index(index.folder, [source], codec, config).licences
    again = build_index(index.folder, [source], codec, config, licences="Those of a run\n")
    assert (again.licences, again.identity) == ("Those of a run\n", index.identity)
