"""Caption metrics: exact match and word F1, ignoring case."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionScores:
    """Means over captions; NaN when there are none."""

    exact: float  # share of exact matches, ignoring case and spacing
    f1: float  # harmonic mean of word precision and recall, with repeats
    n_captions: int


def score_captions(captions: Sequence[str], expected: Sequence[str]) -> CaptionScores:
    """Compare each caption with the expected one at the same index."""
    pairs = list(zip(captions, expected, strict=True))
    n = len(pairs)
    return CaptionScores(
        exact=sum(is_exact(*pair) for pair in pairs) / n if n else float("nan"),
        f1=sum(token_f1(*pair) for pair in pairs) / n if n else float("nan"),
        n_captions=n,
    )


def is_exact(caption: str, expected: str) -> bool:
    """Tell whether two captions are equal except for case and spacing.

    >>> is_exact(" Snowy  owl", "snowy owl")
    True
    """
    return caption.lower().split() == expected.lower().split()


def token_f1(caption: str, expected: str) -> float:
    """Return the F1 of the words of two captions, in [0, 1]; punctuation is ignored.

    >>> token_f1("a snowy owl", "snowy owl!")
    0.8
    """
    found, wanted = (Counter(_WORD.findall(text.lower())) for text in (caption, expected))
    if not found or not wanted:
        return float(found == wanted)
    return 2 * (found & wanted).total() / (found.total() + wanted.total())
