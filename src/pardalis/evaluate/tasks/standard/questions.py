"""Questions about images: VQAv2 and its relatives, ScienceQA, MMMU."""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pardalis.config import check_at_least
from pardalis.documents import Document, Image, Segment, Text
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.tasks.items import Item
from pardalis.evaluate.tasks.records import read_json_file, read_records, to_image
from pardalis.evaluate.tasks.standard.fields import objects, taken
from pardalis.evaluate.tasks.template import joined

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, kw_only=True)
class VqaConfig:
    """Questions with the answers of several people, in the forms of four sets.

    VQAv2 and OK-VQA have a file of ``questions`` and one of ``annotations``, joined by
    ``question_id``, TextVQA one file with ``data``, VizWiz one list. Items have the fields
    ``image``, ``question``, ``answers`` (a list of texts) and ``answer_type``.
    """

    kind: Literal["vqa"] = "vqa"
    questions: Path
    annotations: Path | None = None  # None: the answers stand beside the questions
    image_folder: Path = Path()
    # Where a question names no file, the image is prefix, image_id with so many digits, suffix.
    image_prefix: str = ""
    image_digits: int = 0
    image_suffix: str = ".jpg"

    def __post_init__(self) -> None:
        check_at_least(self, image_digits=0)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.questions, *([self.annotations] if self.annotations else []))

    def items(self, folder: Path) -> Iterator[Item]:
        answered: dict[str, Mapping[str, Any]] = {}
        if self.annotations is not None:
            path = folder / self.annotations
            for entry in _entries(path, "annotations"):
                answered[str(entry.get("question_id"))] = entry
        for number, entry in enumerate(_entries(folder / self.questions, "questions", "data")):
            where = f"{folder / self.questions}, question {number + 1},"
            name = str(entry.get("question_id", number))
            if self.annotations is not None and name not in answered:
                raise DataError(
                    f"{folder / self.annotations} has no annotation of the question {name}, which "
                    f"{folder / self.questions} has; give the files of one split."
                )
            of_people = answered.get(name, entry)
            answers = of_people.get("answers")
            if not isinstance(answers, list):
                raise DataError(
                    f"{where} has no list of `answers`; a split whose answers are not published "
                    "cannot be scored."
                )
            yield Item(
                name,
                {
                    "image": Image(folder / self.image_folder / self._file(entry, where)),
                    "question": taken(entry, "question", str, where),
                    "answers": [_answer(each, where) for each in answers],
                    "answer_type": str(of_people.get("answer_type", "")),
                },
            )

    def _file(self, entry: Mapping[str, Any], where: str) -> str:
        if isinstance(name := entry.get("image"), str):
            return name
        if not isinstance(number := entry.get("image_id"), str | int):
            raise DataError(f"{where} has no `image` and no `image_id`; is it a file of this set?")
        return f"{self.image_prefix}{str(number).zfill(self.image_digits)}{self.image_suffix}"


def _entries(path: Path, *keys: str) -> list[dict[str, Any]]:
    value = read_json_file(path)
    if isinstance(value, dict):
        value = next((value[key] for key in keys if key in value), None)
    return objects(value, f"{path}, `{keys[0]}`,")


def _answer(value: Any, where: str) -> str:
    return taken(value, "answer", str, where) if isinstance(value, dict) else str(value)


