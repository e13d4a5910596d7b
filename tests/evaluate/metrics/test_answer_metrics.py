from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.evaluate.metrics.answers import (
    NORMALISATIONS,
    Vote,
    boxed,
    choice_letter,
    exact_match,
    last_number,
    majority,
    math_normalised,
    numeric_match,
)


@pytest.mark.parametrize(
    ("answer", "accepted", "normalisation", "expected"),
    [
        (" Paris\n", ["Paris"], "spaces", True),
        ("paris", ["Paris"], "spaces", False),
        ("paris", ["Paris"], "case", True),
        ("The Paris!", ["Lyon", "Paris"], "squad", True),
        ("the U.S.", ["us"], "squad", True),
        ("two", ["2"], "vqa", True),
        ("1/2", [r"\frac12"], "math", True),
    ],
)
def test_exact_match(answer, accepted, normalisation, expected):
    assert exact_match(answer, accepted, normalisation) is expected


@settings(deadline=None)
@given(st.text(max_size=30), st.sampled_from(sorted(NORMALISATIONS)))
def test_every_text_matches_itself(text, normalisation):
    assert exact_match(text, [text], normalisation)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 72", 72),
        ("#### -5", -5),
        ("#### $1,234.50 in all, of 7", Fraction("1234.5")),
        ("so it is 4.\n####", 4),
        ("It costs $1,000,000.", 1_000_000),
        ("1,23 and 4,567", 4567),
        ("He has 3/4 of it.", Fraction(3, 4)),
        ("1 3/4 cups", Fraction(7, 4)),
        (r"= \frac{3}{4}", Fraction(3, 4)),
        (r"= -\dfrac{1}{2}", Fraction(-1, 2)),
        ("from 10-12", 12),
        ("it is −3", -3),
        (".5", Fraction(1, 2)),
        ("50%", 50),
        ("2e3", 2000),
        ("The answer is 18.", 18),
        ("7/0", None),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number(text, expected):
    assert last_number(text) == expected


@settings(deadline=None)
@given(st.integers(-(10**12), 10**12))
def test_integers_are_found_as_python_writes_them(number):
    assert last_number(f"so 1 + 1 gives {number:,}.") == number
    assert last_number(f"#### {number}\n") == number


@settings(deadline=None)
@given(st.text("0123456789,./-e# ", max_size=40))
def test_no_text_of_digits_is_refused(text):
    number = last_number(text)
    assert number is None or isinstance(number, Fraction)


def test_a_long_row_of_digits_takes_no_time():
    assert last_number("9" * 5000 + " and 1e99999") is not None


def test_numeric_match():
    assert numeric_match("It is 72 clips.", "#### 72")
    assert numeric_match("0.5", "1/2")
    assert not numeric_match("I do not know.", "72")
    assert not numeric_match("72.4", "72")
    assert numeric_match("72.4", "72", tolerance=0.01)
    with pytest.raises(ValueError, match="'many' has no number"):
        numeric_match("72", "many")


# Pairs of the test that MATH's authors publish beside their comparison, and what it makes of them.
EQUAL = [
    (r"\frac{1}{2}", r"\frac12"),
    (r"1/2", r"\frac{1}{2}"),
    (r"0.5", r"\frac{1}{2}"),
    (r"\dfrac{3}{4}", r"\tfrac34"),
    (r"\frac1{72}", r"\frac{1}{72}"),
    (r"x = 5", "5"),
    (r"90^{\circ}", "90"),
    (r"90^\circ", "90"),
    (r"10\%", "10"),
    (r"\$4", "4"),
    (r"5\text{ cm}", "5"),
    (r"\left(1, 2\right)", "(1,2)"),
    (r"\sqrt3", r"\sqrt{3}"),
    (r".5", "0.5"),
    ("1\\!000", "1000"),
    (r"\text{(A)}", r"\text{(A)}"),
]


@pytest.mark.parametrize(("a", "b"), EQUAL)
def test_equal_expressions(a, b):
    assert math_normalised(a) == math_normalised(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [("2/4", "1/2"), ("x+1", "1+x"), (r"\sqrt{2}", "2"), ("abc=5", "5"), ("0.50", "0.5")],
)
def test_expressions_are_compared_as_texts(a, b):
    assert math_normalised(a) != math_normalised(b)


@pytest.mark.parametrize("text", [r"\frac", r"\sqrt", r"a \sqrt\sqrt3", r"\text{ a}\text{ b}"])
def test_broken_expressions_stay_as_they_are(text):
    assert math_normalised(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"$\boxed{42}$", "42"),
        (r"\boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\fbox{7}", "7"),
        (r"$\boxed 5$", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{1", None),
        ("42", None),
    ],
)
def test_the_box(text, expected):
    assert boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B) Paris", "B"),
        ("B) Paris", "B"),
        ("**B**", "B"),
        ("B\nbecause", "B"),
        ("The answer is B.", "B"),
        ("Answer: (D)", "D"),
        ("The answer is A? No, the answer is C", "C"),
        ("A cat sits on the mat (C).", "C"),
        ("A cat", None),
        ("E", None),
        ("the answer is Berlin", None),
        ("", None),
    ],
)
def test_the_letter_of_a_choice(text, expected):
    assert choice_letter(text) == expected


def test_the_vote_of_responses():
    assert majority(["7", None, "8", "8"]) == Vote("8", 2, 4)
    assert majority(["7", "8", "8", "7"]) == Vote("7", 2, 4)  # the first of equals
    assert majority([None, None]) == Vote(None, 0, 2)
    assert majority([]) == Vote(None, 0, 0)
