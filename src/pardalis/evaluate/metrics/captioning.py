"""CIDEr-D, BLEU and ROUGE-L of captions, as the COCO caption evaluation computes them.

All take captions as lists of words (:func:`~pardalis.evaluate.metrics.ptb.caption_words`): one
candidate for each image, and any number of references. The numbers are those of pycocoevalcap 1.2,
from which they differ only by rounding; that package needs Java to split words, has 100 MB, and
its BLEU may not be used commercially. METEOR is in :mod:`~pardalis.evaluate.metrics.meteor`.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int

Words: TypeAlias = Sequence[str]
NGram: TypeAlias = tuple[str, ...]

_N = 4  # words of the longest n-grams
_SIGMA = 6.0  # words; CIDEr-D's tolerance of lengths
_BETA = 1.2  # weight of recall in ROUGE-L
_NO_MATCH, _NO_GUESS = 1e-15, 1e-9  # BLEU's counts where there are none


@dataclass(frozen=True, slots=True)
class DocumentFrequencies:
    """In the references of how many images each n-gram of 1 to 4 words occurs."""

    counts: Mapping[NGram, int]
    n_images: int

    @classmethod
    def of(cls, references: Sequence[Sequence[Words]]) -> "DocumentFrequencies":
        """Count the references of images."""
        counts: Counter[NGram] = Counter()
        for captions in references:
            counts.update({ngram for words in captions for ngram in _ngrams(words)})
        return cls(counts, len(references))

    def idf(self, ngram: NGram) -> float:
        """Return ``ln(images / images with it)``; an n-gram of no image counts as that of one."""
        return math.log(self.n_images) - math.log(max(1, self.counts.get(ngram, 0)))


def cider_d(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    frequencies: DocumentFrequencies | None = None,
) -> Float[np.ndarray, " images"]:
    """Return CIDEr-D of each image; the corpus's is their mean (arXiv 1411.5726, section 6).

    ``10/4 Σₙ mean_r exp(-(|c| - |r|)² / 2σ²) · min(gₙ(c), gₙ(r)) · gₙ(r) / |gₙ(c)| |gₙ(r)|``, with
    the vectors ``gₙ`` of the counts of n-grams times their idf, n = 1 to 4, and σ = 6 words.

    Args:
        frequencies: of another corpus. None: those of ``references``; the score of an image then
            depends on which others there are, and that of a single one is 0.

    Raises:
        ValueError: there are not as many candidates as lists of references, or an image has none.
    """
    check_pairs(candidates, references)
    frequencies = frequencies or DocumentFrequencies.of(references)
    scores = np.zeros(len(candidates))
    for i, (words, captions) in enumerate(zip(candidates, references, strict=True)):
        own = _weighted(words, frequencies)
        similarities = []
        for other in captions:
            penalty = math.exp(-((len(words) - len(other)) ** 2) / (2 * _SIGMA**2))
            each = zip(own, _weighted(other, frequencies), strict=True)
            similarities.append(penalty * sum(_clipped_cosine(a, b) for a, b in each) / _N)
        scores[i] = 10 * sum(similarities) / len(similarities)
    return scores


def _weighted(words: Words, frequencies: DocumentFrequencies) -> list[dict[NGram, float]]:
    """Return the counts times the idf of the n-grams of each length."""
    vectors: list[dict[NGram, float]] = [{} for _ in range(_N)]
    for ngram, count in _ngrams(words).items():
        vectors[len(ngram) - 1][ngram] = count * frequencies.idf(ngram)
    return vectors


def _clipped_cosine(a: Mapping[NGram, float], b: Mapping[NGram, float]) -> float:
    norms = math.hypot(*a.values()) * math.hypot(*b.values())
    shared = sum(min(weight, b[ngram]) * b[ngram] for ngram, weight in a.items() if ngram in b)
    return shared / norms if norms else 0.0


@dataclass(frozen=True, slots=True)
class BleuCounts:
    """What BLEU needs of each image; n is 1 to 4.

    Attributes:
        matched: n-grams of the candidate that a reference has too, as often as it does there.
        guessed: n-grams of the candidate.
        length: words of the candidate.
        reference_length: words of the reference whose length is nearest, of two the shorter.
    """

    matched: Int[np.ndarray, "images 4"]
    guessed: Int[np.ndarray, "images 4"]
    length: Int[np.ndarray, " images"]
    reference_length: Int[np.ndarray, " images"]

    @classmethod
    def of(cls, candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> "BleuCounts":
        """Count candidates; raises ValueError as :func:`cider_d`."""
        check_pairs(candidates, references)
        matched = np.zeros((len(candidates), _N), int)
        for i, (words, captions) in enumerate(zip(candidates, references, strict=True)):
            most: Counter[NGram] = Counter()
            for other in captions:
                most |= _ngrams(other)
            for ngram, count in (_ngrams(words) & most).items():
                matched[i, len(ngram) - 1] += count
        lengths = np.array([len(words) for words in candidates], int)
        nearest = [
            min((abs(len(other) - len(words)), len(other)) for other in captions)[1]
            for words, captions in zip(candidates, references, strict=True)
        ]
        guessed = np.maximum(0, lengths[:, None] - np.arange(_N))
        return cls(matched, guessed, lengths, np.array(nearest, int))

    def corpus(self, drawn: Int[np.ndarray, " m"] | None = None) -> Float[np.ndarray, " 4"]:
        """Return BLEU-1 to BLEU-4 of a corpus (Papineni et al. 2002, equation 3).

        ``exp(min(0, 1 - r/c)) (Π_{k≤n} matchedₖ / guessedₖ)^(1/n)``, with all counts and lengths
        summed over images first.

        Args:
            drawn: numbers of the images that count, some of them repeatedly; None: all. For
                :func:`~pardalis.evaluate.metrics.intervals.bootstrap_of`.
        """
        rows = slice(None) if drawn is None else drawn
        summed = (
            counts[rows].sum(0, keepdims=True)
            for counts in (self.matched, self.guessed, self.length, self.reference_length)
        )
        [scores] = _bleu(*summed)
        return scores

    def images(self) -> Float[np.ndarray, "images 4"]:
        """Return BLEU-1 to BLEU-4 of each image by itself, whose mean is not the corpus's."""
        return _bleu(self.matched, self.guessed, self.length, self.reference_length)