@dataclass(frozen=True, kw_only=True)
class ScienceQaConfig:
    """ScienceQA's ``problems.json`` and ``pid_splits.json`` (Lu et al. 2022, arXiv 2209.09513).

    Items have the fields ``image`` (nothing where a question has none), ``question``, ``hint``,
    ``choices``, ``letters`` (of the choices), ``answer`` (from 0), ``subject``,
    ``topic`` and ``grade``.
    """

    kind: Literal["scienceqa"] = "scienceqa"
    problems: Path
    splits: Path
    split: str = "test"
    image_folder: Path = Path()  # where SPLIT/ID/image.png begins
    only_with_images: bool = False  # the questions with images, "IMG" in the paper

    @property
    def files(self) -> tuple[Path, ...]:
        return self.problems, self.splits

    def items(self, folder: Path) -> Iterator[Item]:
        problems, splits = (read_json_file(folder / path) for path in self.files)
        if not isinstance(splits, dict) or not isinstance(splits.get(self.split), list):
            raise DataError(
                f"{folder / self.splits} has no list {self.split!r}; give one of its splits."
            )
        for name in map(str, splits[self.split]):
            where = f"{folder / self.problems}, problem {name},"
            if not isinstance(problems, dict) or not isinstance(problems.get(name), dict):
                raise DataError(f"{where} is missing; give the files of one version.")
            problem = problems[name]
            file = problem.get("image")
            if self.only_with_images and not file:
                continue
            inside = folder / self.image_folder / self.split / name
            yield Item(
                name,
                {
                    "image": to_image(file, inside, where),
                    "question": taken(problem, "question", str, where),
                    "hint": str(problem.get("hint", "")),
                    "choices": taken(problem, "choices", list, where),
                    "letters": list(_LETTERS[: len(problem["choices"])]),
                    "answer": taken(problem, "answer", int, where),
                    **{key: str(problem.get(key, "")) for key in ("subject", "topic", "grade")},
                },
            )


_MARK = re.compile(r"<image (\d)>")
_MOST_IMAGES = 7


@dataclass(frozen=True, kw_only=True)
class MmmuConfig:
    """MMMU as the hub has it: a folder of Parquet for each subject (arXiv 2311.16502).

    Items have the fields ``question`` and ``options`` with their images where ``<image 1>`` stands,
    ``answer`` (a letter, or the text of an open question), ``lettered`` (the options as lines),
    ``letters`` (of the options) and ``subject``.

    Raises:
        ConfigError: no subject is named.
    """

    kind: Literal["mmmu"] = "mmmu"
    subjects: tuple[str, ...]  # names of folders
    file: str = "validation-00000-of-00001.parquet"
    folder: Path = Path()  # where they are
    question_type: Literal["multiple-choice", "open"] = "multiple-choice"

    def __post_init__(self) -> None:
        if not self.subjects:
            raise ConfigError("subjects must have at least one entry, such as 'Art'.")

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(self.folder / subject / self.file for subject in self.subjects)

    def items(self, folder: Path) -> Iterator[Item]:
        for subject, path in zip(self.subjects, self.files, strict=True):
            for number, record in enumerate(read_records(folder / path), start=1):
                where = f"{folder / path}, record {number},"
                if taken(record, "question_type", str, where) == self.question_type:
                    yield self._item(record, subject, (folder / path).parent, where)

    def _item(self, record: Mapping[str, Any], subject: str, folder: Path, where: str) -> Item:
        images = [
            to_image(record.get(f"image_{n}"), folder, where) for n in range(1, _MOST_IMAGES + 1)
        ]
        options = [_with_images(text, images, where) for text in _options(record, where)]
        lines: list[Segment] = []
        for letter, option in zip(_LETTERS, options, strict=False):
            lines += [Text(f"{chr(10) if lines else ''}{letter}. "), *option.segments]
        return Item(
            taken(record, "id", str, where),
            {
                "question": _with_images(taken(record, "question", str, where), images, where),
                "options": options,
                "lettered": Document(tuple(joined(lines))),
                "letters": list(_LETTERS[: len(options)]),
                "answer": taken(record, "answer", str, where),
                "subject": subject.replace("_", " "),
            },
        )


def _options(record: Mapping[str, Any], where: str) -> Sequence[str]:
    """Return the options, which the hub stores as the text of a Python list."""
    value = record.get("options")
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value or "[]")
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
    if not isinstance(value, list):
        raise DataError(f"{where} has no list of `options`; is it a file of MMMU?")
    return [str(each) for each in value]


def _with_images(text: str, images: Sequence[Any], where: str) -> Document:
    """Return a text with images in the places of their marks."""
    segments: list[Segment] = []
    last = 0
    for found in _MARK.finditer(text):
        number = int(found[1])
        image = images[number - 1] if 1 <= number <= len(images) else None
        if not isinstance(image, Image):
            raise DataError(f"{where} names <image {number}>, but has no image_{number}.")
        segments += [Text(text[last : found.start()]), image]
        last = found.end()
    return Document(tuple(joined([*segments, Text(text[last:])])))
