"""Conversations about drawings, by templates, so that the right answer is known exactly.

Besides the files of the drawings, a folder has

    ask.<category>.train.jsonl   a request and its answer
    ask.<category>.cells.jsonl   about concepts in a style that training does not show, in words
                                 that it does not use

for each category of CATEGORIES. A model that has learnt the drawings can be fine-tuned on them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pardalis.corpora.captions import caption, with_article
from pardalis.corpora.drawings.build import (
    Drawings,
    DrawingsConfig,
    StyledImage,
    record_of,
    write_drawings,
)
from pardalis.corpora.drawings.concepts import Concept
from pardalis.documents.document import Image, Role, Segment, Text
from pardalis.documents.writers import write_records
from pardalis.files import atomic_folder
from pardalis.seeds import derive, numpy_generator

_PARTS = {"train": "pairs.train", "cells": "cells"}  # of the drawings, by split
_FLAG = "flag of "
_PLACES = ("first", "second", "third")
_WEAPONS = {
    "atom bomb",
    "axe",
    "bomb",
    "bow and arrow",
    "crossed swords",
    "dagger",
    "kitchen knife",
}
_ONE_IN = 5  # of flags and weapons, which training of the drawings may not show, is held out
_REFUSAL = "I do not draw weapons."


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructionsConfig(DrawingsConfig):
    """What goes into the corpus of conversations about drawings: as for the drawings."""

    kind: Literal["instructions"] = "instructions"  # type: ignore[assignment]

    def build(self, folder: Path) -> None:
        """See :func:`build_instructions`."""
        build_instructions(self, folder)


@dataclass(frozen=True, slots=True)
class _Task:
    """What is asked of which images; a request has "{}" in the place of ``subject``."""

    about: tuple[StyledImage, ...]
    shown: tuple[StyledImage, ...]  # in the request, before its text
    subject: str
    answer: tuple[Segment, ...]


_Tasks = Callable[["_Corpus", Sequence[StyledImage], np.random.Generator], Iterator[_Task]]


@dataclass(frozen=True, slots=True)
class Category:
    """One kind of request."""

    name: str
    tasks: _Tasks
    requests: tuple[str, ...]  # the last is for held-out conversations alone
    # About few images, which training of the drawings need not show: each is asked in all wordings.
    is_rare: bool = False

    def requests_of(self, split: str, generator: np.random.Generator) -> tuple[str, ...]:
        """Return the wordings in which one task of a split is asked."""
        *known, new = self.requests
        if split != "train":
            return (new,)
        return tuple(known) if self.is_rare else (known[generator.integers(len(known))],)


def build_instructions(config: InstructionsConfig, folder: Path) -> dict[str, Any]:
    """Write the drawings and the conversations, replacing the folder; return how many of each.

    The same config gives the same bytes.

    Raises:
        ConfigError, DataError: as :func:`~pardalis.corpora.drawings.build.build_drawings`.
    """
    with atomic_folder(folder) as partial:
        drawings = write_drawings(config, partial)
        corpus, counts = _Corpus(drawings, config.variants), drawings.counts
        for category in CATEGORIES:
            for split in _PARTS:
                generator = numpy_generator(0, "instructions", category.name, split)
                images = corpus.rare[split] if category.is_rare else corpus.common[split]
                tasks = category.tasks(corpus, images, generator)
                records = [
                    _record(category.name, request, corpus.with_variants(task, generator))
                    for task in tasks
                    for request in category.requests_of(split, generator)
                ]
                write_records(records, partial / f"ask.{category.name}.{split}.jsonl")
                counts[f"ask.{category.name}.{split}"] = len(records)
    return counts


def _record(category: str, request: str, task: _Task) -> dict[str, Any]:
    asked: list[Segment] = [*map(_image, task.shown), Text(request.format(task.subject))]
    segments = [*_turn("user", asked), *_turn("assistant", task.answer)]
    return record_of(f"ask.{category}", task.about, segments)


def _turn(role: Role, segments: Sequence[Segment]) -> list[Segment]:
    return [replace(segment, role=role) for segment in segments]


def _image(image: StyledImage) -> Image:
    return Image(image.path, alt=_caption(image))


def _caption(image: StyledImage) -> str:
    return caption(image.style.phrase, image.concept.name)


def _is_weapon(concept: Concept) -> bool:
    return concept.name in _WEAPONS


class _Corpus:
    """The images that conversations are about, by split."""

    def __init__(self, drawings: Drawings, variants: int) -> None:
        self.variants = variants
        self.common = {split: drawings.parts[part] for split, part in _PARTS.items()}
        self.redraws = [*drawings.redraws["redraws.train"], *drawings.redraws["redraws.cells"]]
        self.rare: dict[str, list[StyledImage]] = {split: [] for split in _PARTS}
        for image in (image for images in drawings.parts.values() for image in images):
            place = derive(0, "instructions", image.concept.key, image.style.name)
            self.rare["train" if place % _ONE_IN else "cells"].append(image)
        self.known: dict[Concept, list[StyledImage]] = {}  # what training shows of a concept
        self._train = set(self.common["train"])
        for image in self.common["train"]:
            self.known.setdefault(image.concept, []).append(image)

    def with_variants(self, task: _Task, generator: np.random.Generator) -> _Task:
        """Return a task that shows variants of the images that have some, at random."""
        numbers = generator.integers(self.variants + 1, size=len(task.shown)).tolist()
        shown = (
            replace(image, variant=number) if image in self._train else image
            for image, number in zip(task.shown, numbers, strict=True)
        )
        return replace(task, shown=tuple(shown))

    def another(self, image: StyledImage, generator: np.random.Generator) -> StyledImage:
        """Return an image of training of another concept."""
        train = self.common["train"]
        while True:
            other = train[generator.integers(len(train))]
            if other.concept != image.concept:
                return other

    def in_another_style(
        self, image: StyledImage, generator: np.random.Generator
    ) -> StyledImage | None:
        """Return an image of training of the same concept."""
        others = [each for each in self.known.get(image.concept, ()) if each != image]
        return others[generator.integers(len(others))] if others else None


# ── categories ───────────────────────────────────────────────────────────────────────────────────


def _draw(
    corpus: _Corpus, images: Sequence[StyledImage], generator: np.random.Generator
) -> Iterator[_Task]:
    for image in images:
        if not _is_weapon(image.concept):
            yield _Task((image,), (), _caption(image), (_image(image),))


def _name(
    corpus: _Corpus, images: Sequence[StyledImage], generator: np.random.Generator
) -> Iterator[_Task]:
    for image in images:
        yield _Task((image,), (image,), "", (Text(with_article(image.concept.name)),))


def _style(
    corpus: _Corpus, images: Sequence[StyledImage], generator: np.random.Generator
) -> Iterator[_Task]:
    for image in images:
        yield _Task((image,), (image,), "", (Text(image.style.phrase),))


def _yes_or_no(
    corpus: _Corpus, images: Sequence[StyledImage], generator: np.random.Generator
) -> Iterator[_Task]:
    for image in images:
        is_right = bool(generator.integers(2))
        concept = image.concept if is_right else corpus.another(image, generator).concept
        answer = Text("Yes." if is_right else "No.")
        yield _Task((image,), (image,), with_article(concept.name), (answer,))


def _odd_one_out(
    corpus: _Corpus, images: Sequence[StyledImage], generator: np.random.Generator
) -> Iterator[_Task]:
    for image in images:
        alike = corpus.in_another_style(image, generator)
        if alike is None:
            continue
        odd = corpus.another(image, generator)
        place = int(generator.integers(3))
        shown = [image, alike]
        shown.insert(place, odd)
        yield _Task((image,), tuple(shown), "", (Text(f"The {_PLACES[place]}."),))


def _redraw(
    corpus: _Corpus, images: Sequence[StyledImage], generator: np.random.Generator
) -> Iterator[_Task]:
    wanted = set(images)
    for before, after in corpus.redraws:
        if after in wanted and not _is_weapon(after.concept):
            yield _Task((before, after), (before,), after.style.phrase, (_image(after),))


def _flag(
    corpus: _Corpus, images: Sequence[StyledImage], generator: np.random.Generator
) -> Iterator[_Task]:
    for image in images:
        name = image.concept.name
        if name.startswith(_FLAG):
            yield _Task((image,), (image,), "", (Text(name.removeprefix(_FLAG)),))


def _page(
    corpus: _Corpus, images: Sequence[StyledImage], generator: np.random.Generator
) -> Iterator[_Task]:
    for image in images:
        other = corpus.in_another_style(image, generator)
        if other is None or _is_weapon(image.concept):
            continue
        answer = [part for each in (other, image) for part in (Text(_caption(each)), _image(each))]
        yield _Task((image, other), (), with_article(image.concept.name), tuple(answer))


def _refuse(
    corpus: _Corpus, images: Sequence[StyledImage], generator: np.random.Generator
) -> Iterator[_Task]:
    for image in images:
        if _is_weapon(image.concept):
            yield _Task((image,), (), _caption(image), (Text(_REFUSAL),))


# fmt: off
_DRAW = (
    "Show me {}.", "Please make {}.", "I need {}.", "Can I have {}?", "Make {} for me.",
    "Could you make {}?", "Can you show me {}?", "Let me see {}.", "Give me {}.",
    "I want to see {}.",
    "Could you show me {}?",
)
CATEGORIES = (
    Category("draw", _draw, _DRAW),
    Category("name", _name, (
        "What is this?", "What do you see?", "Name this.", "What does this show?",
        "Tell me what this is.",
    )),
    Category("style", _style, (
        "What kind of image is this?", "How is this drawn?", "Name the style.",
        "In which style is this?", "What is the style of this?",
    )),
    Category("yes_or_no", _yes_or_no, (
        "Is this {}?", "Does this show {}?", "Do you see {}?", "Is {} in this?",
    )),
    Category("odd_one_out", _odd_one_out, (
        "Which is different?", "Which does not belong here?", "Find the odd one out.",
        "Which one is different?",
    )),
    Category("redraw", _redraw, (
        "Make this {}.", "Redraw this as {}.", "Show me this as {}.", "Please redraw this as {}.",
    )),
    Category("flag", _flag, (
        "Whose flag is this?", "Which country has this flag?", "Name the country.",
        "Which country is this?",
    ), is_rare=True),
    Category("page", _page, (
        "Show me {} in two styles.", "Make a page with {}.", "Two images of {}, please.",
        "Please show me {} in two styles.",
    )),
    Category("refuse", _refuse, _DRAW, is_rare=True),
)
