"""What questions of all kinds share: their fields, images in them, and wrong choices.

A question is a table of plain fields with ``id``. Those with choices have ``choices``, distinct,
and ``answer``, the number of the right one from 0. Its place is uniformly random, and what is right
is drawn as what is wrong is: of a test each class equally often, and words as often as they occur.
So a model that does not look at the question has the accuracy 1 / n.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
import PIL.Image

from pardalis.corpora.packages import Package

if TYPE_CHECKING:
    from pardalis.corpora.benchmarks.materials import Materials

Split = Literal["test", "train"]
SPLITS: tuple[Split, ...] = ("test", "train")  # train: what few-shot examples are drawn from

N_CHOICES = 4

Question: TypeAlias = dict[str, Any]
"""A question's fields; images are of the class TaskImage, and become paths of files."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TaskImage:
    """An image of a question."""

    path: Path  # relative to the folder of the tasks
    image: PIL.Image.Image


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One task: its name, what it asks, and its questions.

    Attributes:
        ask: yields the questions of a split in random order; so many are taken as are wanted.
        packages: names of those that its questions come from, for the licences.
        choices: how many each question has; 0: it has none.
        optional: a package that is fetched apart, without which the task is left out of all tasks.
    """

    name: str
    about: str
    ask: "Callable[[Materials, Split, np.random.Generator], Iterator[Question]]"
    packages: tuple[str, ...]
    choices: int = N_CHOICES
    optional: Package | None = None


def shuffled(items: Sequence[T], generator: np.random.Generator) -> Iterator[T]:
    """Yield items in random order."""
    return (items[place] for place in generator.permutation(len(items)).tolist())


def balanced(
    items: Sequence[T], class_of: Callable[[T], str], split: Split, generator: np.random.Generator
) -> Iterator[T]:
    """Yield items in random order; of a test each class equally often, until one has no more."""
    if split == "train":
        yield from shuffled(items, generator)
        return
    of_class: dict[str, list[T]] = {}
    for item in shuffled(items, generator):
        of_class.setdefault(class_of(item), []).append(item)
    for some in zip(*of_class.values(), strict=False):
        yield from shuffled(some, generator)


def with_wrong_ones(
    right: T,
    candidates: Sequence[T],
    differs: Callable[[T, T], bool],
    generator: np.random.Generator,
    n: int = N_CHOICES,
) -> tuple[list[T], int] | None:
    """Return n choices in random order, and the place of the right one; None: there are too few.

    Args:
        differs: whether two choices can stand beside each other; asked of all pairs.
    """
    wrong: list[T] = []
    for candidate in shuffled(candidates, generator):
        if len(wrong) == n - 1:
            break
        if all(differs(candidate, other) for other in (right, *wrong)):
            wrong.append(candidate)
    if len(wrong) < n - 1:
        return None
    place = int(generator.integers(n))
    return [*wrong[:place], right, *wrong[place:]], place
