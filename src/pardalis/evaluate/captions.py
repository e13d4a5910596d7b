"""Caption metrics: exact match and word F1, ignoring case.

Beside each metric stands what the best constant answer would get, the same caption for every
image. A model shows skill only above it.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = re.compile(r"\w+")
# Bounds of the search for a constant caption, which is quadratic in the captions.
_MOST_CONSTANTS = 200
_MOST_WORDS = 30
_MOST_STEPS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionScores:
    """Means over captions; NaN when there are none."""

    exact: float  # share of exact matches, ignoring case and spacing
    f1: float  # harmonic mean of word precision and recall, with repeats
    n_captions: int
    constant_exact: float  # the most that one caption for all images would get
    constant_f1: float  # the same, of the best one that a search finds


def score_captions(captions: Sequence[str], expected: Sequence[str]) -> CaptionScores:
    """Compare each caption with the expected one at the same index."""
    pairs = list(zip(captions, expected, strict=True))
    n = len(pairs)
    return CaptionScores(
        exact=sum(is_exact(*pair) for pair in pairs) / n if n else float("nan"),
        f1=sum(token_f1(*pair) for pair in pairs) / n if n else float("nan"),
        n_captions=n,
        constant_exact=_constant_exact(expected),
        constant_f1=_constant_f1(expected),
    )


def _constant_exact(expected: Sequence[str]) -> float:
    counts = Counter(tuple(text.lower().split()) for text in expected)
    return max(counts.values()) / len(expected) if expected else float("nan")


def _constant_f1(expected: Sequence[str]) -> float:
    """Return the mean F1 of the best constant caption that is found.

    The search begins with the best of the expected captions, and adds or removes one word at a
    time while the mean rises.
    """
    if not expected:
        return float("nan")
    distinct = Counter(tuple(sorted(_words(text).elements())) for text in expected)
    wanted = [(Counter(words), n / len(expected)) for words, n in distinct.most_common()]

    def mean(words: Counter[str]) -> float:
        return sum(share * _f1(words, other) for other, share in wanted)

    found = max((words for words, _ in wanted[:_MOST_CONSTANTS]), key=mean)
    best = mean(found)
    in_captions = Counter(word for words, share in wanted for word in words)
    common = [word for word, _ in in_captions.most_common(_MOST_WORDS)]
    for _ in range(_MOST_STEPS):
        changed = [found + Counter([word]) for word in common]
        changed += [found - Counter([word]) for word in found]
        other = max(changed, key=mean, default=found)
        if mean(other) <= best:
            break
        best, found = mean(other), other
    return best


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
    return _f1(_words(caption), _words(expected))


def _words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text.lower()))


def _f1(found: Counter[str], wanted: Counter[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    return 2 * (found & wanted).total() / (found.total() + wanted.total())
