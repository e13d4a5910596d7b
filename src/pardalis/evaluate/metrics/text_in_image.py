"""Recall of words that a text asks for and that OCR reads in the image drawn for it."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from pardalis.evaluate.ocr import n_recalled, words_of

_QUOTED = re.compile(r"""["“”„«]([^"“”„«»]+)["“”»]|(?<!\w)['‘]([^'‘’]+)['’](?!\w)""")


class WordRecall(NamedTuple):
    """Words that were read among those asked for; sum both over images before dividing."""

    recalled: int
    words: int

    @property
    def recall(self) -> float:
        """NaN where no words are asked for."""
        return self.recalled / self.words if self.words else float("nan")


def asked_words(text: str) -> list[str]:
    """Return the words in quotation marks, in lower case; those of one character are left out.

    >>> asked_words('A sign that says "STOP here" by a road')
    ['stop', 'here']
    """
    return words_of([a or b for a, b in _QUOTED.findall(text)])


def word_recall(text: str, lines: Sequence[str]) -> WordRecall:
    """Return how many of the words that a text asks for are in the lines read from an image.

    Each occurrence counts once, and spaces do not count, as in
    :func:`~pardalis.evaluate.ocr.n_recalled`.
    """
    words = asked_words(text)
    return WordRecall(n_recalled(words, lines), len(words))
