"""Contamination: which items of a task stand in the documents that a model was trained on.

**Texts.** A text is cut into words: runs of letters and digits in compatibility form (NFKC) without
case; each Han character and kana is a word of its own. An n-gram is n words that follow each other,
13 as in GPT-3 (Brown et al. 2020, appendix C). An item has the n-grams of all texts in its fields.
One that has none, because its texts are short, has its longest text as one n-gram, if that has at
least 8 words; with fewer it is not judged. Overlap is exact: hashes only find candidates. In a
document all texts count as one, images between them left out.

**Images.** An image has a difference hash: in grey at 9 x 8 pixels, one bit for each pixel that is
darker than its right neighbour (Krawetz 2013, "Kind of like that"). An image was seen if training
has one whose hash differs in at most 4 of the 64 bits, and whose 8 x 8 pixels in RGB differ by at
most 12 of 255 levels on average. The second condition keeps apart what has the same outlines in
other colours, such as flags. So copies in another size or quality are found, but no crops.

An item is contaminated if training has one of its n-grams or one of its images. Only the documents
are streamed: what is kept in memory are the n-grams and the hashes of the items.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from pardalis.config import check_at_least
from pardalis.documents import Document, Image, Text, open_image
from pardalis.documents.likeness import (
    difference_hash,
    gram_hashes,
    hashed_words,
    thumbnail,
    words_of,
)
from pardalis.errors import DataError
from pardalis.evaluate.tasks.items import Item
from pardalis.progress import bar


@dataclass(frozen=True, kw_only=True, slots=True)
class ContaminationConfig:
    """What counts as seen.

    Raises:
        ConfigError: a number is too small.
    """

    n: int = 13  # words of an n-gram
    fewest: int = 8  # words of an item's longest text, where it has no n-gram
    bits: int = 4  # by which the difference hashes of an image may differ, of 64
    levels: float = 12.0  # by which its pixels may differ, mean over 8 x 8 RGB values

    def __post_init__(self) -> None:
        check_at_least(self, n=1, fewest=1, bits=0, levels=0)


@dataclass(frozen=True, slots=True)
class TrainingDocuments:
    """The documents that a model was trained on.

    Attributes:
        name: what a page calls them, such as the folder of a run.
        documents: read once.
        total: how many there are, for progress.
    """

    name: str
    documents: Iterable[Document]
    total: int


@dataclass(slots=True)
class Overlap:
    """What of an item stands in training.

    Attributes:
        grams, seen: its distinct n-grams, and how many of them were seen.
        images, images_seen: the same of its images that can be read.
        document: the name of the first document that has something of it.
    """

    grams: int = 0
    seen: int = 0
    images: int = 0
    images_seen: int = 0
    document: str = ""

    @property
    def group(self) -> Literal["clean", "contaminated", "not_judged"]:
        """What the item is; one with neither n-grams nor images is not judged."""
        if self.seen or self.images_seen:
            return "contaminated"
        return "clean" if self.grams or self.images else "not_judged"


@dataclass(frozen=True, slots=True)
class Contamination:
    """What of the items of one task stands in training.

    Attributes:
        training: what the documents are called.
        documents: how many there are.
        overlaps: of the items, by their ids.
    """

    training: str
    documents: int
    overlaps: dict[str, Overlap]


def find_overlaps(
    items: Sequence[Item],
    training: TrainingDocuments,
    config: ContaminationConfig | None = None,
) -> list[Overlap]:
    """Return what of each item stands in training documents, which are read once.

    Images of documents that cannot be read are left out, as training leaves them out.
    """
    config = config or ContaminationConfig()
    overlaps = [Overlap() for _ in items]
    texts, images = _Grams(items, overlaps, config), _Images(items, overlaps, config)
    with bar("contamination", training.total, "documents") as advance:
        for document in training.documents:
            texts.look_in(document)
            images.look_in(document)
            advance()
    return overlaps


class _Grams:
    """The n-grams of items that were not seen yet."""

    def __init__(
        self, items: Sequence[Item], overlaps: Sequence[Overlap], config: ContaminationConfig
    ) -> None:
        self._overlaps = overlaps
        self._of: dict[tuple[str, ...], list[int]] = {}  # the items that have an n-gram
        for number, item in enumerate(items):
            grams = _grams_of(item, config)
            overlaps[number].grams = len(grams)
            for gram in grams:
                self._of.setdefault(gram, []).append(number)
        by_length: dict[int, list[tuple[str, ...]]] = {}
        for gram in self._of:
            by_length.setdefault(len(gram), []).append(gram)
        self._hashes = {
            n: np.unique(np.concatenate([gram_hashes(hashed_words(gram), n) for gram in grams]))
            for n, grams in by_length.items()
        }

    def look_in(self, document: Document) -> None:
        if not self._of:
            return
        words = words_of(
            " ".join(part.text for part in document.segments if isinstance(part, Text))
        )
        hashed = hashed_words(words)
        for n, known in self._hashes.items():
            hashes = gram_hashes(hashed, n)
            places = np.searchsorted(known, hashes).clip(max=len(known) - 1)
            for start in np.flatnonzero(known[places] == hashes).tolist():
                for number in self._of.pop(tuple(words[start : start + n]), ()):
                    overlap = self._overlaps[number]
                    overlap.seen += 1
                    overlap.document = overlap.document or document.name


class _Images:
    """The images of items."""

    def __init__(
        self, items: Sequence[Item], overlaps: Sequence[Overlap], config: ContaminationConfig
    ) -> None:
        self._overlaps, self._config = overlaps, config
        found = [
            (number, *looks)
            for number, item in enumerate(items)
            for image in item.images
            if (looks := _looks_of(image)) is not None
        ]
        self._of = [number for number, _, _ in found]
        self._hashes = np.array([value for _, value, _ in found], dtype=np.uint64)
        self._pixels = np.array([pixels for _, _, pixels in found], dtype=np.int16)
        self._unseen = np.ones(len(found), dtype=bool)
        for number in self._of:
            overlaps[number].images += 1

    def look_in(self, document: Document) -> None:
        if not self._unseen.any():
            return
        for image in document.images:
            if (looks := _looks_of(image)) is None:
                continue
            value, pixels = looks
            differ = np.bitwise_count(self._hashes ^ np.uint64(value))
            near = np.flatnonzero(self._unseen & (differ <= self._config.bits))
            levels = np.abs(self._pixels[near] - pixels.astype(np.int16)).mean(axis=(1, 2, 3))
            for place in near[levels <= self._config.levels].tolist():
                self._unseen[place] = False
                overlap = self._overlaps[self._of[place]]
                overlap.images_seen += 1
                overlap.document = overlap.document or document.name


def _grams_of(item: Item, config: ContaminationConfig) -> set[tuple[str, ...]]:
    texts = [words_of(text) for text in _texts(item.fields)]
    n = config.n
    grams = {tuple(words[i : i + n]) for words in texts for i in range(len(words) - n + 1)}
    longest = max(texts, key=len, default=[])
    return grams or ({tuple(longest)} if len(longest) >= config.fewest else set())


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in a field of an item."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Text):
        yield value.text
    elif isinstance(value, Document):
        yield " ".join(part.text for part in value.segments if isinstance(part, Text))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _looks_of(image: Image) -> tuple[int, UInt8[np.ndarray, "8 8 3"]] | None:
    """Return the hash and the thumbnail of an image; None if it cannot be read."""
    try:
        opened = open_image(image.source)
    except DataError:
        return None
    return difference_hash(opened), thumbnail(opened)
