"""Word recall by OCR: which words of an image are still legible in its reconstruction.

Chameleon's paper names images with much text as the weakness of its tokenizer (arXiv 2405.09818,
section 2.1). Other scores do not show it: a page of blurred letters has a good PSNR.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import PIL.Image

from pardalis.imports import optional_package

OCR: TypeAlias = Callable[[PIL.Image.Image], list[str]]
"""Returns the lines of text in an image."""


def load_ocr() -> OCR:
    """Load RapidOCR, which reads Latin and Chinese print.

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
    """Return the words of lines of text in lower case: two or more letters or digits.

    Single characters are left out, since OCR finds them in any drawing.

    >>> words_of(["An OWL, an oak", "7"])
    ['an', 'owl', 'an', 'oak']
    """
    return [word for line in lines for word in re.findall(r"\w\w+", line.lower())]


def n_recalled(words: Sequence[str], lines: Sequence[str]) -> int:
    """Return how many words occur in other lines too, each occurrence counted once.

    Words without a match are also searched for across spaces, since OCR does not recognise spaces
    reliably.

    >>> n_recalled(["the", "snowy", "owl", "owl"], ["Thesnowy 0wl", "o wl"])
    3
    """
    missing = Counter(words)
    rest: list[str] = []
    for line in lines:
        for token in re.findall(r"\w+|\S", line.lower()):
            found = missing[token] > 0
            missing[token] -= found
            is_punctuation = re.match(r"\W", token) is not None
            rest.append("\n" if found or is_punctuation else token)
        rest.append("\n")
    text = "".join(rest)
    # Longest first: "in" must not match inside "inn".
    for word in sorted(missing.elements(), key=len, reverse=True):
        if word in text:
            missing[word] -= 1
            text = text.replace(word, "\n", 1)
    return len(words) - missing.total()
