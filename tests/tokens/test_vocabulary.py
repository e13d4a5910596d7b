import json

import pytest

from pardalis.errors import BundleError
from pardalis.tokens import Vocabulary


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
    assert vocabulary.end_image_id < vocabulary.begin_image_id


def test_survives_a_file():
    vocabulary = Vocabulary.build(n_codes=12, n_text=20)
    assert Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary


def test_refuses_other_keys():
    values = Vocabulary.build(n_codes=2, n_text=2).to_dict()
    values["audio"] = [0, 1]
    with pytest.raises(BundleError, match="audio"):
        Vocabulary.from_dict(values)


@pytest.mark.parametrize(
    ("token_id", "name"),
    [(0, "<bos>"), (5, "<begin_image>"), (7, "<unused 7>"), (8, "<image 0>"), (20, "<text 0>"),
     (40, "<outside 40>"), (-1, "<outside -1>")],
)  # fmt: skip
def test_names(token_id, name):
    assert Vocabulary.build(n_codes=12, n_text=20).name_of(token_id) == name


# ── imported ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("foreign_ids", [range(12), (11, *range(11))])
def test_foreign_ids_survive_a_file(foreign_ids):
    vocabulary = Vocabulary(image=range(4, 6), text=range(8, 10), foreign_ids=foreign_ids)
    values = json.loads(json.dumps(vocabulary.to_dict()))
    again = Vocabulary.from_dict(values)
    assert again == vocabulary
    assert again.foreign_ids == foreign_ids
    assert type(again.foreign_ids) is type(foreign_ids)
    assert again.size == 12  # two more than text and images need


@pytest.mark.parametrize("plain", [9, [2, 1, 0], [0] * 12, [*range(1, 13)], ["a"] * 12, 12.0, {}])
def test_foreign_ids_that_are_none(plain):
    vocabulary = Vocabulary(image=range(4, 6), text=range(8, 10), foreign_ids=range(12))
    with pytest.raises(
        BundleError, match=r"foreign_ids must be a permutation of its ids, 10 or more"
    ):
        Vocabulary.from_dict(vocabulary.to_dict() | {"foreign_ids": plain})


def test_unchanged_ids_are_one_number_in_a_file():
    vocabulary = Vocabulary(image=range(4, 6), text=range(8, 10), foreign_ids=range(12))
    assert vocabulary.to_dict()["foreign_ids"] == 12
    assert "foreign_ids" not in Vocabulary.build(n_codes=2, n_text=2).to_dict()


def test_the_unknown_token_is_numbered_after_all_others():
    vocabulary = Vocabulary(image=range(4, 6), text=range(8, 10), foreign_ids=range(12))
    assert [vocabulary.text_id(token) for token in (0, 1, 2)] == [8, 9, vocabulary.unk_id]
    assert [vocabulary.text_token(i) for i in (8, 9, vocabulary.unk_id)] == [0, 1, 2]
    assert vocabulary.readable_unk_id == vocabulary.unk_id == 3
    assert Vocabulary.build(n_codes=2, n_text=2).readable_unk_id is None


def test_single_ids_may_lie_between_ranges():
    vocabulary = Vocabulary(
        image=range(4, 6), text=range(8, 10), end_image_id=6, begin_image_id=7, end_turn_id=10,
        foreign_ids=range(12),
    )  # fmt: skip
    assert [vocabulary.name_of(i) for i in (3, 6, 7, 8, 10, 11, 12)] == [
        "<unk>", "<end_image>", "<begin_image>", "<text 0>", "<end_turn>", "<unused 11>",
        "<outside 12>",
    ]  # fmt: skip
