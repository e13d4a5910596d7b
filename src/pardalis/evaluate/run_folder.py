"""Reading the outputs of a run's stages as plain values.

A missing or damaged file raises :class:`~pardalis.errors.DataError`, which names the stage to run.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pardalis.data.report import PrepareReport
from pardalis.errors import DataError
from pardalis.files import read_json, read_text
from pardalis.train.metrics import Line, read_metrics

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")

# The stage that writes a path, by its first component. Every stage writes the first two files.
_STAGE_OF = {
    "recipe.toml": "prepare",
    "stages.json": "prepare",
    "corpus": "corpus",
    "image_tokenizer": "image_tokenizer",
    "shards": "prepare",
    "training": "train",
    "samples": "sample",
}


class Metrics:
    """The metrics of one training run as curves over steps."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = lines

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Return the steps and values of a metric; empty if it was never reported."""
        lines = [line for line in self._lines if name in line]
        return [int(line["step"]) for line in lines], [float(line[name]) for line in lines]

    def last(self, name: str, n: int = 1) -> float | None:
        """Return the mean of the last ``n`` values of a metric, None if it was never reported."""
        values = self.curve(name)[1][-n:]
        return sum(values) / len(values) if values else None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """The parsed files of a run folder; images stay paths."""

    path: Path
    recipe: str
    stages: list[dict[str, Any]]  # records of the finished stages except report
    licences: list[dict[str, Any]]  # packages of a demo corpus; empty for own documents
    image_tokenizer: Metrics | None  # None: the run used a trained one
    training: Metrics
    shards: dict[str, PrepareReport]  # the reports of prepare by folder name
    samples: dict[str, Any]  # samples.json, as pardalis.pipeline.samples writes it

    @classmethod
    def read(cls, path: Path) -> "RunFolder":
        """Read a run folder.

        Raises:
            DataError: a file is missing or damaged; names the file and its stage.
        """
        if not path.is_dir():
            raise DataError(f"There is no run folder {path}; start a run there first.")
        samples = _json(path, "samples/samples.json", dict)
        _check_samples(path / "samples/samples.json", samples)
        stages = _json(path, "stages.json", list)
        recipe = _recipe(_existing(path, "recipe.toml"))
        image_tokenizer = None
        if _trains_an_image_tokenizer(path / "recipe.toml", recipe):
            metrics = _existing(path, "image_tokenizer/metrics.jsonl")
            image_tokenizer = Metrics(read_metrics(metrics))
        return cls(
            path=path,
            recipe=recipe,
            stages=[s for s in stages if s["finished"] is not None and s["name"] != "report"],
            licences=_licences(path),
            image_tokenizer=image_tokenizer,
            training=Metrics(read_metrics(_existing(path, "training/metrics.jsonl"))),
            shards=_shards(path),
            samples=samples,
        )


def _recipe(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); run any stage again.") from error


def _trains_an_image_tokenizer(path: Path, recipe: str) -> bool:
    try:
        return "image_tokenizer" in tomllib.loads(recipe)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not TOML ({error}); run any stage again.") from error


def _existing(run: Path, name: str) -> Path:
    path = run / name
    if not path.is_file():
        stage = _STAGE_OF[name.split("/")[0]]
        raise DataError(
            f"{path} is missing, so the report cannot be written; run the stage '{stage}', which "
            "writes it."
        )
    return path


def _json(run: Path, name: str, kind: type) -> Any:
    path = _existing(run, name)
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not JSON ({error}); run its stage again.") from error
    if not isinstance(value, kind):
        raise DataError(
            f"{path} holds a {type(value).__name__}, but a {kind.__name__} was expected; run its "
            "stage again."
        )
    return value


def _shards(run: Path) -> dict[str, PrepareReport]:
    names = sorted(path.parent.name for path in run.glob("shards/*/report.json"))
    if not names:
        _existing(run, "shards/*/report.json")
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


def _check_samples(path: Path, samples: dict[str, Any]) -> None:
    lists = ("gallery", "images", "captions", "pages")
    needed = (*lists, "captioned", "left_out", "image_tokens_per_second")
    if missing := [key for key in needed if key not in samples]:
        raise DataError(f"{path} lacks {', '.join(missing)}; run the stage 'sample' again.")
    for key in lists:
        for sample in samples[key]:
            if sample.get("split") not in SPLITS:
                raise DataError(
                    f"{path} has an entry of '{key}' with the split {sample.get('split')!r}; it "
                    f"must be one of {', '.join(SPLITS)}. Run the stage 'sample' again."
                )
