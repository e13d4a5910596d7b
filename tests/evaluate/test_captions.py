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


def test_a_constant_caption_gets_the_share_of_the_most_common_one():
    scores = score_captions(["owl"] * 4, ["an Owl", "an  owl", "a cat", "an owl!"])
    assert scores.constant_exact == 0.5
    assert scores.constant_f1 == pytest.approx(3 / 4)
    assert math.isnan(score_captions([], []).constant_exact)


def test_words_that_captions_share_are_a_constant_caption():
    expected = ["a photo of an owl", "a photo of an oak", "a photo of an ant"]
    # Each caption as a constant: 1 for itself, 4/5 for the others. "a photo of an": 8/9 for all.
    best_of_captions = (1 + 0.8 + 0.8) / 3
    assert best_of_captions < 8 / 9
    assert score_captions(expected, expected).constant_f1 == pytest.approx(8 / 9)


@given(st.lists(texts, min_size=1, max_size=6))
def test_no_expected_caption_beats_the_constant(expected):
    scores = score_captions(expected, expected)
    for constant in expected:
        always = score_captions([constant] * len(expected), expected)
        assert always.exact <= scores.constant_exact
        assert always.f1 <= scores.constant_f1 + 1e-9
