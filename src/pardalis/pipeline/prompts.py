"""Choosing what a trained model is asked, from the sources themselves.

What cannot be asked, because an image does not open or a prompt leaves no room for its sample, is
left out and counted. Asking is :mod:`pardalis.pipeline.samples`.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from pardalis.bundle import Bundle
from pardalis.documents import Document, Image, Text, open_image
from pardalis.errors import DataError
from pardalis.inference import as_document
from pardalis.pipeline.recipe import SampleConfig
from pardalis.progress import bar
from pardalis.seeds import numpy_generator

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LEAST_TEXT = 2  # ids of the shortest text worth asking for: one piece and eos


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its caption, in whichever order its document has them."""

    name: str
    caption: str
    image: Path


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is asked of one split, and the images that generated ones are compared with."""

    split: str
    images: list[Pair]
    captions: list[Pair]
    titles: list[str]
    gallery: list[Pair]
    n_captioned: int  # pairs of the split, but for those found unreadable


def _sort_out(documents: Iterable[Document]) -> tuple[list[Pair], list[str]]:
    """Find the pairs, and the first lines of the longer interleaved documents."""
    pairs: dict[Path, Pair] = {}
    titles: dict[str, None] = {}
    for document in documents:
        match document.segments:
            case (Text(text=caption), Image(source=Path() as path)) | (
                Image(source=Path() as path),
                Text(text=caption),
            ):
                pairs.setdefault(path, Pair(document.name, caption, path))
            case (Text(text=text), *rest) if any(isinstance(s, Image) for s in rest):
                title = "".join(text.partition("\n")[:2])
                if title.strip():
                    titles.setdefault(title)
    return list(pairs.values()), list(titles)


class Chooser:
    """Chooses at random what is asked, among what can be.

    It looks only at as much as that takes, so that a large source is neither encoded nor opened as
    a whole; what it came upon and could not use it counts.
    """

    def __init__(self, bundle: Bundle, config: SampleConfig) -> None:
        self.codec, self.context = bundle.codec, bundle.model.config.context
        self.config = config
        self.readable: set[Path] = set()
        self.unreadable: set[Path] = set()
        self.n_too_long = 0
        self.first_reason = ""

    def choose(self, split: str, documents: Iterable[Document]) -> Prompts:
        config = self.config
        pairs, titles = _sort_out(documents)
        images = self._take(
            pairs,
            config.images,
            f"draw {split}",
            lambda pair: self._can_be_drawn(pair) and self._opens(pair.image),
        )
        captions = self._take(
            pairs,
            config.captions,
            f"caption {split}",
            lambda pair: self._can_be_captioned(pair) and self._opens(pair.image),
        )
        return Prompts(
            split=split,
            images=images,
            captions=captions,
            titles=self._take(titles, config.pages, f"pages {split}", self._can_be_continued),
            gallery=self._gallery(split, pairs, [*images, *captions]),
            n_captioned=sum(pair.image not in self.unreadable for pair in pairs),
        )

    def warn(self) -> None:
        """Log what was left out, if anything was."""
        if self.first_reason:
            logger.warning(
                "Left out of the samples: %d unreadable, %d too long; the first: %s",
                len(self.unreadable),
                self.n_too_long,
                self.first_reason,
            )

    def _take(
        self, items: Sequence[T], n: int, purpose: str, suits: Callable[[T], bool]
    ) -> list[T]:
        shuffled = (items[i] for i in self._order(len(items), purpose))
        return list(islice(filter(suits, shuffled), n))

    def _gallery(self, split: str, pairs: Sequence[Pair], originals: Sequence[Pair]) -> list[Pair]:
        """Choose the originals and others up to the limit; they stay in the order of the source."""
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

    def _can_be_drawn(self, pair: Pair) -> bool:
        return self._fits(
            self._text_ids(pair.caption), self.codec.grammar.tokens_per_image, pair.name
        )

    def _can_be_captioned(self, pair: Pair) -> bool:
        return self._fits(
            1 + self.codec.grammar.tokens_per_image, _LEAST_TEXT, pair.name
        )  # 1 for bos

    def _can_be_continued(self, title: str) -> bool:
        return self._fits(self._text_ids(title), _LEAST_TEXT, f"{title[:40]!r}")

    def _text_ids(self, text: str) -> int:
        return len(self.codec.encode_prompt(as_document(text)))

    def _fits(self, prompt_ids: int, answer_ids: int, what: str) -> bool:
        if prompt_ids + answer_ids <= self.context:
            return True
        self.n_too_long += 1
        self.first_reason = self.first_reason or (
            f"{what} is a prompt of {prompt_ids} ids, whose sample needs {answer_ids}; together "
            f"they exceed the model's context of {self.context}."
        )
        return False

    def _opens(self, image: Path) -> bool:
        """Tell whether an image can be read; nothing of it is kept."""
        if image in self.readable:
            return True
        if image in self.unreadable:
            return False
        try:
            open_image(image)
        except DataError as error:
            self.unreadable.add(image)
            self.first_reason = self.first_reason or str(error)
            return False
        self.readable.add(image)
        return True
