import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.evaluate.metrics.vqa import anls, vqa_accuracy, vqa_normalised

# What the released script (GT-Vision-Lab/VQA, vqaEval.py) makes of answers.
RELEASED = [
    ("Two", "2"),
    ("none", "0"),
    ("eleven", "eleven"),
    ("The dog", "dog"),
    ("an apple, a pear", "apple pear"),
    ("black/white", "black white"),
    ("black / white", "black white"),
    ("t-shirt", "t shirt"),
    ("1,000", "1000"),
    ("1,000 t-shirts", "1000 tshirts"),
    ("3.5", "3.5"),
    ("st. p.m.", "st pm"),
    ("yes!", "yes"),
    ("dont", "don't"),
    ("didn't", "didn't"),
    ("wouldntve", "wouldntve"),
    ("wouldnt've", "wouldn't've"),
    ("yall'll", "y'all'll"),
    ("somebody'd", "somebodyd"),
    ("#1", "#1"),
    ("50%", "50%"),
    (" on the\ntable ", "on table"),
]


@pytest.mark.parametrize(("answer", "expected"), RELEASED)
def test_answers_are_normalised_as_by_the_released_script(answer, expected):
    assert vqa_normalised(answer) == expected


def by_hand(answer: str, people: list[str]) -> float:
    """The definition: each of the people is left out in turn."""
    answer, people = vqa_normalised(answer), [vqa_normalised(text) for text in people]
    each = [
        min(1, sum(other == answer for j, other in enumerate(people) if j != i) / 3)
        for i in range(len(people))
    ]
    return sum(each) / len(each)


@pytest.mark.parametrize(
    ("agree", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)]
)
def test_ten_people(agree, expected):
    # The values that VQA's authors and others quote: 0, 30, 60, 90 and 100 %.
    people = ["yes"] * agree + ["no"] * (10 - agree)
    assert vqa_accuracy("Yes.", people) == pytest.approx(expected)


@settings(deadline=None)
@given(st.text("ab ", max_size=2), st.lists(st.text("ab ", max_size=2), min_size=1, max_size=12))
def test_the_accuracy_is_that_of_the_definition(answer, people):
    assert vqa_accuracy(answer, people) == pytest.approx(by_hand(answer, people))


def test_the_released_script_leaves_unanimous_answers_as_they_are():
    assert vqa_accuracy("Yes", ["yes"] * 10) == 1
    assert vqa_accuracy("Yes", ["yes"] * 10, always_normalise=False) == 0
    people = ["yes"] * 9 + ["no"]
    assert vqa_accuracy("Yes", people, always_normalise=False) == 1


def test_a_question_needs_answers_of_people():
    with pytest.raises(ValueError, match="needs the answers of people"):
        vqa_accuracy("yes", [])


@pytest.mark.parametrize(
    ("answer", "accepted", "expected"),
    [
        ("Coca Cola", ["coca cola"], 1),
        ("cola", ["cole", "no"], 3 / 4),
        ("ab", ["cd"], 0),
        ("abcd", ["abxy"], 1 / 2),
        ("abc", ["axy"], 0),  # a third is less than a half
        ("", [""], 1),
        ("", ["a"], 0),
        ("a", [], 0),
        ("kitten", ["sitting"], 1 - 3 / 7),
    ],
)
def test_anls(answer, accepted, expected):
    assert anls(answer, accepted) == pytest.approx(expected)