def _bleu(
    matched: Int[np.ndarray, "m 4"],
    guessed: Int[np.ndarray, "m 4"],
    length: Int[np.ndarray, " m"],
    reference_length: Int[np.ndarray, " m"],
) -> Float[np.ndarray, "m 4"]:
    precisions = (matched + _NO_MATCH) / (guessed + _NO_GUESS)
    means = precisions.cumprod(1) ** (1 / np.arange(1, _N + 1))
    ratio = (length + _NO_MATCH) / (reference_length + _NO_GUESS)
    with np.errstate(over="ignore"):  # of an empty caption, whose penalty is 0
        penalty = np.exp(np.minimum(0, 1 - 1 / ratio))
    scores: Float[np.ndarray, "m 4"] = means * penalty[:, None]
    return scores


def rouge_l(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]]
) -> Float[np.ndarray, " images"]:
    """Return ROUGE-L of each image; the corpus's is their mean (Lin 2004, section 3).

    ``(1 + β²) P R / (R + β² P)``, β = 1.2, with the longest common subsequence over the words of
    the candidate (P) and of the reference (R). As in the COCO caption evaluation, P and R are the
    best over the references, each by itself.

    Raises:
        ValueError: as :func:`cider_d`.
    """
    check_pairs(candidates, references)
    scores = np.zeros(len(candidates))
    for i, (words, captions) in enumerate(zip(candidates, references, strict=True)):
        shared = [(_longest_common(words, other), len(other)) for other in captions]
        precision = max(n for n, _ in shared) / max(1, len(words))
        recall = max(n / max(1, length) for n, length in shared)
        if precision and recall:
            scores[i] = (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)
    return scores


def _longest_common(a: Words, b: Words) -> int:
    """Return the length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def _ngrams(words: Words) -> Counter[NGram]:
    """Return the counts of all n-grams of 1 to 4 words."""
    return Counter(
        tuple(words[start : start + n])
        for n in range(1, _N + 1)
        for start in range(len(words) - n + 1)
    )


def check_pairs(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> None:
    """Raise ValueError unless each candidate has a list of references that is not empty."""
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates have {len(references)} lists of references")
    if empty := [i for i, captions in enumerate(references) if not captions]:
        raise ValueError(f"image {empty[0]} has no reference")
