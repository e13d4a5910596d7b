"""Choosing the prompts of samples from the documents of a run.

A prompt whose image does not open, or that leaves too few tokens for its sample, is left out and
counted. :mod:`pardalis.pipeline.samples` generates the samples.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from pardalis.bundle import Bundle
from pardalis.documents import Document, Image, Text, open_image
from pardalis.documents.document import is_unicode
from pardalis.errors import DataError
from pardalis.inference import to_document
from pardalis.pipeline.recipe import SampleConfig
from pardalis.progress import bar
from pardalis.seeds import numpy_generator

logger = logging.getLogger(__name__)

T = TypeVar("T")

MIN_TEXT_TOKENS = 2  # one text token and eos


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its caption, in either order in their document."""

    name: str
    caption: str
    image: Path


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of one split, and the images that generated images are compared with."""

    split: str
    images: list[Pair]
    captions: list[Pair]
    titles: list[str]
    gallery: list[Pair]  # of a split without pairs, other images of its documents
    n_captioned: int  # pairs of the split, without those found unreadable
    n_images: int  # the images that the gallery is taken from, in the same way


class _Candidates(NamedTuple):
    pairs: list[Pair]
    titles: list[str]  # first lines of interleaved documents
    others: list[Pair]  # images of documents that are no pairs, by their alt text or first line


def _candidates(documents: Iterable[Document]) -> _Candidates:
    pairs: dict[Path, Pair] = {}
    titles: dict[str, None] = {}
    others: dict[Path, Pair] = {}
    for document in documents:
        match document.segments:
            case (Text(text=caption), Image(source=Path() as path)) | (
                Image(source=Path() as path),
                Text(text=caption),
            ):
                pairs.setdefault(path, Pair(document.name, caption, path))
                continue
            case (Text(text=text), *rest) if any(isinstance(s, Image) for s in rest):
                title = "".join(text.partition("\n")[:2])
                if title.strip():
                    titles.setdefault(title)
        for image in document.images:
            if isinstance(image.source, Path):
                label = image.alt or document.text.strip().partition("\n")[0] or document.name
                others.setdefault(image.source, Pair(document.name, label, image.source))
    return _Candidates(list(pairs.values()), list(titles), list(others.values()))


class Chooser:
    """Chooses prompts at random among those that the model can complete.

    It checks candidates only until it has enough prompts, so it neither encodes nor opens all of a
    large source. It counts the candidates that it rejects.
    """

    def __init__(self, bundle: Bundle, config: SampleConfig) -> None:
        self.codec, self.context = bundle.codec, bundle.model.config.context
        self.config = config
        self.readable: set[Path] = set()
        self.unreadable: set[Path] = set()
        self.too_long = Counter[str]()  # by what was to be generated
        self.first_reason = ""

    def choose(self, split: str, documents: Iterable[Document]) -> Prompts:
        config = self.config
        pairs, titles, others = _candidates(documents)
        images = self._take(
            pairs,
            config.images,
            f"draw {split}",
            lambda pair: self._image_fits(pair) and self._opens(pair.image),
        )
        captions = self._take(
            pairs,
            config.captions,
            f"caption {split}",
            lambda pair: self._caption_fits(pair) and self._opens(pair.image),
        )
        titles = self._take(titles, config.pages, f"pages {split}", self._page_fits)
        known = pairs or others
        gallery = self._gallery(split, known, [*images, *captions])
        return Prompts(
            split=split,
            images=images,
            captions=captions,
            titles=titles,
            gallery=gallery,
            n_captioned=sum(pair.image not in self.unreadable for pair in pairs),
            n_images=sum(pair.image not in self.unreadable for pair in known),
        )

    def warn(self) -> None:
        """Log what was left out, if anything was."""
        if self.first_reason:
            logger.warning(
                "Left out of the samples: %d unreadable, %d too long; the first: %s",
                len(self.unreadable),
                self.too_long.total(),
                self.first_reason,
            )

    def _take(
        self, items: Sequence[T], n: int, purpose: str, suits: Callable[[T], bool]
    ) -> list[T]:
        shuffled = (items[i] for i in self._order(len(items), purpose))
        return list(islice(filter(suits, shuffled), n))

    def _gallery(self, split: str, pairs: Sequence[Pair], originals: Sequence[Pair]) -> list[Pair]:
        """Return the originals and other pairs up to the limit, in the order of the source."""
        chosen = {pair.image for pair in originals}
        n = min(max(self.config.gallery, len(chosen)), len(pairs))
        with bar(f"Opening images ({split})", total=n, unit="images", done=len(chosen)) as add:
            for i in self._order(len(pairs), f"gallery {split}"):
                if len(chosen) >= n:
                    break
                image = pairs[i].image
                if image not in chosen and self._opens(image):
                    chosen.add(image)
                    add()
        return [pair for pair in pairs if pair.image in chosen]

    def _order(self, n: int, purpose: str) -> list[int]:
        return numpy_generator(self.config.seed, purpose).permutation(n).tolist()

    def _image_fits(self, pair: Pair) -> bool:
        n_prompt = self._n_tokens(pair.caption)
        return self._fits("images", n_prompt, self.codec.grammar.tokens_per_image, pair.name)

    def _caption_fits(self, pair: Pair) -> bool:
        n_prompt = 1 + self.codec.grammar.tokens_per_image  # bos and the image
        return self._fits("captions", n_prompt, MIN_TEXT_TOKENS, pair.name)

    def _page_fits(self, title: str) -> bool:
        return self._fits("pages", self._n_tokens(title), MIN_TEXT_TOKENS, f"{title[:40]!r}")

    def _n_tokens(self, text: str) -> int:
        return len(self.codec.encode_prompt(to_document(text)))

    def _fits(self, kind: str, n_prompt: int, n_completion: int, what: str) -> bool:
        if n_prompt + n_completion <= self.context:
            return True
        self.too_long[kind] += 1
        self.first_reason = self.first_reason or (
            f"{what} is a prompt of {n_prompt} tokens whose sample needs {n_completion} more, "
            f"which exceeds the model's context of {self.context}."
        )
        return False

    def _opens(self, image: Path) -> bool:
        """Whether an image can be decoded."""
        if image in self.readable:
            return True
        if image in self.unreadable:
            return False
        try:
            _require_unicode(image)
            open_image(image)
        except DataError as error:
            self.unreadable.add(image)
            self.first_reason = self.first_reason or str(error)
            return False
        self.readable.add(image)
        return True


def _require_unicode(image: Path) -> None:
    """Raise DataError for a name that is not UTF-8, which samples.json and a page cannot hold."""
    if not is_unicode(str(image)):
        raise DataError(f"The name {str(image)!a} is not UTF-8; rename the image.")
