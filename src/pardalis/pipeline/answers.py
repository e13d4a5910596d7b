"""Asking a trained model: pictures for captions, captions for pictures, pages from a first line.

Prompts are taken from the sources themselves, those it learnt and those it never saw, so that the
report can put what the model made beside what there was. What cannot be asked, because a picture
does not open or a prompt leaves no room for its answer, is left out and counted.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from pardalis.bundle import Bundle
from pardalis.documents import Document, Picture, Text, open_picture
from pardalis.errors import DataError
from pardalis.files import atomic_folder, write_json
from pardalis.inference import Mode, Prompt, as_document, generate_many
from pardalis.pipeline.recipe import AnswerConfig
from pardalis.progress import bar
from pardalis.seeds import numpy_generator

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LEAST_TEXT = 2  # ids of the shortest text worth asking for: one piece and eos


@dataclass(frozen=True, slots=True)
class _Pair:
    """A picture and its caption, in whichever order its document has them."""

    name: str
    caption: str
    picture: Path


@dataclass(frozen=True, slots=True)
class _Prompts:
    """What is asked of one split, and the pictures that drawings are compared with."""

    split: str
    drawings: list[_Pair]
    captions: list[_Pair]
    titles: list[str]
    gallery: list[_Pair]
    n_captioned: int  # pairs of the split, but for those found unreadable


def write_answers(
    bundle: Bundle, documents: Mapping[str, Iterable[Document]], config: AnswerConfig, run: Path
) -> None:
    """Answer prompts of each split and write ``answers/answers.json`` with the pictures beside it.

    Args:
        documents: by split, ``train`` and ``heldout``; read once, from beginning to end.
        run: run folder; pictures of the corpus are named relative to it.
    """
    chooser = _Chooser(bundle, config)
    prompts = [chooser.choose(split, items) for split, items in documents.items()]
    chooser.warn()
    asker = _Asker(bundle, config)
    with atomic_folder(run / "answers") as folder:
        start = monotonic()
        drawings = [d for some in prompts for d in asker.draw(some, folder, run)]
        drawing_s = monotonic() - start
        answers = {
            "pictures": drawings,
            "captions": [c for some in prompts for c in asker.caption(some, run)],
            "pages": [p for some in prompts for p in asker.write_pages(some, folder)],
            "gallery": [
                {
                    "name": pair.name,
                    "caption": pair.caption,
                    "split": some.split,
                    "picture": _relative(pair.picture, run),
                }
                for some in prompts
                for pair in some.gallery
            ],
            "captioned": {some.split: some.n_captioned for some in prompts},
            "left_out": {"unreadable": len(chooser.unreadable), "too_long": chooser.n_too_long},
            "seconds": monotonic() - start,
            "image_tokens_per_second": len(drawings)
            * bundle.codec.grammar.codes_per_picture
            / max(drawing_s, 1e-9),
        }
        write_json(folder / "answers.json", answers)


# ── choosing ─────────────────────────────────────────────────────────────────────────────────────


def _sort_out(documents: Iterable[Document]) -> tuple[list[_Pair], list[str]]:
    """Find the pairs, and the first lines of the longer interleaved documents."""
    pairs: dict[Path, _Pair] = {}
    titles: dict[str, None] = {}
    for document in documents:
        match document.segments:
            case (Text(text=caption), Picture(source=Path() as path)) | (
                Picture(source=Path() as path),
                Text(text=caption),
            ):
                pairs.setdefault(path, _Pair(document.name, caption, path))
            case (Text(text=text), *rest) if any(isinstance(s, Picture) for s in rest):
                title = "".join(text.partition("\n")[:2])
                if title.strip():
                    titles.setdefault(title)
    return list(pairs.values()), list(titles)


class _Chooser:
    """Chooses at random what is asked, among what can be.

    It looks only at as much as that takes, so that a large source is neither encoded nor opened as
    a whole; what it came upon and could not use it counts.
    """

    def __init__(self, bundle: Bundle, config: AnswerConfig) -> None:
        self.codec, self.context = bundle.codec, bundle.model.config.context
        self.config = config
        self.readable: set[Path] = set()
        self.unreadable: set[Path] = set()
        self.n_too_long = 0
        self.first_reason = ""

    def choose(self, split: str, documents: Iterable[Document]) -> _Prompts:
        config = self.config
        pairs, titles = _sort_out(documents)
        drawings = self._take(
            pairs,
            config.drawings,
            f"draw {split}",
            lambda pair: self._can_be_drawn(pair) and self._opens(pair.picture),
        )
        captions = self._take(
            pairs,
            config.captions,
            f"caption {split}",
            lambda pair: self._can_be_captioned(pair) and self._opens(pair.picture),
        )
        return _Prompts(
            split=split,
            drawings=drawings,
            captions=captions,
            titles=self._take(titles, config.pages, f"pages {split}", self._can_be_continued),
            gallery=self._gallery(split, pairs, [*drawings, *captions]),
            n_captioned=sum(pair.picture not in self.unreadable for pair in pairs),
        )

    def warn(self) -> None:
        """Log what was left out, if anything was."""
        if self.first_reason:
            logger.warning(
                "Left out of the answers: %d unreadable, %d too long; the first: %s",
                len(self.unreadable),
                self.n_too_long,
                self.first_reason,
            )

    def _take(
        self, items: Sequence[T], n: int, purpose: str, suits: Callable[[T], bool]
    ) -> list[T]:
        shuffled = (items[i] for i in self._order(len(items), purpose))
        return list(islice(filter(suits, shuffled), n))

    def _gallery(
        self, split: str, pairs: Sequence[_Pair], originals: Sequence[_Pair]
    ) -> list[_Pair]:
        """Choose the originals and others up to the limit; they stay in the order of the source."""
        chosen = {pair.picture for pair in originals}
        n = min(max(self.config.gallery, len(chosen)), len(pairs))
        with bar(f"Opening pictures ({split})", total=n, unit="pictures", done=len(chosen)) as add:
            for i in self._order(len(pairs), f"gallery {split}"):
                if len(chosen) >= n:
                    break
                picture = pairs[i].picture
                if picture not in chosen and self._opens(picture):
                    chosen.add(picture)
                    add()
        return [pair for pair in pairs if pair.picture in chosen]

    def _order(self, n: int, purpose: str) -> list[int]:
        return numpy_generator(self.config.seed, purpose).permutation(n).tolist()

    def _can_be_drawn(self, pair: _Pair) -> bool:
        return self._fits(self._text_ids(pair.caption), self.codec.grammar.picture_ids, pair.name)

    def _can_be_captioned(self, pair: _Pair) -> bool:
        return self._fits(1 + self.codec.grammar.picture_ids, _LEAST_TEXT, pair.name)  # 1 for bos

    def _can_be_continued(self, title: str) -> bool:
        return self._fits(self._text_ids(title), _LEAST_TEXT, f"{title[:40]!r}")

    def _text_ids(self, text: str) -> int:
        return len(self.codec.encode_prompt(as_document(text)))

    def _fits(self, prompt_ids: int, answer_ids: int, what: str) -> bool:
        if prompt_ids + answer_ids <= self.context:
            return True
        self.n_too_long += 1
        self.first_reason = self.first_reason or (
            f"{what} is a prompt of {prompt_ids} ids, whose answer needs {answer_ids}; together "
            f"they exceed the model's context of {self.context}."
        )
        return False

    def _opens(self, picture: Path) -> bool:
        """Tell whether a picture can be read; nothing of it is kept."""
        if picture in self.readable:
            return True
        if picture in self.unreadable:
            return False
        try:
            open_picture(picture)
        except DataError as error:
            self.unreadable.add(picture)
            self.first_reason = self.first_reason or str(error)
            return False
        self.readable.add(picture)
        return True


# ── asking ───────────────────────────────────────────────────────────────────────────────────────


class _Asker:
    """Asks in batches, so that memory stays bounded, and shows how far it is."""

    def __init__(self, bundle: Bundle, config: AnswerConfig) -> None:
        self.bundle, self.config = bundle, config

    def draw(self, prompts: _Prompts, folder: Path, run: Path) -> list[dict[str, Any]]:
        split, pairs = prompts.split, prompts.drawings
        answers = self._ask(f"Drawing ({split})", [[pair.caption] for pair in pairs], "picture")
        drawn = []
        for number, (pair, answer) in enumerate(zip(pairs, answers, strict=True)):
            path = f"pictures/{split}-{number:04d}.png"
            _save(answer.pictures[0], folder / path)
            drawn.append(
                {
                    "name": pair.name,
                    "prompt": pair.caption,
                    "split": split,
                    "drawn": path,
                    "original": _relative(pair.picture, run),
                }
            )
        return drawn

    def caption(self, prompts: _Prompts, run: Path) -> list[dict[str, Any]]:
        split, pairs = prompts.split, prompts.captions
        pictures = [[pair.picture] for pair in pairs]
        answers = self._ask(
            f"Captioning ({split})", pictures, "text", max_tokens=self.config.caption_tokens
        )
        return [
            {
                "name": pair.name,
                "split": split,
                "picture": _relative(pair.picture, run),
                "caption": answer.text.strip(),
                "expected": pair.caption,
            }
            for pair, answer in zip(pairs, answers, strict=True)
        ]

    def write_pages(self, prompts: _Prompts, folder: Path) -> list[dict[str, Any]]:
        split, titles = prompts.split, prompts.titles
        answers = self._ask(f"Writing pages ({split})", titles, "interleaved")
        pages = []
        for number, (title, answer) in enumerate(zip(titles, answers, strict=True)):
            segments: list[dict[str, str]] = []
            for segment in answer.segments:
                if isinstance(segment, Text):
                    segments.append({"text": segment.text})
                else:
                    path = f"pages/{split}-{number}-{len(segments)}.png"
                    _save(segment, folder / path)
                    segments.append({"picture": path})
            pages.append({"prompt": title, "split": split, "segments": segments})
        return pages

    def _ask(
        self, description: str, prompts: Sequence[Prompt], mode: Mode, max_tokens: int | None = None
    ) -> Iterator[Document]:
        config = self.config
        with bar(description, total=len(prompts), unit="prompts") as advance:
            for start in range(0, len(prompts), config.batch):
                some = prompts[start : start + config.batch]
                yield from generate_many(
                    self.bundle,
                    some,
                    mode=mode,
                    max_tokens=max_tokens,
                    text=config.text,
                    picture=config.picture,
                    guidance=config.guidance,
                    seed=config.seed + start,
                )
                advance(len(some))


def _save(picture: Picture, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    open_picture(picture.source).save(path)


def _relative(path: Path, run: Path) -> str:
    path, run = path.resolve(), run.resolve()
    return str(path.relative_to(run)) if path.is_relative_to(run) else str(path)
