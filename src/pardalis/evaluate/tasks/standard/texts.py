"""Sets of texts that are not one table of records, or whose fields have to be made."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pardalis.config import check_at_least
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.metrics.answers import boxed
from pardalis.evaluate.tasks.items import Item
from pardalis.evaluate.tasks.records import read_records
from pardalis.evaluate.tasks.standard.fields import taken
from pardalis.files import read_text

_LETTERS = "ABCD"


@dataclass(frozen=True, kw_only=True)
class LabelledConfig:
    """Records in one file, and a label on each line of another: PIQA, SIQA, aNLI.

    Items have the fields of the record, and ``label``, a text.
    """

    kind: Literal["labelled"] = "labelled"
    path: Path  # .jsonl
    labels: Path  # .lst

    @property
    def files(self) -> tuple[Path, ...]:
        return self.path, self.labels

    def items(self, folder: Path) -> Iterator[Item]:
        records = list(read_records(folder / self.path))
        try:
            labels = read_text(folder / self.labels).split()
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / self.labels} cannot be read: {error}.") from error
        if len(labels) != len(records):
            raise DataError(
                f"{folder / self.labels} has {len(labels):,} labels for the {len(records):,} "
                f"records of {folder / self.path}; give the files of one split."
            )
        for number, (record, label) in enumerate(zip(records, labels, strict=True)):
            yield Item(str(number), {**record, "label": label})


_WIKIHOW = re.compile(r"\[[^\]]*\]")


@dataclass(frozen=True, kw_only=True)
class HellaSwagConfig:
    """HellaSwag, of its authors (``.jsonl``) or of the hub (``.parquet``), arXiv 1905.07830.

    Items have the fields ``context``, ``endings`` and ``label`` (from 0). Marks of WikiHow such as
    [step] are taken out, and [title] ends a sentence, as lm-evaluation-harness does.
    """

    kind: Literal["hellaswag"] = "hellaswag"
    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def items(self, folder: Path) -> Iterator[Item]:
        for number, record in enumerate(read_records(folder / self.path)):
            where = f"{folder / self.path}, record {number + 1},"
            label = str(record.get("label", ""))
            if not label.isdecimal():
                raise DataError(
                    f"{where} has the label {label[:20]!r}; a split with published labels is "
                    "needed, such as val."
                )
            about, first, second = (
                taken(record, name, str, where) for name in ("activity_label", "ctx_a", "ctx_b")
            )
            context = f"{about}: {first} {second[:1].upper()}{second[1:].lower()}"
            endings = taken(record, "endings", list, where)
            yield Item(
                str(number),
                {
                    "context": _cleaned(context),
                    "endings": [_cleaned(str(each)) for each in endings],
                    "label": int(label),
                },
            )


def _cleaned(text: str) -> str:
    return _WIKIHOW.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")


@dataclass(frozen=True, kw_only=True)
class WinoGrandeConfig:
    """WinoGrande, of its authors (``dev.jsonl``) or of the hub (``.parquet``), arXiv 1907.10641.

    Items have the fields ``sentence``, ``beginnings``, the sentence up to the gap with each of the
    two options in it, ``ending``, what follows the gap, and ``right``, 0 or 1.
    """

    kind: Literal["winogrande"] = "winogrande"
    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def items(self, folder: Path) -> Iterator[Item]:
        for number, record in enumerate(read_records(folder / self.path)):
            where = f"{folder / self.path}, record {number + 1},"
            sentence = taken(record, "sentence", str, where)
            before, gap, after = sentence.partition("_")
            answer = str(record.get("answer", ""))
            if not gap or answer not in ("1", "2"):
                raise DataError(
                    f"{where} has no gap '_' in its sentence, or no answer 1 or 2; is it a split "
                    "with answers?"
                )
            options = [taken(record, name, str, where) for name in ("option1", "option2")]
            yield Item(
                str(record.get("qID", number)),
                {
                    "sentence": sentence,
                    "beginnings": [before + option for option in options],
                    "ending": after,
                    "right": int(answer) - 1,
                },
            )


@dataclass(frozen=True, kw_only=True)
class MmluConfig:
    """MMLU as the hub has it, all subjects in one file (Hendrycks et al. 2021, arXiv 2009.03300).

    Items have the fields ``question``, ``choices``, ``answer`` (from 0), ``subject``, and
    ``examples``: the first questions of the same subject in the file ``examples_path``, with their
    answers, in their order, since MMLU's examples are always those.
    """

    kind: Literal["mmlu"] = "mmlu"
    path: Path
    examples_path: Path
    examples: int = 5

    def __post_init__(self) -> None:
        check_at_least(self, examples=0)

    @property
    def files(self) -> tuple[Path, ...]:
        return self.path, self.examples_path

    def items(self, folder: Path) -> Iterator[Item]:
        shown: dict[str, list[str]] = {}
        for number, record in enumerate(read_records(folder / self.examples_path), start=1):
            where = f"{folder / self.examples_path}, record {number},"
            fields = _of_mmlu(record, where)
            shown.setdefault(fields["subject"], []).append(_solved(fields))
        for number, record in enumerate(read_records(folder / self.path)):
            fields = _of_mmlu(record, f"{folder / self.path}, record {number + 1},")
            before = shown.get(fields["subject"], [])[: self.examples]
            if len(before) < self.examples:
                raise DataError(
                    f"{folder / self.examples_path} has {len(before)} examples of the subject "
                    f"{fields['subject']!r}; {self.examples} are needed."
                )
            yield Item(str(number), fields | {"examples": "".join(before)})


def _of_mmlu(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    choices = taken(record, "choices", list, where)
    answer = taken(record, "answer", int, where)
    if len(choices) != len(_LETTERS) or not 0 <= answer < len(choices):
        raise DataError(
            f"{where} has {len(choices)} choices and the answer {answer}; 4 choices and an answer "
            "from 0 to 3 were expected."
        )
    return {
        "question": taken(record, "question", str, where).strip(),
        "choices": choices,
        "answer": answer,
        "subject": taken(record, "subject", str, where).replace("_", " "),
    }


def _solved(fields: Mapping[str, Any]) -> str:
    options = (
        f"{letter}. {each}\n" for letter, each in zip(_LETTERS, fields["choices"], strict=True)
    )
    return f"{fields['question']}\n{''.join(options)}Answer: {_LETTERS[fields['answer']]}\n\n"


@dataclass(frozen=True, kw_only=True)
class MathConfig:
    """MATH: a file of problems for each subject (Hendrycks et al. 2021, arXiv 2103.03874).

    Items have the fields ``problem``, ``solution``, ``answer`` (what its last box holds),
    ``level`` and ``subject``.

    Raises:
        ConfigError: no subject is named.
    """

    kind: Literal["math"] = "math"
    subjects: tuple[str, ...]  # names of folders
    file: str  # in each of them, .parquet, .jsonl or .json
    folder: Path = Path()  # where they are

    def __post_init__(self) -> None:
        if not self.subjects:
            raise ConfigError("subjects must have at least one entry, such as 'algebra'.")

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(self.folder / subject / self.file for subject in self.subjects)

    def items(self, folder: Path) -> Iterator[Item]:
        for subject, path in zip(self.subjects, self.files, strict=True):
            for number, record in enumerate(read_records(folder / path)):
                where = f"{folder / path}, record {number + 1},"
                solution = taken(record, "solution", str, where)
                if (answer := boxed(solution)) is None:
                    raise DataError(f"{where} has no \\boxed answer in its solution.")
                yield Item(
                    f"{subject}/{number}",
                    {
                        "problem": taken(record, "problem", str, where),
                        "solution": solution,
                        "answer": answer,
                        "level": str(record.get("level", "")),
                        "subject": subject,
                    },
                )
