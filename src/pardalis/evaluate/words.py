"""Whether words in an image can still be read after the image tokenizer, by optical recognition.

Images with much text are the weakness that Chameleon's paper names of its tokenizer (arXiv
2405.09818, section 2.1), and no other score shows it: a page of blurred letters has a good PSNR.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import PIL.Image

from pardalis.feature_nets.files import optional_package

ReadLines: TypeAlias = Callable[[PIL.Image.Image], list[str]]
"""From an image to the lines of text in it."""


def line_reader() -> ReadLines:
    """Return a function that reads print, Latin and Chinese, with RapidOCR; loads its nets once.

    Raises:
        ConfigError: rapidocr-onnxruntime is not installed.
    """
    with optional_package("Reading words in images", "ocr"):
        from rapidocr_onnxruntime import RapidOCR

    engine = RapidOCR()

    def read(image: PIL.Image.Image) -> list[str]:
        rgb = np.asarray(image.convert("RGB"))
        lines, _ = engine(np.ascontiguousarray(rgb[:, :, ::-1]))  # OpenCV's order
        return [text for _, text, _ in lines or []]

    return read


def words_of(lines: Sequence[str]) -> list[str]:
    """Return the words of lines of text: letters and digits, two or more, in lower case.

    Single signs are found in any drawing.

    >>> words_of(["An OWL, an oak", "7"])
    ['an', 'owl', 'an', 'oak']
    """
    return [word for line in lines for word in _tokens(line) if len(word) > 1]


def n_kept(words: Sequence[str], lines: Sequence[str]) -> int:
    """Return how many words stand in other lines too, each place counted once.

    What no word of a line matches is looked for across its spaces: between the same words the
    recogniser sees a space or none as it happens.

    >>> n_kept(["the", "snowy", "owl", "owl"], ["Thesnowy 0wl", "o wl"])
    3
    """
    missing = Counter(words)
    rest: list[str] = []
    for line in lines:
        for token in re.findall(r"\w+|\S", line.lower()):
            found = missing[token] > 0
            missing[token] -= found
            is_sign = re.match(r"\W", token) is not None
            rest.append("\n" if found or is_sign else token)
        rest.append("\n")
    text = "".join(rest)
    for word in sorted(missing.elements(), key=len, reverse=True):  # "in" must not use up "inn"
        if word in text:
            missing[word] -= 1
            text = text.replace(word, "\n", 1)
    return len(words) - missing.total()


def _tokens(line: str) -> list[str]:
    return re.findall(r"\w+", line.lower())
