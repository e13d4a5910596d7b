import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pardalis.errors import BundleError, ConfigError
from pardalis.tokens import Vocabulary
from pardalis.tokens.vocabulary import SPECIAL


def test_ranges_are_disjoint_and_cover_the_ids():
    vocabulary = Vocabulary.build(n_codes=12, n_text=20)
    special = set(range(8))
    image, text = set(vocabulary.image), set(vocabulary.text)
    assert not special & image and not special & text and not image & text
    assert special | image | text == set(range(vocabulary.size))
    assert vocabulary.size == 8 + 12 + 20
    assert vocabulary.n_codes == 12


def test_special_ids_follow_chameleon():
    vocabulary = Vocabulary.build(n_codes=1, n_text=1)
    assert (vocabulary.bos_id, vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (
        0,
        1,
        2,
        3,
    )
    assert (vocabulary.end_image_id, vocabulary.begin_image_id, vocabulary.end_turn_id) == (4, 5, 6)


def test_more_names_take_unused_ids_and_those_behind():
    vocabulary = Vocabulary.build(12, 20, special=["mask", "sep"], modalities={"audio": 5})
    assert vocabulary.special == SPECIAL | {"mask": 7, "sep": 45}
    assert vocabulary.modalities == {
        "image": range(8, 20), "text": range(20, 40), "audio": range(40, 45)
    }  # fmt: skip
    assert vocabulary.size == 46
    assert [vocabulary.name_of(i) for i in (7, 40, 44, 45, 46)] == [
        "<mask>", "<audio 0>", "<audio 4>", "<sep>", "<outside 46>"
    ]  # fmt: skip


names = st.from_regex(r"[a-e]{1,2}", fullmatch=True)


def vocabulary_of(n_codes: int, n_text: int, unused: int, kind: str, more: bool) -> Vocabulary:
    """An own or an imported one with unused ids, extended before or not."""
    vocabulary = Vocabulary.build(n_codes, n_text)
    size = vocabulary.size + unused
    if kind != "own":
        ids = range(size) if kind == "unchanged" else (*range(5, size), *range(5))
        vocabulary = replace(vocabulary, foreign_ids=ids)
    if more:
        vocabulary = vocabulary.extended(["first", "second"], {"depth": 3}, writable=["second"])
    return vocabulary


@given(
    st.tuples(
        st.integers(1, 9),
        st.integers(1, 9),
        st.integers(0, 3),
        st.sampled_from(["own", "unchanged", "moved"]),
        st.booleans(),
    ),
    st.lists(names, unique=True),
    st.dictionaries(names.map(lambda name: name + "_"), st.integers(1, 5)),
)
def test_extending_moves_no_id_and_names_each_id_once(shape, special, modalities):
    vocabulary = vocabulary_of(*shape)
    longer = vocabulary.extended(special, modalities)
    for i in range(vocabulary.size):
        was, now = vocabulary.name_of(i), longer.name_of(i)
        assert was == now or (was == f"<unused {i}>" and now[1:-1] in special)
    assert all(longer.name_of(longer.special[name]) == f"<{name}>" for name in special)
    assert all(len(longer.modalities[name]) == n for name, n in modalities.items())
    assert set(longer.special) == {*vocabulary.special, *special}
    # New ids are needed for no more than has no unused one.
    n_new = max(len(special) - len(vocabulary.unused), 0) + sum(modalities.values())
    assert longer.size == vocabulary.size + n_new
    every = [longer.name_of(i) for i in range(longer.size)]
    assert len(set(every)) == longer.size
    assert longer.readable_unk_id == vocabulary.readable_unk_id
    if vocabulary.foreign_ids is not None:
        assert list(longer.foreign_ids[: vocabulary.size]) == list(vocabulary.foreign_ids)
    assert Vocabulary.from_dict(json.loads(json.dumps(longer.to_dict()))) == longer


@pytest.mark.parametrize(
    ("extend", "message"),
    [
        (lambda v: v.extended(["bos"]), "two entries 'bos'; choose another name"),
        (lambda v: v.extended(["sep", "sep"]), "two entries 'sep'"),
        (lambda v: v.extended(["sep"], {"sep": 2}), "two entries 'sep'"),
        (lambda v: v.extended(["Sep"]), "begin with a letter, got 'Sep'"),
        (lambda v: v.extended(["sep"], writable=["eos"]), "writable names 'eos', .* \\['sep'\\]"),
        (lambda v: replace(v, special=v.special | {"sep": 9}), "sep and image|image and sep"),
        (lambda v: replace(v, modalities=v.modalities | {"eos": range(60, 62)}), "'eos' names a"),
        (lambda v: replace(v, modalities={"text": range(9, 12)}), "needs image, found"),
        (lambda v: replace(v, modalities=v.modalities | {"audio": range(3, 9)}), "share the id 3"),
    ],
)  # fmt: skip
def test_what_is_no_vocabulary(extend, message):
    with pytest.raises(ConfigError, match=message):
        extend(Vocabulary.build(n_codes=12, n_text=20))


def test_survives_a_file():
    vocabulary = Vocabulary.build(n_codes=12, n_text=20)
    assert Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary


OLD = (
    '{"image": [8, 20], "text": [20, 40], "bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3, '
    '"end_image_id": 4, "begin_image_id": 5, "end_turn_id": 6}'
)


def test_the_form_of_earlier_versions_is_read():
    assert Vocabulary.from_dict(json.loads(OLD)) == Vocabulary.build(n_codes=12, n_text=20)
    foreign = json.loads(OLD) | {"foreign_ids": 41}
    assert Vocabulary.from_dict(foreign).foreign_ids == range(41)


def test_what_fingerprints_hash_has_the_form_of_earlier_versions():
    expected = repr(sorted(json.loads(OLD).items()))
    vocabulary = Vocabulary.build(n_codes=12, n_text=20)
    assert vocabulary.to_hash() == expected
    others = [vocabulary.extended(["a"]), vocabulary.extended(["a"], writable=["a"])]
    others += [vocabulary.extended([], {"a": 1}), replace(vocabulary, foreign_ids=range(40))]
    assert len({vocabulary.to_hash(), *(other.to_hash() for other in others)}) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio": [0, 1]}, "no key 'audio'"),
        ({"special": {"bos": 0}}, "needs pad, eos"),
        ({"special": {"bos": [0]}}, "needs an id for each name in special"),
        ({"modalities": {"image": [1, 2, 3, 4]}}, "a start and a stop for each in modalities"),
        ({"modalities": {"image": [1, 20], "text": [20, 40]}}, "share the id 1"),
    ],
)
def test_damaged_files_are_refused(changes, message):
    values = Vocabulary.build(n_codes=2, n_text=2).to_dict() | changes
    with pytest.raises(BundleError, match=message):
        Vocabulary.from_dict(values)


