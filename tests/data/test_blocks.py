"""Preparing by any number of workers and parts: the same shards, whatever happens to a process."""

import json
import logging
import multiprocessing
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
from deadly_transform import Deadly
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pardalis.codec import Codec
from pardalis.data import (
    Preparation,
    PrepareConfig,
    Share,
    SourceConfig,
    Workers,
    prepare_source,
    survey,
)
from pardalis.data.blocks import Block, DamagedBlockError
from pardalis.data.portable import PortableCodec
from pardalis.errors import BusyError, ConfigError, DataError
from pardalis.files import exclusive

CONFIG = PrepareConfig(row_tokens=48, batch_documents=2, block_documents=3, shard_tokens=60)
N = 14  # documents, in 5 blocks
BLOCKS = ".shards.pardalis-blocks"
PART = "part-{:05d}-of-{:05d}"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> SourceConfig:
    """Documents of all kinds: captions, weights, licences, a damaged image, lines that are bad."""
    folder = tmp_path_factory.mktemp("corpus")
    pixels = np.random.default_rng(0).integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)
    lines = []
    for number in range(N):
        PIL.Image.fromarray(pixels[number]).save(folder / f"{number}.png")
        text = {"text": "the owl and a fox " * (number % 4 + 1), "weight": 0.5 if number > 6 else 1}
        record = {"name": f"d{number}", "segments": [text, {"image": f"{number}.png"}]}
        lines.append(json.dumps(record | ({"licence": "CC0"} if number % 3 else {})))
    (folder / "5.png").write_bytes(b"no image")
    lines[8] = "{"
    (folder / "notes.jsonl").write_text("\n".join(lines) + "\n")
    return SourceConfig(name="notes", reader="jsonl", path=folder / "notes.jsonl", licence="MIT")


def contents(shards: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(shards.iterdir())}


@pytest.fixture(scope="module")
def expected(source: SourceConfig, codec: Codec, tmp_path_factory) -> dict[str, bytes]:
    """The shards that one process makes."""
    shards = tmp_path_factory.mktemp("expected") / "shards"
    report = prepare_source(source, codec, shards, CONFIG)
    assert (report.read, report.written, report.n_rejected) == (N, N - 2, 2)
    return contents(shards)


def preparation(source: SourceConfig, codec: Codec, base: Path, **changes) -> Preparation:
    content = survey(source)
    return Preparation(source, codec, base / "shards", replace(CONFIG, **changes), content)


def make_share(each: Preparation, number: int, of: int) -> bool:
    share = Share(number, of)
    return each.make_share(share, share.among(each.n_blocks), Workers(jobs=1))


def block_files(base: Path) -> list[str]:
    return sorted(str(p.relative_to(base / BLOCKS)) for p in (base / BLOCKS).glob("*/block-*"))


# ── the same shards ──────────────────────────────────────────────────────────────────────────────


