import errno
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image
import pytest
import torch

from pardalis.codec import Codec
from pardalis.config import fingerprint
from pardalis.data import (
    ModalityDropout,
    PairOrder,
    PrepareConfig,
    PrepareReport,
    Shards,
    SourceConfig,
    prepare_source,
    survey,
)
from pardalis.documents import READERS, Document, Image, Text
from pardalis.errors import ConfigError, DataError
from pardalis.tokens import Encoded, Grammar

CONFIG = PrepareConfig(row_tokens=64, batch_documents=2)
SOURCE = SourceConfig(name="owls", reader="folder", path=Path("owls"))
BLOCKS = ".shards.pardalis-blocks"  # while shards are made
CAPTIONS = ["an owl", "a fox and a cat", "the oak", "two owls", "a cat"]


@pytest.fixture
def base(tmp_path: Path, monkeypatch) -> Path:
    """The working directory, with five captioned images in ``owls``."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owls"
    folder.mkdir()
    for number, caption in enumerate(CAPTIONS):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    return tmp_path


def prepare(base: Path, codec: Codec, source: SourceConfig = SOURCE, **changes) -> PrepareReport:
    return prepare_source(source, codec, base / "shards", replace(CONFIG, **changes))


def documents_in(base: Path) -> dict[str, list[int]]:
    shards = Shards.open(base / "shards")
    return {name: shards.document(i).ids.tolist() for i, name in enumerate(shards.names)}


def pair(base: Path, number: int) -> Document:
    image = Image(base / "owls" / f"{number}.png")
    return Document((Text(CAPTIONS[number]), image), f"{number}.png")


def write_jsonl(base: Path, *records: object) -> SourceConfig:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (base / "notes.jsonl").write_text("\n".join(lines) + "\n")
    return SourceConfig(name="notes", reader="jsonl", path=Path("notes.jsonl"))


# ── what is written ──────────────────────────────────────────────────────────────────────────


def test_shards_contain_the_encoded_documents(base: Path, codec: Codec):
    report = prepare(base, codec)
    expected = {f"{n}.png": codec.encode(pair(base, n)).ids.tolist() for n in range(5)}
    assert documents_in(base) == expected
    n_tokens = sum(map(len, expected.values()))
    assert (report.read, report.written, report.images, report.split) == (5, 5, 5, 0)
    assert report.tokens == {"text": n_tokens - 5 * 8, "image": 5 * 4, "special": 5 * 4}
    assert report.fill_percent == pytest.approx(100 * n_tokens / (report.rows * 64))
    assert report.rows == Shards.open(base / "shards").n_rows
    assert not report.unchanged


def test_the_report_is_beside_the_shards(base: Path, codec: Codec):
    report = prepare(base, codec)
    saved = json.loads((base / "shards" / "report.json").read_text())
    assert PrepareReport.from_dict(saved) == report


def test_shards_can_be_opened_only_with_the_codec_that_made_them(base: Path, codec: Codec):
    prepare(base, codec)
    assert Shards.open(base / "shards", codec=codec.fingerprint).n_documents == 5
    with pytest.raises(DataError, match="prepare the source again"):
        Shards.open(base / "shards", codec="another")


def test_the_size_of_a_batch_does_not_change_what_is_written(base: Path, codec: Codec):
    prepare(base, codec, batch_documents=1)
    one_by_one = documents_in(base)
    shutil.rmtree(base / "shards")
    prepare(base, codec, batch_documents=64)
    assert documents_in(base) == one_by_one


# ── pair order ───────────────────────────────────────────────────────────────────────────────


def swapped(base: Path, codec: Codec, number: int) -> list[int]:
    document = pair(base, number)
    return codec.encode(replace(document, segments=document.segments[::-1])).ids.tolist()


def test_both_orders_are_encoded(base: Path, codec: Codec):
    report = prepare(base, codec, replace(SOURCE, transforms=(PairOrder(order="both"),)))
    found = documents_in(base)
    assert (report.read, report.written, report.images) == (5, 10, 10)
    for number in range(5):
        assert found[f"{number}.png"] == codec.encode(pair(base, number)).ids.tolist()
        assert found[f"{number}.png#swapped"] == swapped(base, codec, number)


def test_random_order_takes_one_of_the_two_by_name(base: Path, codec: Codec):
    for number in range(5, 20):
        shutil.copy(base / "owls/0.png", base / f"owls/{number}.png")
        shutil.copy(base / "owls/0.txt", base / f"owls/{number}.txt")
    prepare(base, codec, replace(SOURCE, transforms=(PairOrder(order="random"),)))
    image_first = {
        name.removesuffix("#swapped"): ids[1] == codec.vocabulary.begin_image_id
        for name, ids in documents_in(base).items()
    }
    assert len(image_first) == 20
    assert 5 <= sum(image_first.values()) <= 15
    (base / "owls/0.png").unlink()  # the others are not affected by what stands beside them
    (base / "owls/0.txt").unlink()
    prepare(base, codec, replace(SOURCE, transforms=(PairOrder(order="random"),)))
    for name, ids in documents_in(base).items():
        is_first = ids[1] == codec.vocabulary.begin_image_id
        assert is_first == image_first[name.removesuffix("#swapped")]


def test_an_image_written_first_is_swapped_back(base: Path, codec: Codec):
    segments = [{"image": "owls/0.png"}, {"text": "an owl"}]
    source = write_jsonl(base, {"name": "a", "segments": segments})
    prepare(base, codec, replace(source, transforms=(PairOrder(order="both"),)))
    assert documents_in(base)["a#swapped"] == codec.encode(pair(base, 0)).ids.tolist()


def test_only_pairs_have_two_orders(base: Path, codec: Codec):
    image, words = {"image": "owls/0.png"}, {"text": "an owl"}
    source = write_jsonl(
        base,
        {"name": "three", "segments": [words, image, words]},
        {"name": "two texts", "segments": [words, words]},
        {"name": "alone", "segments": [image]},
        {"name": "chat", "segments": [words | {"role": "user"}, image | {"role": "assistant"}]},
    )
    prepare(base, codec, replace(source, transforms=(PairOrder(order="both"),)))
    assert list(documents_in(base)) == ["three", "two texts", "alone", "chat"]


# ── transforms ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Stretched:
    """Repeats the last text token of a document, a different number of times in each epoch."""

    kind: Literal["stretched"] = "stretched"
    most: int = 5

    def load(self, document: Encoded, grammar: Grammar, seed: int) -> Encoded:
        times = seed % (self.most + 1)
        return Encoded.joined(document[:-1], *[document[-2:-1]] * times, document[-1:])

    def room(self, length: int) -> int:
        return length + self.most


def test_room_of_transforms_is_kept_in_every_row(base: Path, codec: Codec):
    source = replace(SOURCE, transforms=(PairOrder(), Stretched(most=9), Stretched(most=3)))
    report = prepare(base, codec, source)
    shards = Shards.open(base / "shards")
    for row in range(shards.n_rows):
        assert sum(len(shards.document(d)) + 12 for d in shards.row(row)) <= 64
    assert report.rows > prepare(base, codec, replace(SOURCE, transforms=(PairOrder(),))).rows


def test_long_documents_are_split_so_that_their_parts_have_room(base: Path, codec: Codec):
    source = replace(long_source(base), transforms=(Stretched(most=9),))
    prepare(base, codec, source, row_tokens=32)
    assert max(map(len, documents_in(base).values())) == 32 - 9
    report = prepare(base, codec, source, row_tokens=32, long_documents="reject")
    assert "a row has 23" in report.rejected["too-long"].examples[0]["reason"]
    with pytest.raises(ConfigError, match="leave no room for a document in a row of 11 tokens"):
        prepare(base, codec, source, row_tokens=11)


def test_what_does_not_change_shards_keeps_them(base: Path, codec: Codec):
    prepare(base, codec)
    same = replace(SOURCE, transforms=(ModalityDropout(probability=0.3),))
    assert prepare(base, codec, same).unchanged
    assert not prepare(base, codec, replace(SOURCE, transforms=(Stretched(),))).unchanged
    assert not prepare(base, codec, replace(SOURCE, transforms=(Stretched(most=2),))).unchanged


def test_shards_of_earlier_versions_are_kept(base: Path, codec: Codec):
    """What they depend on was listed with the word of ``pair_order``."""
    for word, transforms in (("as_written", ()), ("random", (PairOrder(order="random"),))):
        prepare(base, codec, replace(SOURCE, transforms=transforms))
        found = json.loads((base / "shards/index.json").read_text())["prepared"]
        listed = (1, 2, word, 64, "split", 2**26, codec.fingerprint, survey(SOURCE).digest)
        assert found == fingerprint(*listed)


@dataclass(frozen=True, kw_only=True)
class Broken:
    kind: Literal["broken"] = "broken"

    def write(self, document: Encoded, raw: Document, grammar: Grammar) -> list:
        return [("", document[1:])]


def test_what_a_transform_writes_is_checked(base: Path, codec: Codec):
    with pytest.raises(DataError, match=r"5 grammar, such as 0.png: Found .* at position 0"):
        prepare(base, codec, replace(SOURCE, transforms=(Broken(),)))


# ── weights and pairs ────────────────────────────────────────────────────────────────────────


def test_weights_of_segments_are_written(base: Path, codec: Codec):
    segments = [{"text": "an owl", "weight": 0}, {"image": "owls/0.png"}]
    source = write_jsonl(base, {"name": "a", "segments": segments})
    prepare(base, codec, replace(source, transforms=(PairOrder(),)))
    shards = Shards.open(base / "shards")
    assert shards.names == ["a", "a#swapped"]
    n_text = len(shards.document(0)) - 8
    assert shards.document(0).weights.tolist() == [0] * (n_text + 1) + [1] * 7
    assert shards.document(1).weights.tolist() == [0, *[1] * 6, *[0] * (n_text + 1)]


def test_a_document_without_any_weight_is_rejected(base: Path, codec: Codec):
    good = {"name": "good", "segments": [{"text": "a"}]}
    bad = {"name": "bad", "segments": [{"text": "a", "weight": 0}]}
    report = prepare(base, codec, write_jsonl(base, bad, good))
    assert list(documents_in(base)) == ["good"]
    assert report.rejected["no-weight"].examples[0]["where"] == "bad"


def test_both_of_a_pair_are_written_or_none(base: Path, codec: Codec):
    (base / "broken.png").write_bytes(b"not an image")
    picture, broken = [{"image": "owls/0.png"}], [{"image": "broken.png"}]
    source = write_jsonl(
        base,
        {"name": "a", "prompt": "draw", "chosen": picture, "rejected": "no"},
        "{",
        {"name": "b", "prompt": "draw", "chosen": picture, "rejected": broken},
        {"name": "c", "prompt": "write", "chosen": "owl " * 80, "rejected": "no"},
        {"name": "d", "prompt": "write", "chosen": "yes", "rejected": "no"},
    )
    report = prepare(base, codec, replace(source, reader="pairs"), batch_documents=1)
    shards = Shards.open(base / "shards")
    assert shards.names == ["a#chosen", "a#rejected", "d#chosen", "d#rejected"]
    assert [shards.row(row) for row in range(shards.n_rows)] == [[0, 1], [2, 3]]
    assert (report.read, report.written, report.n_rejected, report.rows) == (9, 4, 5, 4)
    assert {kind: found.count for kind, found in report.rejected.items()} == {
        "bad-json": 1, "unreadable-image": 1, "too-long": 1, "half-pair": 2
    }  # fmt: skip
    chosen, rejected = shards.document(0), shards.document(1)
    prompt = codec.encode_prompt(Document((Text("draw"),)))
    for document in (chosen, rejected):
        assert document.ids[: len(prompt)].tolist() == prompt
        assert document.weights.tolist() == [0] * len(prompt) + [1] * (len(document) - len(prompt))


# ── long documents ───────────────────────────────────────────────────────────────────────────


def long_source(base: Path) -> SourceConfig:
    words = {"text": "the owl sat on the old oak " * 20}
    segments = [words, {"image": "owls/0.png"}, words]
    short = {"name": "short", "segments": [{"text": "a fox"}]}
    return write_jsonl(base, {"name": "long", "segments": segments}, short)


def test_long_documents_are_split_into_parts_that_fit(base: Path, codec: Codec):
    report = prepare(base, codec, long_source(base), row_tokens=32)
    found = documents_in(base)
    pieces = [name for name in found if name.startswith("long#")]
    assert pieces == [f"long#{number}" for number in range(1, len(pieces) + 1)]
    assert len(pieces) > 3
    assert all(len(ids) <= 32 for ids in found.values())
    assert (report.read, report.split, report.written) == (2, 1, len(pieces) + 1)
    assert report.images == 1


def test_long_documents_are_rejected_if_asked(base: Path, codec: Codec):
    report = prepare(base, codec, long_source(base), row_tokens=32, long_documents="reject")
    assert list(documents_in(base)) == ["short"]
    assert report.rejected["too-long"].count == 1
    [example] = report.rejected["too-long"].examples
    assert example["where"] == "long"
    assert "tokens, a row has 32" in example["reason"]


def test_an_image_longer_than_a_row_is_rejected(base: Path, codec: Codec):
    report = prepare(base, codec, long_source(base), row_tokens=6)
    assert report.rejected["too-long-image"].count == 1
    assert {name.partition("#")[0] for name in documents_in(base)} == {"short"}


# ── rejections ───────────────────────────────────────────────────────────────────────────────


def test_bad_items_are_counted_and_named_and_the_rest_is_kept(base: Path, codec: Codec, caplog):
    (base / "owls/1.png").write_bytes((base / "owls/1.png").read_bytes()[:50])
    (base / "cut.png").write_bytes(b"not an image")
    good = {"name": "good", "segments": [{"text": "an owl"}, {"image": "owls/0.png"}]}
    source = write_jsonl(
        base,
        "{",
        {"name": "truncated", "segments": [{"image": "owls/0.png"}, {"image": "owls/1.png"}]},
        {"name": "no image", "segments": [{"image": "cut.png"}]},
        good,
    )
    report = prepare(base, codec, source)
    assert list(documents_in(base)) == ["good"]
    assert (report.read, report.written, report.n_rejected) == (4, 1, 3)
    assert report.rejected["bad-json"].count == 1
    unreadable = report.rejected["unreadable-image"]
    assert [example["where"] for example in unreadable.examples] == ["truncated", "no image"]
    told = f"notes: left out are 1 bad-json, 2 unreadable-image; {base / 'shards/report.json'} says"
    assert [each.startswith(told) for each in caplog.messages].count(True) == 1
    caplog.clear()
    assert prepare(base, codec, source).unchanged
    assert not any("left out" in each for each in caplog.messages)


def test_a_page_is_kept_without_its_damaged_images(base: Path, codec: Codec):
    pages = base / "pages"
    shutil.copytree(base / "owls", pages)
    (pages / "1.png").write_bytes((pages / "1.png").read_bytes()[:50])  # behind its header
    (pages / "a.html").write_text("<p>owl <img src=0.png> <img src=1.png> fox <img src=2.png>")
    (pages / "b.html").write_text("<img src=1.png>")
    (pages / "c.html").write_text("<p>owl <img src=0.png> fox <img src=2.png>")
    source = SourceConfig(name="pages", reader="html", path=Path("pages"))
    report = prepare(base, codec, source, row_tokens=128)
    ids = documents_in(base)
    assert list(ids) == ["a.html", "c.html"]
    spans = [[s.kind for s in codec.grammar.spans(np.array(each))] for each in ids.values()]
    assert spans[0] == spans[1]
    assert (report.read, report.written, report.images) == (3, 2, 4)
    unreadable = report.rejected["unreadable-image"]
    assert unreadable.count == 2
    assert [example["where"] for example in unreadable.examples] == ["a.html", "b.html"]
    assert "1.png is truncated or damaged" in unreadable.examples[0]["reason"]


def test_a_conversation_that_the_chat_template_refuses_is_rejected(base: Path, codec: Codec):
    parts = (codec.vocabulary, codec.text_tokenizer, codec.image_tokenizer)
    template = "{{ messages[1].content }}{% for m in messages %}<end_turn>{% endfor %}"
    one, two = {"text": "owl", "role": "user"}, {"text": "fox", "role": "assistant"}
    records = ({"name": "a", "segments": [one]}, {"name": "b", "segments": [one, two]})
    source = write_jsonl(base, *records)
    report = prepare(base, Codec(*parts, chat_template=template), source)
    assert list(documents_in(base)) == ["b"]
    [example] = report.rejected["chat-template"].examples
    assert example["where"] == "a" and "does not take this conversation" in example["reason"]


def test_empty_documents_and_broken_grammar_are_rejected(base: Path, codec: Codec, monkeypatch):
    documents = [pair(base, 0), Document((Text(" \n"),), "blank"), Document((), "nothing")]
    monkeypatch.setitem(READERS, "folder", lambda _: iter(documents))
    report = prepare(base, codec)
    assert report.rejected["empty"].count == 2
    monkeypatch.setattr(codec, "grammar", Grammar(codec.vocabulary, codes_per_image=5))
    shutil.rmtree(base / "shards")
    with pytest.raises(DataError, match=r"1 grammar, such as 0\.png: Found <end_image> at posi"):
        prepare(base, codec)


def test_a_source_without_valid_documents_is_refused_with_the_reasons(base: Path, codec: Codec):
    with pytest.raises(
        DataError, match=r"'notes' at .* has no usable document: 1 read, 1 rejected"
    ) as e:
        prepare(base, codec, write_jsonl(base, "{"))
    assert "1 bad-json, such as" in str(e.value)
    assert not (base / "shards").exists()


# ── restarting ───────────────────────────────────────────────────────────────────────────────


def test_a_source_that_was_surveyed_is_read_once(base: Path, codec: Codec, monkeypatch):
    content = survey(SOURCE)
    readings, reader = [], READERS["folder"]
    monkeypatch.setitem(READERS, "folder", lambda path: readings.append(path) or reader(path))
    first = prepare_source(SOURCE, codec, base / "shards", CONFIG, content)
    assert len(readings) == 1
    again = prepare_source(SOURCE, codec, base / "shards", CONFIG, content)
    assert again == replace(first, unchanged=True)
    assert len(readings) == 1
    assert prepare(base, codec).unchanged


def test_an_unchanged_source_is_not_encoded_again(base: Path, codec: Codec, monkeypatch):
    first = prepare(base, codec)
    monkeypatch.setattr(codec, "encode_many", None)  # calling it would raise
    again = prepare(base, codec, replace(SOURCE, weight=7.0), batch_documents=5)
    assert again == replace(first, unchanged=True)


@pytest.mark.parametrize("change", ["caption", "config", "transforms", "codec", "damage", "report"])
def test_a_change_prepares_again(base: Path, codec: Codec, change: str):
    prepare(base, codec)
    source, changes = SOURCE, {}
    match change:
        case "caption":
            (base / "owls/0.txt").write_text("a white owl")
        case "config":
            changes = {"row_tokens": 96}
        case "transforms":
            source = replace(SOURCE, transforms=(PairOrder(order="both"),))
        case "codec":
            torch.manual_seed(1)
            codec = Codec.of(codec.text_tokenizer, type(codec.image_tokenizer)(
                codec.image_tokenizer.config
            ))  # fmt: skip
        case "damage":
            (base / "shards/ids-00000.npy").write_bytes(b"")
        case "report":
            (base / "shards/report.json").unlink()
    assert not prepare(base, codec, source, **changes).unchanged
    assert Shards.open(base / "shards", codec=codec.fingerprint).n_documents >= 5
    assert prepare(base, codec, source, **changes).unchanged


class PulledPlugError(BaseException):
    """An interruption such as Ctrl-C."""


def test_an_interruption_leaves_the_old_shards(base: Path, codec: Codec, monkeypatch):
    prepare(base, codec)
    before = documents_in(base)
    (base / "owls/0.txt").write_text("a white owl")
    encode_many, calls = codec.encode_many, iter(range(10))

    def interrupted(documents: list[Document]) -> list[Encoded | DataError]:
        if next(calls) == 2:
            raise PulledPlugError
        return encode_many(documents)

    monkeypatch.setattr(codec, "encode_many", interrupted)
    with pytest.raises(PulledPlugError):
        prepare(base, codec, shard_tokens=10)
    assert documents_in(base) == before
    assert sorted(path.name for path in base.iterdir()) == ["owls", "shards"]


def test_an_interruption_of_the_first_run_leaves_nothing(base: Path, codec: Codec, monkeypatch):
    monkeypatch.setattr(codec, "encode_many", lambda _: (_ for _ in ()).throw(PulledPlugError))
    with pytest.raises(PulledPlugError):
        prepare(base, codec)
    assert [path.name for path in base.iterdir()] == ["owls"]


def test_leftovers_of_a_killed_process_are_removed(base: Path, codec: Codec):
    prepare(base, codec)
    (base / "shards").rename(base / ".shards.pardalis-previous")  # killed between the two renames
    (base / ".shards.pardalis-partial").mkdir()
    (base / ".shards.pardalis-partial" / "ids-00000.npy").write_bytes(b"half")
    assert prepare(base, codec).unchanged
    (base / "owls/0.txt").write_text("a white owl")
    assert not prepare(base, codec).unchanged
    assert sorted(path.name for path in base.iterdir()) == ["owls", "shards"]


@pytest.mark.parametrize("failing_save", range(3))
def test_a_full_disk_leaves_the_old_shards(base: Path, codec: Codec, monkeypatch, failing_save):
    prepare(base, codec)
    before = documents_in(base)
    (base / "owls/0.txt").write_text("a white owl")
    save, calls = np.save, iter(range(10))

    def full(path: Path, values: np.ndarray) -> None:
        if next(calls) == failing_save:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, values)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(
        DataError, match=r"'owls' into .*shards stopped: the disk is full; free space on it"
    ):
        prepare(base, codec)
    assert documents_in(base) == before
    assert sorted(path.name for path in base.iterdir()) == [BLOCKS, "owls", "shards"]
    monkeypatch.setattr(np, "save", save)
    monkeypatch.setattr(codec, "encode_many", None)  # what was encoded is kept
    assert prepare(base, codec).written == 5
    assert sorted(path.name for path in base.iterdir()) == ["owls", "shards"]


@pytest.mark.parametrize(
    "field", ["row_tokens", "batch_documents", "shard_tokens", "block_documents"]
)
def test_sizes_must_be_positive(field: str):
    with pytest.raises(ConfigError, match=f"^{field} must be at least"):
        replace(CONFIG, **{field: 0})


# ── conversations of which only some turns are learnt ──────────────────────────────────────────


def turns(*parts: tuple[str, str]) -> dict:
    return {"segments": [{"role": role, "text": text} for role, text in parts]}


def answers(base: Path, codec: Codec, *records: object, **changes) -> PrepareReport:
    source = write_jsonl(base, *records)
    config = replace(CONFIG, **changes)
    return prepare_source(source, codec, base / "shards", config, learnt_roles=("assistant",))


U, A, S = "user", "assistant", "system"
OWL = turns((U, "an owl?"), (A, "an owl"))


def test_only_answers_are_learnt_whatever_the_weights_of_prompts(base: Path, codec: Codec):
    record = turns((S, "the"), (U, "an owl?"), (A, "an owl"), (U, "a fox?"), (A, "two"))
    record["segments"][1]["weight"] = 5
    record["segments"][4]["weight"] = 2
    report = answers(base, codec, record)
    document = Shards.open(base / "shards").document(0)
    runs = [
        (float(weight), codec.render(document.ids[document.weights == weight])) for weight in (1, 2)
    ]
    assert runs == [(1, "an owl<end_turn>"), (2, "two<eos>")]
    learnt = document.weights > 0
    assert (report.turns.conversations, report.turns.answer_tokens) == (1, learnt.sum())
    assert report.turns.prompt_tokens == len(document) - learnt.sum()


def test_shards_of_answers_are_others_than_those_of_all_turns(base: Path, codec: Codec):
    assert not answers(base, codec, OWL).unchanged
    assert answers(base, codec, OWL).unchanged
    whole = prepare(base, codec, write_jsonl(base, OWL))
    assert not whole.unchanged and whole.turns is None
    assert not Shards.open(base / "shards").document(0).is_weighted


def test_a_source_of_pretraining_is_learnt_whole_beside_answers(base: Path, codec: Codec):
    records = write_jsonl(base, {"segments": [{"text": "an owl"}]}, OWL)
    source = replace(records, learn="all")
    report = prepare_source(source, codec, base / "shards", CONFIG, learnt_roles=("assistant",))
    assert (report.written, report.n_rejected, report.turns) == (2, 0, None)
    shards = Shards.open(base / "shards")
    assert not any(shards.document(i).is_weighted for i in range(2))
    # A source that is learnt whole has the same shards under every objective.
    assert prepare_source(source, codec, base / "shards", CONFIG).unchanged


@pytest.mark.parametrize(
    ("record", "kind", "reason"),
    [
        ({"segments": [{"text": "an owl"}]}, "no-answer", "has no turn of the assistant, and no"),
        (turns((U, "an owl"), (A, "")), "no-answer", "has no turn of the assistant, and nothing"),
        (turns((A, "an owl"), (U, "a")), "no-prompt", "begins with a turn of the assistant, which"),
        (turns((U, ""), (A, "an owl")), "no-prompt", "begins with a turn of the assistant, which"),
        (turns((U, "an owl" * 30), (A, "no")), "too-long", "a row has 64"),
    ],
)
def test_what_has_no_answer_is_rejected_and_counted(base: Path, codec: Codec, record, kind, reason):
    report = answers(base, codec, record, OWL, record)
    assert (report.read, report.written, report.n_rejected) == (3, 1, 2)
    assert reason in report.rejected[kind].examples[0]["reason"]
    with pytest.raises(DataError, match=f"(?s)no usable document: 1 read, 1 rejected.*{kind}"):
        answers(base, codec, record)


def test_a_conversation_that_the_template_refuses_is_rejected(base: Path, codec: Codec):
    source = "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('No.') }}"
    source += "{% endif %}{{ m.content + '<end_turn>' }}{% endfor %}"
    templated = Codec(
        codec.vocabulary, codec.text_tokenizer, codec.image_tokenizer, chat_template=source
    )
    report = answers(base, templated, turns((U, "an owl?"), (A, "no")), OWL)
    assert report.written == 1
    assert (
        "does not take this conversation" in report.rejected["chat-template"].examples[0]["reason"]
    )


def test_images_of_prompts_and_answers_are_counted(base: Path, codec: Codec):
    image = {"image": "owls/0.png"}
    record = {
        "segments": [
            {"role": U, **image}, {"role": U, "text": "again!"},
            {"role": A, **image}, {"role": A, "text": "so"}, {"role": A, **image},
        ]
    }  # fmt: skip
    found = answers(base, codec, record, OWL).turns
    n_text = len(codec.text_tokenizer.encode("so")) + len(codec.text_tokenizer.encode("an owl"))
    assert (found.conversations, found.prompt_images, found.answer_images) == (2, 1, 2)
    assert found.answer_image_tokens == 2 * 4
    assert found.answer_tokens == n_text + 2 * (4 + 2) + 2  # with the marks of images, and eos
    assert found.image_percent == 100 * 8 / found.answer_tokens
    saved = json.loads((base / "shards" / "report.json").read_text())
    assert PrepareReport.from_dict(saved).turns == found


def test_a_text_that_cannot_be_encoded_is_counted_and_ends_nothing(base, codec, monkeypatch):
    odd = [
        Document((Text("half \ud800 of a pair"),), "surrogate"),
        Document((Text("NUL \x00, \x1b[0m and \u2028"),), "controls"),
        Document((Text("<eos> <|im_end|> </s>"),), "names"),
        Document((Text("-" * 2_000),), "dashes"),
    ]
    monkeypatch.setitem(READERS, "folder", lambda path: iter(odd))
    report = prepare(base, codec)
    assert {kind: each.count for kind, each in report.rejected.items()} == {"unreadable-text": 1}
    [example] = report.rejected["unreadable-text"].examples
    assert example["where"] == "surrogate" and "half of a surrogate pair" in example["reason"]
    assert {"controls", "names"} < set(documents_in(base))
    names = documents_in(base)["names"]
    assert codec.decode(names).text == "<eos> <|im_end|> </s>"
