"""Transforms: pure functions of (seed, name, epoch) that keep to the room that they declare."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis import config as configs
from pardalis.data import (
    TRANSFORMS,
    Loader,
    ModalityDropout,
    PairOrder,
    Shards,
    ShardWriter,
    SourceConfig,
    Transforms,
    row_inputs,
    shard_inputs,
)
from pardalis.data.transforms import rooms
from pardalis.documents import Document, Text
from pardalis.errors import ConfigError, DataError
from pardalis.tokens import Encoded, Grammar, Vocabulary

IDS = Vocabulary.build(n_codes=12, n_text=20)
GRAMMAR = Grammar(IDS, codes_per_image=4)
BOS, EOS, TURN, A = IDS.bos_id, IDS.eos_id, IDS.end_turn_id, IDS.text.start
IMAGE = [IDS.begin_image_id, *[IDS.image.start] * 4, IDS.end_image_id]


@dataclass(frozen=True, kw_only=True)
class Stretched:
    """Repeats the token before eos up to ``most`` times."""

    kind: Literal["stretched"] = "stretched"
    most: int = 4

    def load(self, document: Encoded, grammar: Grammar, seed: int) -> Encoded:
        times = seed % (self.most + 1)
        return Encoded.joined(document[:-1], *[document[-2:-1]] * times, document[-1:])

    def room(self, length: int) -> int:
        return length + self.most


def applied(transform, ids, *, name="a", seed=0, epoch=0) -> list[int]:
    transforms = Transforms([transform], GRAMMAR, "source")
    return transforms.load(Encoded.of(ids), name, seed, epoch).ids.tolist()


# ── modality dropout ─────────────────────────────────────────────────────────────────────────────


def test_the_text_before_an_image_is_left_out():
    always = ModalityDropout(probability=1.0)
    assert applied(always, [BOS, A, A, *IMAGE, EOS]) == [BOS, *IMAGE, EOS]
    assert applied(ModalityDropout(probability=0.0), [BOS, A, *IMAGE, EOS])[1] == A


@pytest.mark.parametrize(
    "ids",
    [
        [BOS, A, EOS],
        [BOS, *IMAGE, EOS],
        [BOS, *IMAGE, A, EOS],
        [BOS, A, *IMAGE, A, EOS],
        [BOS, A, TURN, *IMAGE, EOS],
        [BOS, A, *IMAGE, *IMAGE, EOS],
        [BOS, A, *IMAGE],  # the first part of a document that was split
    ],
)
def test_other_documents_stay_as_they_are(ids):
    assert applied(ModalityDropout(probability=1.0), ids) == ids


def test_weights_stay_with_their_tokens():
    weights = np.array([0, 0, *[2] * 6, 1], dtype=np.float32)
    document = Encoded(np.array([BOS, A, *IMAGE, EOS]), weights)
    always = Transforms([ModalityDropout(probability=1.0)], GRAMMAR, "s")
    assert always.load(document, "a", 0, 0).weights.tolist() == [0, *[2] * 6, 1]


def test_about_so_many_are_left_out_and_others_in_each_epoch():
    sometimes, ids = ModalityDropout(probability=0.3), [BOS, A, *IMAGE, EOS]
    dropped = [
        {n for n in range(500) if len(applied(sometimes, ids, name=str(n), epoch=epoch)) < len(ids)}
        for epoch in range(2)
    ]
    for each in dropped:
        assert 100 < len(each) < 200
    assert 10 < len(dropped[0] & dropped[1]) < 90


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_a_probability_is_one(probability):
    with pytest.raises(ConfigError, match=r"^probability must lie in \[0, 1\], got"):
        ModalityDropout(probability=probability)


# ── purity ───────────────────────────────────────────────────────────────────────────────────────

bodies = st.lists(st.sampled_from([[A], [A + 1], [TURN], IMAGE]), max_size=6)
documents = bodies.map(lambda body: [BOS, *(i for part in body for i in part), EOS])
lists = st.lists(
    st.one_of(
        st.floats(0, 1).map(lambda p: ModalityDropout(probability=p)),
        st.integers(0, 6).map(lambda most: Stretched(most=most)),
    ),
    max_size=3,
)


@given(lists, documents, st.text(max_size=5), st.integers(0, 9), st.integers(0, 9))
def test_loading_is_a_function_of_seed_name_and_epoch(listed, ids, name, seed, epoch):
    first, again = (Transforms(listed, GRAMMAR, "source") for _ in range(2))
    expected = first.load(Encoded.of(ids), name, seed, epoch)
    first.load(Encoded.of([BOS, EOS]), "another", seed, epoch + 1)
    for transforms in (first, again):
        assert transforms.load(Encoded.of(ids), name, seed, epoch) == expected
    assert len(expected) <= rooms(listed, len(ids))[len(ids)]


@given(
    lists.filter(bool),
    st.lists(documents.filter(lambda ids: len(ids) <= 40), min_size=1, max_size=12),
    st.integers(0, 60),
)
@settings(max_examples=30, deadline=None)
def test_packed_rows_never_overflow_and_resume_exactly(tmp_path_factory, listed, ids, step):
    """Whatever transforms are listed, in whatever epoch."""
    folder = tmp_path_factory.mktemp("shards")
    writer = ShardWriter(folder, 100, 1000)
    for number, each in enumerate(ids):
        writer.add(str(number), Encoded.of(each))
    writer.finish(64, codec="", rooms=rooms(listed, 64))
    shards = Shards.open(folder)

    def loader() -> Loader:
        transforms = {"a": Transforms(listed, GRAMMAR, "a")}
        return Loader({"a": shards}, {"a": 1.0}, 64, 2, 0, IDS.pad_id, transforms)

    begun = loader()
    for earlier in range(3):
        begun.batch(earlier)
    batch, resumed = begun.batch(step), loader().batch(step)
    assert (batch.ids == resumed.ids).all() and (batch.weights == resumed.weights).all()
    # The oracle transforms the documents one by one.
    for b in range(2):
        found = begun.locate(2 * step + b)
        assert found.epoch == (2 * step + b) // shards.n_rows
        expected = [
            Transforms(listed, GRAMMAR, "a").load(
                shards.document(number), shards.names[number], 0, found.epoch
            )
            for number in shards.row(found.row)
        ]
        joined = [i for document in expected for i in document.ids.tolist()]
        assert batch.ids[b, : len(joined)].tolist() == joined
        assert (batch.documents[b, len(joined) :] == -1).all()


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Liar(Stretched):
    kind: Literal["liar"] = "liar"

    def load(self, document: Encoded, grammar: Grammar, seed: int) -> Encoded:
        return Encoded.joined(document, document)


def test_more_tokens_than_declared_are_refused():
    with pytest.raises(
        DataError,
        match="'liar' made 24 tokens of the 12 of 'a' in source 'source', but its `room` "
        "declares at most 16",
    ):
        applied(Liar(), [BOS, *[A] * 10, EOS])


def test_shards_without_room_are_refused(tmp_path):
    writer = ShardWriter(tmp_path, 100, 1000)
    writer.add("a", Encoded.of([BOS, *[A] * 6, EOS]))
    writer.finish(8, codec="")
    stretched = {"a": Transforms([Stretched(most=400)], GRAMMAR, "a")}
    loader = Loader({"a": Shards.open(tmp_path)}, {"a": 1.0}, 8, 1, 0, 1, stretched)
    with pytest.raises(DataError, match=r"Row 0 of source 'a' has .* row_tokens is 8; prepare"):
        loader.batch(0)


@dataclass(frozen=True, kw_only=True)
class Shrinking(Stretched):
    kind: Literal["shrinking"] = "shrinking"

    def room(self, length: int) -> int:
        return 100 - length


def test_less_room_for_longer_documents_is_refused():
    with pytest.raises(ConfigError, match="'shrinking' gives a longer document less room"):
        rooms([Shrinking()], 20)


@dataclass(frozen=True, kw_only=True)
class Nothing:
    kind: Literal["nothing"] = "nothing"


def test_a_transform_without_methods_is_refused():
    with pytest.raises(ConfigError, match="The transform Nothing needs a method `write`, or the"):
        Transforms([Nothing()], GRAMMAR, "a")


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────


def source(*transforms) -> SourceConfig:
    values = {"name": "a", "reader": "jsonl", "path": "a", "transforms": list(transforms)}
    return configs.from_dict(SourceConfig, values, "sources.0.")


def test_a_source_lists_transforms_by_kind():
    found = source({"kind": "pair_order", "order": "random"}, {"kind": "modality_dropout"})
    assert found.transforms == (PairOrder(order="random"), ModalityDropout())
    assert configs.from_dict(SourceConfig, configs.to_dict(found)) == found
    with pytest.raises(ConfigError, match=r"sources.0.transforms.0.kind must be one of 'pair_or"):
        source({"kind": "pair_ordre"})
    with pytest.raises(ConfigError, match=r"transforms.0.probability must lie in"):
        source({"kind": "modality_dropout", "probability": 2.0})


def test_a_transform_from_outside_is_known_after_add(monkeypatch):
    with monkeypatch.context() as context:
        context.setitem(TRANSFORMS, "stretched", Stretched)  # what add does, undone afterwards
        assert source({"kind": "stretched", "most": 2}).transforms == (Stretched(most=2),)
    assert TRANSFORMS.add(PairOrder) is PairOrder


def test_what_shards_and_rows_depend_on():
    both, random, dropout = PairOrder(), PairOrder(order="random"), ModalityDropout()
    assert shard_inputs([], 32) == shard_inputs([dropout], 32) == "as_written"
    assert (shard_inputs([both], 32), shard_inputs([dropout, random], 32)) == ("both", "random")
    stretched = [shard_inputs([Stretched(most=n)], 32) for n in (0, 1, 2)]
    assert stretched[0] == "as_written"
    assert stretched[1] != stretched[2]
    assert row_inputs([both]) == []
    assert row_inputs([both, dropout]) == [{"kind": "modality_dropout", "probability": 0.1}]


def test_writing_is_done_in_order():
    @dataclass(frozen=True, kw_only=True)
    class Twice:
        kind: Literal["twice"] = "twice"

        def write(self, document: Encoded, raw: Document, grammar: Grammar):
            return [("#1", document), ("#2", Encoded.joined(document[:1], document))]

    transforms = Transforms([Twice(), Twice()], GRAMMAR, "a")
    written = transforms.write(Encoded.of([BOS, EOS]), Document((Text("x"),), "d"))
    assert [(name, len(document)) for name, document in written] == [
        ("d#1#1", 2), ("d#1#2", 3), ("d#2#1", 3), ("d#2#2", 4)
    ]  # fmt: skip
