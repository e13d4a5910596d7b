"""What near copies of texts and images have in common: hashes of n-grams of words, and of looks.

**Words** are runs of letters and digits in compatibility form (NFKC) without case; each Han
character and kana is a word of its own.

The **difference hash** of an image has one bit for each pixel that is darker than its right
neighbour, in grey at 9 x 8 pixels (Krawetz 2013, "Kind of like that"). It stays nearly the same in
another size or quality. A **thumbnail** of 8 x 8 pixels in RGB keeps apart what has the same
outlines in other colours, such as flags.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import PIL.Image
from jaxtyping import UInt8, UInt64

_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_ALONE}]|[^\\W_{_ALONE}]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word is lost modulo 2^64
_HASH_SIDES, _SIDE = (9, 8), 8  # pixels


def words_of(text: str) -> list[str]:
    """Return the words of a text in their order, normalised."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def difference_hash(image: PIL.Image.Image) -> int:
    """Return the difference hash of an image, 64 bits."""
    grey = np.asarray(image.convert("L").resize(_HASH_SIDES, PIL.Image.Resampling.BOX))
    return int.from_bytes(np.packbits(grey[:, :-1] < grey[:, 1:]).tobytes(), "big")


def thumbnail(image: PIL.Image.Image) -> UInt8[np.ndarray, "8 8 3"]:
    """Return an image at 8 x 8 pixels in RGB."""
    return np.asarray(image.convert("RGB").resize((_SIDE, _SIDE), PIL.Image.Resampling.BOX))


@lru_cache(maxsize=1 << 18)
def _hash(word: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest(), "big"
    )


def hashed_words(words: Sequence[str]) -> UInt64[np.ndarray, " words"]:
    return np.array([_hash(word) for word in words], dtype=np.uint64)


def gram_hashes(words: UInt64[np.ndarray, " words"], n: int) -> UInt64[np.ndarray, " grams"]:
    """Return a hash of each n-gram: a polynomial in the hashes of its words, modulo 2^64."""
    n_grams = max(0, len(words) - n + 1)
    found = np.zeros(n_grams, dtype=np.uint64)
    for offset in range(n):
        found = found * _BASE + words[offset : offset + n_grams]
    return found
