"""Building the folder of tasks.

<task>.test.jsonl            the questions, one a line, with ``id``
<task>.train.jsonl           others, for few-shot examples; they share no image with those
images/                      PNG, RGB on white; paths in the questions begin at the folder
tasks.json                   each task's name, what it asks, chance, counts and packages
LICENCES.json, LICENCES.md   what was taken from which package, under which licence

Questions with choices have ``choices``, which are distinct, and ``answer``, the number of the right
one from 0. The tested emoji, senses and articles are those that the corpora of drawings, prose and
the encyclopedia hold out at their default shares. Flags are divided otherwise: see
:attr:`pardalis.corpora.benchmarks.materials.Country.split`.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pardalis import progress
from pardalis.config import check_at_least, check_at_most
from pardalis.corpora.benchmarks import dictionary, drawings, encyclopedia, flags, scenes, stamps
from pardalis.corpora.benchmarks.materials import Materials
from pardalis.corpora.benchmarks.packages import PACKAGES, STAMPS
from pardalis.corpora.benchmarks.questions import SPLITS, Benchmark, Question, Split, TaskImage
from pardalis.corpora.emojis import write_licences
from pardalis.corpora.encyclopedia.packages import licences, require_packages
from pardalis.documents.writers import write_records
from pardalis.errors import ConfigError
from pardalis.files import atomic_folder, write_json
from pardalis.seeds import numpy_generator

BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for family in (drawings, flags, scenes, dictionary, encyclopedia, stamps)
    for benchmark in family.BENCHMARKS
}


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarksConfig:
    """Which tasks are made, and how large."""

    packages: Path  # folder that fetch_packages filled
    tasks: tuple[str, ...] = ()  # names of BENCHMARKS; empty: all whose packages are there
    items: int = 200  # the most questions of a task that are tested
    examples: int = 50  # the most questions that few-shot examples are drawn from
    image_side: int = 128  # pixels

    def __post_init__(self) -> None:
        check_at_least(self, items=1, examples=1, image_side=32)
        check_at_most(self, image_side=1024)
        if unknown := [name for name in self.tasks if name not in BENCHMARKS]:
            raise ConfigError(
                f"tasks has {unknown[0]!r}; it must have names among {', '.join(BENCHMARKS)}."
            )


def build_benchmarks(config: BenchmarksConfig, folder: Path) -> dict[str, dict[str, int]]:
    """Write the tasks into a folder, replacing it whole; return how many questions each has.

    The same config and package versions give the same bytes.

    Raises:
        ConfigError: a package of the extra ``demo`` is not installed.
        DataError: a package is missing or is not the pinned version.
    """
    require_packages()
    materials = Materials(config.packages, config.image_side)
    chosen = [BENCHMARKS[name] for name in dict.fromkeys(config.tasks or _possible(config))]
    counts: dict[str, dict[str, int]] = {each.name: {} for each in chosen}
    with (
        atomic_folder(folder) as partial,
        progress.bar("Writing tasks", 2 * len(chosen), "files") as advance,
    ):
        (partial / "images").mkdir()
        images = _Images(partial)
        for split in SPLITS:  # all tests first, so that no example shows an image of a test
            most = config.items if split == "test" else config.examples
            for each in chosen:
                generator = numpy_generator(0, "benchmarks", each.name, split)
                questions = _distinct(each.ask(materials, split, generator), images, split, most)
                path = partial / f"{each.name}.{split}.jsonl"
                counts[each.name][split] = write_records(questions, path)
                advance()
        write_json(partial / "tasks.json", [_entry(each, counts[each.name]) for each in chosen])
        write_licences(_licences(chosen, counts), partial)
    return counts


def _possible(config: BenchmarksConfig) -> list[str]:
    """Return the names of all tasks but those whose optional package was not fetched."""
    return [
        name
        for name, each in BENCHMARKS.items()
        if each.optional is None or (config.packages / each.optional.file).exists()
    ]


class _Images:
    """The images that were written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._split: dict[bytes, Split] = {}  # of each image, by the hash of its pixels
        self._written: set[Path] = set()

    def are_free(self, task_images: list[TaskImage], split: Split) -> bool:
        """Whether no image is of another split."""
        return all(self._split.get(_digest(each), split) == split for each in task_images)

    def write(self, task_image: TaskImage, split: Split) -> str:
        """Write an image that is not written yet; return its path."""
        self._split[_digest(task_image)] = split
        if task_image.path not in self._written:
            self._written.add(task_image.path)
            task_image.image.save(self.folder / task_image.path, format="PNG")
        return task_image.path.as_posix()


def _digest(task_image: TaskImage) -> bytes:
    return hashlib.sha256(task_image.image.tobytes()).digest()


def _distinct(
    questions: Iterator[Question], images: _Images, split: Split, most: int
) -> Iterator[dict[str, Any]]:
    """Yield the first questions whose images are of no other split, with the paths of images."""
    left = most
    while left and (question := next(questions, None)) is not None:
        shown = [p for value in question.values() for p in _task_images(value)]
        if images.are_free(shown, split):
            left -= 1
            yield {name: _plain(value, images, split) for name, value in question.items()}


def _task_images(value: Any) -> list[TaskImage]:
    if isinstance(value, TaskImage):
        return [value]
    return (
        [each for each in value if isinstance(each, TaskImage)] if isinstance(value, list) else []
    )


def _plain(value: Any, images: _Images, split: Split) -> Any:
    if isinstance(value, TaskImage):
        return images.write(value, split)
    if isinstance(value, list):
        return [_plain(each, images, split) for each in value]
    return value


def _entry(benchmark: Benchmark, counts: Mapping[str, int]) -> dict[str, Any]:
    return {
        "name": benchmark.name,
        "about": benchmark.about,
        "choices": benchmark.choices,
        "chance": 1 / benchmark.choices if benchmark.choices else None,
        "questions": dict(counts),
        "packages": list(benchmark.packages),
    }


def _licences(
    chosen: list[Benchmark], counts: Mapping[str, Mapping[str, int]]
) -> list[tuple[Any, ...]]:
    """Return the packages of the licence manifest; see :func:`write_licences`."""
    facts = {p.name: (p.version, p.licence, p.attribution) for p in (*PACKAGES, STAMPS)}
    articles = licences(0, 0)[1]
    facts[articles[0]] = articles[1:4]
    used: dict[str, int] = {}
    for benchmark in chosen:
        for name in benchmark.packages:
            used[name] = used.get(name, 0) + sum(counts[benchmark.name].values())
    taken = "drawings as PNG on white, names, definitions or facts, in questions"
    return [(name, *facts[name], taken, count) for name, count in used.items()]
