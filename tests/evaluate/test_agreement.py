"""Agreement of raters, against the example of Krippendorff's paper."""

import pytest

from pardalis.evaluate.agreement import krippendorff_alpha

# Computing Krippendorff's Alpha-Reliability, section C: 4 observers, 12 units; 0 is missing.
OBSERVERS = (
    "123321412000",
    "123322412503",
    "033323422510",
    "123324412510",
)
UNITS = [[int(v) - 1 for v in unit if v != "0"] for unit in zip(*OBSERVERS, strict=True)]


@pytest.mark.parametrize(
    ("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_the_published_example(level, alpha):
    assert krippendorff_alpha(UNITS, 5, level) == pytest.approx(alpha, abs=5e-4)


def test_perfect_agreement_and_none_to_speak_of():
    assert krippendorff_alpha([[0, 0], [1, 1, 1], [2]], 3) == 1
    assert krippendorff_alpha([[0], [1], []], 2) is None  # nobody to agree with
    assert krippendorff_alpha([[1, 1], [1, 1]], 2) is None  # nothing varies