def test_blocks_leave_nothing_behind(source, codec, tmp_path, expected):
    prepare_source(source, codec, tmp_path / "shards", CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
    assert {"ids-00000.npy", "ids-00001.npy", "weights-00003.npy"} <= expected.keys()


@pytest.mark.parametrize("jobs", [2, 3])
def test_processes_make_the_same_shards(source, codec, tmp_path, expected, jobs: int):
    prepare_source(source, codec, tmp_path / "shards", CONFIG, workers=Workers(jobs=jobs))
    assert contents(tmp_path / "shards") == expected


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(of=st.integers(1, 7), order=st.randoms(use_true_random=False))
def test_any_parts_in_any_order_make_the_same_shards(
    source, codec, expected, tmp_path_factory, of: int, order
):
    base = tmp_path_factory.mktemp("parts")
    numbers = list(range(1, of + 1))
    order.shuffle(numbers)
    complete = [make_share(preparation(source, codec, base), number, of) for number in numbers]
    # More parts than blocks: the last ones may have nothing to do.
    assert complete[-1]
    assert all(Path(name).parent.name.endswith(f"-of-{of:05d}") for name in block_files(base))
    preparation(source, codec, base).run(Workers(jobs=1, joins_only=True))
    assert contents(base / "shards") == expected
    assert not (base / BLOCKS).exists()


def test_the_blocks_of_all_parts_are_all_blocks_once():
    for n in range(12):
        for of in range(1, 15):
            shares = [Share(number, of).among(n) for number in range(1, of + 1)]
            assert [block for share in shares for block in share] == list(range(n))


def test_the_size_of_blocks_and_batches_changes_no_shards(source, codec, tmp_path, expected):
    preparation(source, codec, tmp_path, block_documents=256, batch_documents=5).run(
        Workers(jobs=1)
    )
    assert contents(tmp_path / "shards") == expected


def test_parts_of_pairs_are_joined_in_pairs(codec, tmp_path):
    lines = [
        json.dumps({"name": f"p{n}", "prompt": "a fox", "chosen": f"owl {n}", "rejected": "cat"})
        for n in range(7)
    ]
    lines[3] = "{"
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    pairs = SourceConfig(name="pairs", reader="pairs", path=tmp_path / "pairs.jsonl")
    for name, shares in (("one", [(1, 1)]), ("three", [(3, 3), (1, 3), (2, 3)])):
        (tmp_path / name).mkdir()
        for number, of in shares:
            make_share(preparation(pairs, codec, tmp_path / name, block_documents=2), number, of)
        preparation(pairs, codec, tmp_path / name, block_documents=2).run(Workers(jobs=1))
    assert contents(tmp_path / "one" / "shards") == contents(tmp_path / "three" / "shards")


def test_a_codec_travels_by_value(codec, tmp_path):
    there = pickle.loads(pickle.dumps(PortableCodec(codec)))
    assert there.fingerprint == codec.fingerprint
    assert there.image_tokenizer.fingerprint() == codec.image_tokenizer.fingerprint()


# ── going on ─────────────────────────────────────────────────────────────────────────────────────


class PulledPlugError(BaseException):
    """An interruption such as Ctrl-C."""


def interrupted_after(codec: Codec, monkeypatch, n_calls: int) -> list[int]:
    """Let the codec be interrupted once it has encoded some batches; returns their sizes."""
    encode_many, sizes = codec.encode_many, []

    def encode(documents):
        if len(sizes) == n_calls:
            raise PulledPlugError
        sizes.append(len(documents))
        return encode_many(documents)

    monkeypatch.setattr(codec, "encode_many", encode)
    return sizes


def test_an_interrupted_preparation_goes_on(source, codec, tmp_path, expected, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        interrupted_after(codec, patch, 5)
        with pytest.raises(PulledPlugError):
            preparation(source, codec, tmp_path).run(Workers(jobs=1))
    folder = PART.format(1, 1)
    assert block_files(tmp_path) == [f"{folder}/block-0000000{n}.safetensors" for n in (0, 1)]
    sizes = interrupted_after(codec, monkeypatch, 100)
    with caplog.at_level(logging.INFO):
        preparation(source, codec, tmp_path).run(Workers(jobs=1))
    assert sum(sizes) < N - 5  # the six documents before are not encoded again
    assert "notes: 2 of 5 blocks exist." in caplog.messages
    assert contents(tmp_path / "shards") == expected


def test_parts_and_one_process_go_on_from_each_other(
    source, codec, tmp_path, expected, monkeypatch
):
    make_share(preparation(source, codec, tmp_path), 2, 2)
    sizes = interrupted_after(codec, monkeypatch, 100)
    preparation(source, codec, tmp_path).run(Workers(jobs=1))
    assert sum(sizes) <= 6
    assert contents(tmp_path / "shards") == expected


def test_a_damaged_block_is_made_anew(source, codec, tmp_path, expected, caplog):
    for number in (1, 2):
        make_share(preparation(source, codec, tmp_path), number, 2)
    path = tmp_path / BLOCKS / PART.format(1, 2) / "block-00000001.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"block-00000001\.safetensors cannot be used .*its part"):
        preparation(source, codec, tmp_path).run(Workers(joins_only=True))
    preparation(source, codec, tmp_path).run(Workers(jobs=1))
    assert "It is made anew." in caplog.text
    assert contents(tmp_path / "shards") == expected


def test_what_an_earlier_recipe_has_left_is_replaced(source, codec, tmp_path, expected):
    make_share(preparation(source, codec, tmp_path, row_tokens=40), 1, 2)
    preparation(source, codec, tmp_path).run(Workers(jobs=1))
    assert contents(tmp_path / "shards") == expected


# ── workers that die ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def dying(source, codec, tmp_path):
    """A source whose encoding kills its worker at one document, and the shards without that."""
    transform = Deadly(marks=str(tmp_path / "deaths"), document="d10")
    deadly = replace(source, transforms=(transform,))
    (tmp_path / "deaths").mkdir()
    (tmp_path / "whole").mkdir()
    preparation(deadly, codec, tmp_path / "whole").run(Workers(jobs=1))
    return deadly, contents(tmp_path / "whole" / "shards")


def test_a_worker_that_dies_costs_its_block_only(dying, codec, tmp_path, caplog):
    deadly, expected = dying
    (tmp_path / "deaths" / "left").write_text("1")
    preparation(deadly, codec, tmp_path).run(Workers(jobs=2))
    [death] = [record.getMessage() for record in caplog.records if "SIGKILL" in record.getMessage()]
    assert re.fullmatch(
        r"Worker [12] \(process \d+\) was killed by SIGKILL while it encoded documents 10 to 12 of "
        r"source 'notes'; another does that again\.", death
    )  # fmt: skip
    assert contents(tmp_path / "shards") == expected
    assert not multiprocessing.active_children()


def test_documents_that_kill_every_worker_end_the_preparation(dying, codec, tmp_path):
    deadly, expected = dying
    (tmp_path / "deaths" / "left").write_text("2")
    with pytest.raises(DataError, match=r"killed by SIGKILL while .* 10 to 12 .* as another did"):
        preparation(deadly, codec, tmp_path).run(Workers(jobs=2))
    assert not multiprocessing.active_children()
    assert block_files(tmp_path)
    preparation(deadly, codec, tmp_path).run(Workers(jobs=2))
    assert contents(tmp_path / "shards") == expected


def test_a_mistake_in_a_worker_is_told(source, codec, tmp_path):
    deadly = replace(source, transforms=(Deadly(marks=str(tmp_path / "no folder"), document="d0"),))
    with pytest.raises(RuntimeError, match=r"(?s)Worker .* failed:.*FileNotFoundError"):
        preparation(deadly, codec, tmp_path).run(Workers(jobs=2))
    assert not multiprocessing.active_children()


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


def test_a_missing_part_is_named_when_parts_are_joined(source, codec, tmp_path):
    with pytest.raises(DataError, match="Nothing of source 'notes', as it is now, is prepared"):
        preparation(source, codec, tmp_path).run(Workers(joins_only=True))
    make_share(preparation(source, codec, tmp_path), 1, 3)
    with pytest.raises(DataError) as caught:
        preparation(source, codec, tmp_path).run(Workers(joins_only=True))
    assert str(caught.value) == (
        f"4 of 5 blocks of source 'notes' are missing in {tmp_path / BLOCKS}: those of part 2 of 3 "
        "and part 3 of 3. Make these parts before all are joined."
    )


@pytest.mark.parametrize("change", ["row_tokens", "caption"])
def test_parts_of_another_recipe_are_refused(source, codec, tmp_path, change: str):
    make_share(preparation(source, codec, tmp_path), 1, 2)
    changes, other = {}, source
    if change == "caption":
        (tmp_path / "notes.jsonl").write_text('{"segments": [{"text": "an owl"}]}\n')
        other = replace(source, path=tmp_path / "notes.jsonl")
    else:
        changes = {"row_tokens": 40}
    before = block_files(tmp_path)
    named = "row_tokens = 48, and now it is 40" if changes else "documents = '[0-9a-f]+', and now"
    with pytest.raises(ConfigError, match=f"begun with {named}.*every part needs the same recipe"):
        make_share(preparation(other, codec, tmp_path, **changes), 2, 2)
    assert block_files(tmp_path) == before


def test_two_processes_do_not_make_one_part(source, codec, tmp_path):
    make_share(preparation(source, codec, tmp_path), 1, 2)
    with exclusive(tmp_path / BLOCKS / PART.format(1, 2)):
        with pytest.raises(BusyError, match="Another process works on part 1 of 2 of what is"):
            make_share(preparation(source, codec, tmp_path), 1, 2)
        make_share(preparation(source, codec, tmp_path), 2, 2)
    with (
        exclusive(tmp_path / BLOCKS, shared=True),
        pytest.raises(BusyError, match="Another process works on what is prepared in"),
    ):
        preparation(source, codec, tmp_path).run(Workers(jobs=1))


@pytest.mark.parametrize("what", ["blocks", "part", "block", "pipe"])
def test_nothing_is_read_or_written_through_links(source, codec, tmp_path, what: str):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    each = preparation(source, codec, tmp_path)
    if what == "blocks":
        (tmp_path / BLOCKS).symlink_to(elsewhere)
    else:
        make_share(each, 1, 2)
        part = tmp_path / BLOCKS / PART.format(2, 2)
        if what == "part":
            part.symlink_to(elsewhere)
        else:
            part.mkdir()
            block = part / "block-00000003.safetensors"
            block.symlink_to("/etc/passwd") if what == "block" else os.mkfifo(block)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"is a link|link or a file|is not a regular file"):
            make_share(each, 2, 2)
        with pytest.raises(ConfigError, match=r"is a link|link or a file|is not a regular file"):
            each.run(Workers(jobs=1))
    assert not list(elsewhere.iterdir())


HOSTILE = {
    "other paths": {"parts": ["../../elsewhere"], "settings": {"row_tokens": "../../x"}},
    "no settings": {"settings": 3},
    "other version": {"version": 99},
    "a list": None,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_settings_from_elsewhere_are_refused(source, codec, tmp_path, name: str, expected):
    make_share(preparation(source, codec, tmp_path), 1, 2)
    path = tmp_path / BLOCKS / "blocks.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps([] if HOSTILE[name] is None else values | HOSTILE[name]))
    with pytest.raises(ConfigError, match="were begun with"):
        make_share(preparation(source, codec, tmp_path), 2, 2)
    preparation(source, codec, tmp_path).run(Workers(jobs=1))
    assert contents(tmp_path / "shards") == expected


def test_hostile_blocks_are_not_used(source, codec, tmp_path):
    each = preparation(source, codec, tmp_path)
    make_share(each, 1, 1)
    path = tmp_path / BLOCKS / block_files(tmp_path)[0]
    content = path.read_bytes()
    good = safetensors.numpy.load(content)
    dtype, made_from = np.dtype(np.uint16), each._blocks.made_from
    assert len(Block.read(path, dtype, made_from, 0).documents) == 3
    about = json.loads(good["about"].tobytes())

    def told(**changes) -> bytes:
        values = json.dumps(about | changes).encode()
        return safetensors.numpy.save(good | {"about": np.frombuffer(values, np.uint8)})

    def arrays(**changes) -> bytes:
        return safetensors.numpy.save(good | changes)

    deep = b"[" * 100_000 + b"]" * 100_000
    for wrong in (
        b"", content[:50], content[:-1], b"\xff" * 64, content.replace(b"[", b"{"),
        told(number=1), told(made_from="x"), told(names=["a"]), told(names=[1, 2, 3]),
        told(names=3), told(report={}), told(report={**about["report"], "read": "9"}),
        told(report={**about["report"], "licences": {"": {"documents": "x"}}}),
        arrays(about=np.frombuffer(deep, np.uint8)), arrays(about=np.zeros(3, np.uint8)),
        arrays(ids=good["ids"].astype(np.int64)), arrays(ids=good["ids"][:-1]),
        arrays(ids=np.zeros((2, 2), np.uint16)), arrays(lengths=good["lengths"] * 2),
        arrays(lengths=np.array([-5, 2**62, 2**62])), arrays(lengths=good["lengths"][:-1]),
        arrays(weights=np.ones(3, np.float16)), arrays(weights=good["ids"]),
    ):  # fmt: skip
        path.write_bytes(wrong)
        with pytest.raises(DamagedBlockError, match="cannot be used"):
            Block.read(path, dtype, made_from, 0)


@pytest.mark.parametrize(("number", "of"), [(0, 1), (3, 2), (1, 0), (1, 100_000)])
def test_a_part_must_be_one_of_the_parts(number: int, of: int):
    with pytest.raises(ConfigError, match=r"^part must be a number from 1 to the number of parts"):
        Share(number, of)


def test_workers_must_be_some():
    with pytest.raises(ConfigError, match=r"^jobs must be at least 1"):
        Workers(jobs=0)
    with pytest.raises(ConfigError, match=r"^engine must be 'processes' or 'ray', got 'dask'"):
        Workers(engine="dask")


def test_a_source_that_changes_meanwhile_is_noticed(source, codec, tmp_path):
    fewer, more = survey(source)._replace(n_items=N + 2), survey(source)._replace(n_items=N - 1)
    for content in (fewer, more):
        each = Preparation(source, codec, tmp_path / "shards", CONFIG, content)
        with pytest.raises(DataError, match="has changed while it was prepared"):
            each.run(Workers(jobs=1))
