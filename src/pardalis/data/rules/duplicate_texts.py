"""Rule ``duplicate_texts``: documents whose text was seen before, nearly or wholly."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt64

from pardalis.config import check_at_least
from pardalis.data.rules.names import Names
from pardalis.data.rules.rule import Others, Removal
from pardalis.data.rules.seen import Seen
from pardalis.documents import Document
from pardalis.documents.likeness import gram_hashes, hashed_words, words_of
from pardalis.seeds import numpy_generator

_MOST_HASHES = 1 << 20  # at once
_ONE, _TWO = np.uint64(1), np.uint64(2)


@dataclass(frozen=True, kw_only=True, slots=True)
class DuplicateTexts:
    """Removes all but the first of documents with the same or nearly the same text.

    Texts are the same if their words are. They are nearly the same if they share a band of MinHash
    (Broder 1997) of their n-grams of words: with the defaults, those of FineWeb (arXiv 2406.17557,
    section 3.4), pairs with a Jaccard similarity of 0.75 are found with a probability of 77 %, of
    0.8 with 92 % and of 0.5 with 5 %. Documents without words are kept. Images are not compared:
    captions may be the same, so leave this rule out of captioned images.
    """

    kind: Literal["duplicate_texts"] = "duplicate_texts"
    near: bool = True  # False: only texts of the same words
    ngram: int = 5  # words
    bands: int = 14
    rows: int = 8  # hashes of a band
    against: tuple[Others, ...] = ()  # documents whose texts count as seen

    def __post_init__(self) -> None:
        check_at_least(self, ngram=1, bands=1, rows=1)

    def begin(self) -> "_Texts":
        return _Texts(self)


class _Texts:
    def __init__(self, rule: DuplicateTexts) -> None:
        self._rule = rule
        draw = numpy_generator(0)
        size = rule.bands * rule.rows
        # Odd factors and any summands: a bijection of 64 bits each, mixed further below.
        self._factors = draw.integers(0, 2**63, size, dtype=np.uint64) * _TWO + _ONE
        self._summands = draw.integers(0, 2**63, size, dtype=np.uint64)
        self._mixed = draw.integers(0, 2**63, rule.rows, dtype=np.uint64) * _TWO + _ONE
        self._seen, self._names = Seen(), Names()
        for others in rule.against:
            for document in others.documents():
                self._first(document, f"{document.name} of {others.path.name}")

    def removal(self, document: Document) -> Removal | None:
        found = self._first(document, document.name)
        if found is None:
            return None
        how, first = found
        return Removal(f"The text is {how} that of {self._names[first]}.")

    def _first(self, document: Document, name: str) -> tuple[str, int] | None:
        """Return how a text is like one that was seen, and the number of that one."""
        words = words_of(document.text)
        if not words:
            return None
        number = self._names.add(name)
        exact = hashlib.blake2b(
            " ".join(words).encode(errors="surrogatepass"), digest_size=8
        ).digest()
        if (first := self._seen.first(int.from_bytes(exact, "big"), number)) is not None:
            return "the same as", first
        if not self._rule.near:
            return None
        found = [self._seen.first(band, number) for band in self._bands(words)]
        firsts = [first for first in found if first is not None and first != number]
        return ("nearly the same as", min(firsts)) if firsts else None

    def _bands(self, words: list[str]) -> list[int]:
        """Return a hash for each band of the MinHash signature of a text."""
        rule = self._rule
        hashes = np.unique(gram_hashes(hashed_words(words), min(rule.ngram, len(words))))
        step = max(1, _MOST_HASHES // len(self._factors))
        least = np.full(len(self._factors), 2**64 - 1, dtype=np.uint64)
        for start in range(0, len(hashes), step):
            permuted = hashes[start : start + step, None] * self._factors + self._summands
            permuted ^= permuted >> np.uint64(32)
            permuted *= self._factors
            np.minimum(least, permuted.min(0), out=least)
        signature: UInt64[np.ndarray, "bands rows"] = least.reshape(rule.bands, rule.rows)
        bands = (signature * self._mixed).sum(1, dtype=np.uint64)
        bands ^= bands >> np.uint64(29)
        bands += np.arange(1, rule.bands + 1, dtype=np.uint64) * self._mixed[0]
        return [int(band) for band in bands]
