"""Reading the outputs of a run's stages as plain values.

A missing or damaged file raises :class:`~pardalis.errors.DataError`, which names the stage to run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pardalis.config import shown
from pardalis.data.report import PrepareReport
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.metrics_file import Metrics
from pardalis.evaluate.sample_file import SourceImages, check_samples
from pardalis.evaluate.tasks.results import RESULTS, Row, read_results, rows_of
from pardalis.files import parse_toml, read_json, read_text
from pardalis.train.metrics import read_metrics

# The stage that writes a path, by its first component. Every stage writes the first two files.
_STAGE_OF = {
    "recipe.toml": "prepare",
    "stages.json": "prepare",
    "corpus": "corpus",
    "image_tokenizer": "image_tokenizer",
    "shards": "prepare",
    "training": "train",
    "samples": "sample",
    "evaluation": "evaluate",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """The parsed files of a run folder; images stay paths."""

    path: Path
    recipe: str
    settings: dict[str, Any]  # its values
    stages: list[dict[str, Any]]  # records of the finished stages except report
    packages: list[dict[str, Any]]  # packages of a demo corpus with their licences, if any
    licences: list[dict[str, Any]]  # the other sources with theirs; empty in older runs
    image_tokenizer: Metrics | None  # None: the run used a trained one
    training: Metrics
    shards: dict[str, PrepareReport]  # the reports of prepare by folder name
    samples: dict[str, Any]  # samples.json, as pardalis.pipeline.samples writes it
    evaluation: list[Row]  # the results of tasks

    @classmethod
    def read(cls, path: Path, source_images: SourceImages = lambda: ()) -> "RunFolder":
        """Read a run folder.

        Args:
            source_images: images outside the folder that samples may name, asked only if they do.

        Raises:
            DataError: a file is missing or damaged; names the file and its stage.
        """
        if not path.is_dir():
            raise DataError(f"There is no run folder {path}; start a run there first.")
        samples = _json(path, "samples/samples.json", dict)
        check_samples(path / "samples/samples.json", samples, source_images)
        stages = _stages(path)
        recipe = _recipe(_existing(path, "recipe.toml"))
        image_tokenizer = None
        settings = _settings(path / "recipe.toml", recipe)
        if "image_tokenizer" in settings:
            metrics = _existing(path, "image_tokenizer/metrics.jsonl")
            image_tokenizer = Metrics(read_metrics(metrics))
        return cls(
            path=path,
            recipe=recipe,
            settings=settings,
            stages=[s for s in stages if s["finished"] is not None and s["name"] != "report"],
            packages=_packages(path),
            licences=_licences(path),
            image_tokenizer=image_tokenizer,
            training=Metrics(read_metrics(_existing(path, "training/metrics.jsonl"))),
            shards=_shards(path),
            samples=samples,
            evaluation=_evaluation(path),
        )


def _evaluation(run: Path) -> list[Row]:
    """Return the results of tasks; none if the recipe has none, or they are not there yet."""
    folder = run / "evaluation"
    if not (folder / RESULTS).is_file():
        return []
    try:
        return rows_of(read_results(folder))
    except ConfigError as error:
        raise DataError(
            f"{folder / RESULTS} cannot be read ({error}); run the stage 'evaluate' again."
        ) from error


def _recipe(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); run any stage again.") from error


def _settings(path: Path, recipe: str) -> dict[str, Any]:
    try:
        return parse_toml(recipe)
    except ValueError as error:
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


def _stages(run: Path) -> list[dict[str, Any]]:
    stages: list[dict[str, Any]] = _json(run, "stages.json", list)
    for stage in stages:
        match stage:
            case {"name": str(), "finished": _, "seconds": int() | float(),
                  "peak_rss_gib": int() | float()}:  # fmt: skip
                continue
        raise DataError(f"{run / 'stages.json'} has the entry {shown(stage)}; run any stage again.")
    return stages


def _shards(run: Path) -> dict[str, PrepareReport]:
    names = sorted(path.parent.name for path in run.glob("shards/*/report.json"))
    if not names:
        _existing(run, "shards/*/report.json")
    reports = {}
    for name in names:
        values = _json(run, f"shards/{name}/report.json", dict)
        try:
            reports[name] = PrepareReport.from_dict(values)
        except ValueError as error:
            raise DataError(
                f"{run / 'shards' / name / 'report.json'} is not a report of prepare ({error}); "
                "run the stage 'prepare' again."
            ) from error
    return reports


def _packages(run: Path) -> list[dict[str, Any]]:
    if not (run / "corpus").is_dir():
        return []
    return _tables(run, "corpus/LICENCES.json", "packages")


def _licences(run: Path) -> list[dict[str, Any]]:
    if not (run / "shards/LICENCES.json").exists():
        return []
    return _tables(run, "shards/LICENCES.json", "sources")


def _tables(run: Path, name: str, key: str) -> list[dict[str, Any]]:
    tables = _json(run, name, dict).get(key)
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise DataError(
            f"{run / name} has no list of tables under {key!r}; run the stage "
            f"'{_STAGE_OF[name.split('/')[0]]}' again."
        )
    return tables
