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
