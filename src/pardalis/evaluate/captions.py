"""How well captions match the expected ones: exactly, or word by word. Case never counts."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionScores:
    """Means over captions; NaN when there are none."""

    exact: float  # share equal to the expected one, ignoring case and outer or repeated spaces
    f1: float  # token F1: the harmonic mean of word precision and recall, counting repeats
    n_captions: int


def score_captions(captions: Sequence[str], expected: Sequence[str]) -> CaptionScores:
    """Compare each caption with the expected one at the same place."""
    pairs = list(zip(captions, expected, strict=True))
    n = len(pairs)
    return CaptionScores(
        exact=sum(is_exact(*pair) for pair in pairs) / n if n else float("nan"),
        f1=sum(token_f1(*pair) for pair in pairs) / n if n else float("nan"),
        n_captions=n,
    )


def is_exact(caption: str, expected: str) -> bool:
    """Tell whether two captions are equal but for case and spacing.

    >>> is_exact(" Snowy  owl", "snowy owl")
    True
    """
    return caption.lower().split() == expected.lower().split()


def token_f1(caption: str, expected: str) -> float:
    """Return the F1 of the words of two captions, in [0, 1]; punctuation is not a word.

    >>> token_f1("a snowy owl", "snowy owl!")
    0.8
    """
    words, right = Counter(_WORD.findall(caption.lower())), Counter(_WORD.findall(expected.lower()))
    if not words or not right:
        return float(words == right)
    common = (words & right).total()
    return 2 * common / (words.total() + right.total())