def test_keys_that_earlier_versions_did_not_have_are_refused():
    with pytest.raises(BundleError, match="no key 'audio'"):
        Vocabulary.from_dict(json.loads(OLD) | {"audio": [40, 41]})
    old = json.loads(OLD)
    del old["eos_id"]
    with pytest.raises(BundleError, match="needs eos"):
        Vocabulary.from_dict(old)


@pytest.mark.parametrize(
    ("token_id", "name"),
    [(0, "<bos>"), (5, "<begin_image>"), (7, "<unused 7>"), (8, "<image 0>"), (20, "<text 0>"),
     (40, "<outside 40>"), (-1, "<outside -1>")],
)  # fmt: skip
def test_names(token_id, name):
    assert Vocabulary.build(n_codes=12, n_text=20).name_of(token_id) == name


# ── imported ─────────────────────────────────────────────────────────────────────────────────────


def imported(foreign_ids=range(14)) -> Vocabulary:
    """Two more ids than text and images need."""
    ranges = {"image": range(8, 10), "text": range(10, 12)}
    return Vocabulary(modalities=ranges, foreign_ids=foreign_ids)


@pytest.mark.parametrize("foreign_ids", [range(14), (13, *range(13))])
def test_foreign_ids_survive_a_file(foreign_ids):
    vocabulary = imported(foreign_ids)
    values = json.loads(json.dumps(vocabulary.to_dict()))
    again = Vocabulary.from_dict(values)
    assert again == vocabulary
    assert again.foreign_ids == foreign_ids
    assert type(again.foreign_ids) is type(foreign_ids)
    assert again.size == 14


@pytest.mark.parametrize("plain", [9, [2, 1, 0], [0] * 14, [*range(1, 15)], ["a"] * 14, 14.0, {}])
def test_foreign_ids_that_are_none(plain):
    with pytest.raises(
        BundleError, match=r"foreign_ids must be a permutation of its ids, 12 or more"
    ):
        Vocabulary.from_dict(imported().to_dict() | {"foreign_ids": plain})


def test_unchanged_ids_are_one_number_in_a_file():
    assert imported().to_dict()["foreign_ids"] == 14
    assert "foreign_ids" not in Vocabulary.build(n_codes=2, n_text=2).to_dict()


def test_the_unknown_token_is_numbered_after_all_others():
    vocabulary = imported()
    assert [vocabulary.text_id(token) for token in (0, 1, 2)] == [10, 11, vocabulary.unk_id]
    assert [vocabulary.text_token(i) for i in (10, 11, vocabulary.unk_id)] == [0, 1, 2]
    assert vocabulary.readable_unk_id == vocabulary.unk_id == 3
    assert Vocabulary.build(n_codes=2, n_text=2).readable_unk_id is None


def test_special_ids_may_lie_between_ranges():
    vocabulary = Vocabulary(
        modalities={"image": range(4, 6), "text": range(8, 10)},
        special=SPECIAL | {"end_image": 6, "begin_image": 7, "end_turn": 10},
        foreign_ids=range(12),
    )
    assert [vocabulary.name_of(i) for i in (3, 6, 7, 8, 10, 11, 12)] == [
        "<unk>", "<end_image>", "<begin_image>", "<text 0>", "<end_turn>", "<unused 11>",
        "<outside 12>",
    ]  # fmt: skip
