import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pardalis.evaluate.captions import is_exact, score_captions, token_f1

texts = st.text(alphabet="ab B!", max_size=12)


@pytest.mark.parametrize(
    ("caption", "expected", "f1"),
    [
        ("snowy owl", "Snowy owl", 1.0),
        ("a snowy owl", "snowy owl", 0.8),  # precision 2/3, recall 1
        ("owl owl owl", "owl", 0.5),  # a repeated word counts once
        ("owl", "oak", 0.0),
        ("", "owl", 0.0),
        ("", "", 1.0),
        ("owl!", "owl", 1.0),
    ],
)
def test_f1_of_examples(caption, expected, f1):
    assert token_f1(caption, expected) == pytest.approx(f1)


@given(texts, texts)
def test_f1_is_symmetric_bounded_and_one_for_exact(a, b):
    assert token_f1(a, b) == token_f1(b, a)
    assert 0 <= token_f1(a, b) <= 1
    if is_exact(a, b):
        assert token_f1(a, b) == 1


def test_exact_ignores_case_and_spacing_only():
    assert is_exact(" SNOWY  owl\n", "snowy owl")
    assert not is_exact("snowy owl!", "snowy owl")


def test_scores_are_means():
    scores = score_captions(["owl", "a snowy owl", "cat"], ["Owl", "snowy owl", "dog"])
    assert (scores.exact, scores.n_captions) == (pytest.approx(1 / 3), 3)
    assert scores.f1 == pytest.approx((1 + 0.8 + 0) / 3)


def test_no_captions_have_no_scores():
    assert math.isnan(score_captions([], []).exact)
