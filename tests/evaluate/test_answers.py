"""Right answers: an accepted text in the first sentence, as whole words."""

import pytest

from pardalis.evaluate.answers import first_sentence, is_right


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Paris", "Paris"),
        (" Paris. It lies on the Seine.", "Paris."),
        ("It is 3.5 m high! Yes.", "It is 3.5 m high!"),
        ("\nParis\nLyon", "Paris"),
        ("", ""),
    ],
)
def test_the_first_sentence(text, sentence):
    assert first_sentence(text) == sentence


@pytest.mark.parametrize(
    ("answer", "accepted", "expected"),
    [
        ("The capital of France is PARIS.", ["Paris"], True),
        ("2 + 3 = 15", ["5", "five"], False),
        ("Five.", ["5", "five"], True),
        ("It is Lyon. No, Paris.", ["Paris"], False),
        ("The formula is H2O.", ["H2O"], True),
        ("C++ is.", ["C++"], True),
        ("", ["Paris"], False),
    ],
)
def test_right_answers(answer, accepted, expected):
    assert is_right(answer, accepted) is expected
