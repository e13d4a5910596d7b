"""Reading what the stages of a run left in its folder, as plain values; nothing is computed here.

A missing or broken file is a :class:`~pardalis.errors.DataError` that names the stage to run.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pardalis.data.report import PrepareReport
from pardalis.errors import DataError

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")

# The stage that writes what begins with this name. Every stage writes both files at the top.
_STAGE_OF = {
    "recipe.toml": "prepare",
    "stages.json": "prepare",
    "corpus": "corpus",
    "image_tokenizer": "image_tokenizer",
    "shards": "prepare",
    "training": "train",
    "answers": "answer",
}


class Metrics:
    """The numbers of one training run by name, each a curve over steps.

    A resumed run may have written a step twice; the later line counts. ``a/b`` and ``a_b`` are one
    name.
    """

    def __init__(self, lines: Sequence[dict[str, Any]]) -> None:
        self._curves: dict[str, dict[int, float]] = {}
        for line in lines:
            for name, value in line.items():
                if isinstance(value, (int, float)) and math.isfinite(value):
                    self._curves.setdefault(name.replace("/", "_"), {})[int(line["step"])] = float(
                        value
                    )

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Return the steps and values of one number, in order of steps; empty when never told."""
        points = sorted(self._curves.get(name, {}).items())
        return [step for step, _ in points], [value for _, value in points]

    def last(self, name: str, n: int = 1) -> float | None:
        """Return the mean of the last ``n`` values of a number, None when it was never told."""
        values = self.curve(name)[1][-n:]
        return sum(values) / len(values) if values else None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """Everything a report needs from a run folder, parsed; pictures stay paths."""

    path: Path
    recipe: str
    stages: list[dict[str, Any]]
    """Records of the finished stages before the report."""

    licences: list[dict[str, Any]]
    """Of the packages that the demo corpus was made from; empty for the user's own documents."""

    image_tokenizer: Metrics
    training: Metrics
    shards: dict[str, PrepareReport]
    """What prepare told about each source, by the name of its folder."""

    answers: dict[str, Any]
    """Its ``gallery`` lists every picture of the corpus that has a caption."""

    @classmethod
    def read(cls, path: Path) -> "RunFolder":
        """Read a run folder.

        Raises:
            DataError: a file is missing or is not what its stage writes; names both.
        """
        if not path.is_dir():
            raise DataError(f"There is no run folder {path}; start a run there first.")
        answers = _json(path, "answers/answers.json", dict)
        _check_answers(path / "answers/answers.json", answers)
        stages = _json(path, "stages.json", list)
        return cls(
            path=path,
            recipe=_text(path, "recipe.toml"),
            stages=[s for s in stages if s["finished"] is not None and s["name"] != "report"],
            licences=_licences(path),
            image_tokenizer=_metrics(path, "image_tokenizer/metrics.jsonl"),
            training=_metrics(path, "training/metrics.jsonl"),
            shards=_shards(path),
            answers=answers,
        )


def _text(run: Path, name: str) -> str:
    path = run / name
    try:
        return path.read_text()
    except FileNotFoundError:
        stage = _STAGE_OF[name.split("/")[0]]
        raise DataError(
            f"{path} is missing, so the report cannot be written; it comes from the stage "
            f"'{stage}': run that stage first."
        ) from None


def _json(run: Path, name: str, kind: type) -> Any:
    text = _text(run, name)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{run / name} is not JSON ({error}); run its stage again.") from error
    if not isinstance(value, kind):
        raise DataError(
            f"{run / name} holds a {type(value).__name__}, where a {kind.__name__} was expected; "
            "run its stage again."
        )
    return value


def _metrics(run: Path, name: str) -> Metrics:
    lines = []
    for number, text in enumerate(_text(run, name).splitlines(), start=1):
        try:
            line = json.loads(text)
            line["step"] = int(line["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{run / name}, line {number}, is not a line of metrics with a step ({error}); "
                "resume that training, which rewrites it."
            ) from error
        lines.append(line)
    return Metrics(lines)


def _shards(run: Path) -> dict[str, PrepareReport]:
    names = sorted(path.parent.name for path in run.glob("shards/*/report.json"))
    if not names:
        _text(run, "shards/*/report.json")
    reports = {}
    for name in names:
        values = _json(run, f"shards/{name}/report.json", dict)
        try:
            reports[name] = PrepareReport.from_dict(values)
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{run / 'shards' / name / 'report.json'} is not a report of prepare ({error!r}); "
                "run the stage 'prepare' again."
            ) from error
    return reports


def _licences(run: Path) -> list[dict[str, Any]]:
    if not (run / "corpus").is_dir():
        return []
    packages: list[dict[str, Any]] = _json(run, "corpus/LICENCES.json", dict)["packages"]
    return packages


def _check_answers(path: Path, answers: dict[str, Any]) -> None:
    needed = ("gallery", "pictures", "captions", "pages")
    if missing := [key for key in needed if key not in answers]:
        raise DataError(f"{path} lacks {', '.join(missing)}; run the stage 'answer' again.")
    for key in needed:
        for answer in answers[key]:
            if answer.get("split") not in SPLITS:
                raise DataError(
                    f"{path} has an entry of '{key}' with the split {answer.get('split')!r}; a "
                    f"split is one of {', '.join(SPLITS)}. Run the stage 'answer' again."
                )
