"""A folder of results: every item as a line, and the numbers of each task.

    results.json          numbers with intervals, and what they were made from
    index.html            the same to look at
    arc_easy/task.json    the task, the bundle and the data files, so that only the same run resumes
    arc_easy/items.jsonl  {"id", "seed", "input", "prompt", "answer", "expected", "scores",
                          "details"} of each item, or {"id", "seed", "input", "error"}
    arc_easy/images/      the images that the model generated
    arc_easy/contamination.jsonl  {"id", "group", "grams", "seen", "images", "images_seen",
                          "document"} of each item, if it was looked for in training documents

Texts and images stand as lists of segments, ``{"text": ...}`` and ``{"image": ...}``. A generated
image is named by its file, and an image of the data by its path or its hash. ``input`` is a hash of
the item's fields and images, by which two folders know that they hold the same item.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from pardalis import config as configs
from pardalis import inputs
from pardalis.documents import Document, Image, Text, to_png
from pardalis.documents.writers import write_records
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.contamination import Contamination
from pardalis.evaluate.tasks.items import image_digest
from pardalis.evaluate.tasks.task import Number, Outcome, Record
from pardalis.files import (
    LOCK,
    output_folder,
    parse_json,
    plain,
    read_json,
    read_lines,
    write_bytes,
    write_json,
)

FORMAT = 1
RESULTS, PAGE = "results.json", "index.html"
ITEMS, TASK, IMAGES = "items.jsonl", "task.json", "images"
CONTAMINATION = "contamination.jsonl"
_KIND = "pardalis evaluation"


class Results:
    """The folder of one evaluation of one bundle.

    Args:
        folder: created if needed; may hold results of the same bundle, to which others are added.
        bundle: facts of the bundle, of which ``digest`` identifies it.

    Raises:
        ConfigError: the folder holds something else, or results of another bundle.
    """

    def __init__(self, folder: Path, bundle: Mapping[str, Any]) -> None:
        self.folder = output_folder(folder)
        self.tasks: dict[str, Any] = {}
        if any(each.name != LOCK for each in folder.iterdir()):
            found = read_results(folder)
            if found["bundle"]["digest"] != bundle["digest"]:
                raise ConfigError(
                    f"{folder} holds results of another bundle, {found['bundle'].get('path')}; "
                    "choose another `folder`, or remove it."
                )
            self.tasks = found["tasks"]
        self.bundle = dict(bundle)

    def write(self, versions: Mapping[str, str]) -> dict[str, Any]:
        """Write and return the content of results.json."""
        value = {
            "format": FORMAT,
            "made_by": _KIND,
            "bundle": self.bundle,
            "versions": dict(versions),
            "tasks": self.tasks,
        }
        write_json(self.folder / RESULTS, value)
        return value


class TaskResults:
    """The items of one task, which are kept as they finish.

    Args:
        folder: of the task; its parent is the folder of the evaluation.
        made_from: what decides the items, as configs and plain values.
        data: the folder of the data; images in it are named by their paths from there.

    Raises:
        ConfigError: the folder holds items that were made from something else.
    """

    def __init__(self, folder: Path, made_from: Mapping[str, Any], data: Path) -> None:
        self.folder, self._data = output_folder(folder), data
        self._path = self.folder / ITEMS
        self.records = list(_read(self._path))
        before = _read_json(self.folder / TASK)
        if self.records and before is None:
            raise ConfigError(
                f"{self.folder} holds items, but {TASK} does not say of what; choose another "
                "`folder`, or remove it."
            )
        if self.records and before is not None and (found := inputs.changes(before, made_from)):
            raise ConfigError(
                f"{self.folder} holds {len(self.records):,} finished items of another evaluation "
                f"({found}); choose another `folder`, or remove it."
            )
        write_json(self.folder / TASK, plain(configs.deciding(made_from)))

    def kept(self, wanted: Mapping[tuple[int, str], str]) -> dict[tuple[int, str], Record]:
        """Return the finished items that are wanted, by seed and id.

        Args:
            wanted: hashes of the inputs of all items.

        Raises:
            ConfigError: an item has changed since, such as one of its images.
        """
        found: dict[tuple[int, str], Record] = {}
        for record in self.records:
            key = record["seed"], record["id"]
            if key in wanted and "error" not in record:
                if record["input"] != wanted[key]:
                    raise ConfigError(
                        f"{self.folder} holds the item {record['id'][:60]!r} with other images or "
                        "fields; choose another `folder`, or remove it."
                    )
                found[key] = record
        # Items that are finished but not wanted (a smaller limit, fewer seeds) stay in the file.
        self.records = [record for record in self.records if "error" not in record]
        write_records(self.records, self._path)
        return found

    def append(self, record: Record) -> None:
        """Keep one item: it is on the disk when this returns."""
        self.records.append(record)
        with open(self._path, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def finish(
        self, found: Mapping[tuple[int, str], Record], order: Sequence[tuple[int, str]]
    ) -> None:
        """Write the items in an order, as they are found at last, and others after them."""
        place = {key: number for number, key in enumerate(order)}
        last = [found.get((each["seed"], each["id"]), each) for each in self.records]
        self.records = sorted(last, key=lambda r: place.get((r["seed"], r["id"]), len(place)))
        write_records(self.records, self._path)

    def write_contamination(self, found: Contamination) -> None:
        """Write what of each item stands in training documents."""
        lines = [
            {"id": name, "group": overlap.group, **asdict(overlap)}
            for name, overlap in found.overlaps.items()
        ]
        write_records(lines, self.folder / CONTAMINATION)

    def record(self, prompt: Document, outcome: Outcome) -> dict[str, Any]:
        """Return what is kept of a finished item; its generated images are written.

        Raises:
            DataError: a score is not finite.
        """
        for score, value in outcome.scores.items():
            if not isfinite(value):
                raise DataError(
                    f"The score {score!r} is {value}, not a finite number; the model's outputs are "
                    "broken there."
                )
        return {
            "prompt": self._kept(prompt),
            "answer": self._kept(outcome.answer),
            "expected": None if outcome.expected is None else self._kept(outcome.expected),
            "scores": dict(outcome.scores),
            "details": dict(outcome.details),
        }

    def _kept(self, document: Document) -> list[dict[str, str]]:
        return [self._segment(each) for each in document.segments]

    def _segment(self, segment: Text | Image) -> dict[str, str]:
        if isinstance(segment, Text):
            found = {"text": segment.text}
        elif isinstance(segment.source, Path | bytes):
            found = {"image": image_name(segment, self._data)}
        else:  # the model generated it
            name = f"{IMAGES}/{image_digest(segment)[:24]}.png"
            write_bytes(self.folder / name, to_png(segment.source))
            found = {"image": name}
        return found | ({"role": segment.role} if segment.role else {})


def image_name(image: Image, data: Path) -> str:
    """Return how a record names an image of the data: its path from the folder, or its hash."""
    path = image.source
    if not isinstance(path, Path):
        return f"sha256:{image_digest(image)}"
    return str(path.relative_to(data) if path.is_relative_to(data) else path)


def numbers(found: Mapping[str, Number]) -> dict[str, dict[str, Any]]:
    """Return numbers as plain values, without what is not known or no number."""

    def is_known(value: Any) -> bool:
        return bool(value) if isinstance(value, tuple) else value is not None and isfinite(value)

    return {
        name: {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(number).items()
            if is_known(value)
        }
        for name, number in found.items()
        if is_known(number.value)
    }


def read_results(folder: Path) -> dict[str, Any]:
    """Return the content of results.json.

    Raises:
        ConfigError: the folder holds no results of an evaluation, or those of a newer version.
    """
    value = _read_json(folder / RESULTS)
    match value:
        case {
            "made_by": str(kind),
            "format": int(version),
            "bundle": {"digest": str()},
            "tasks": dict(),
        } if kind == _KIND:
            if version <= FORMAT:
                return dict(value)
            raise ConfigError(f"{folder} holds results of a newer version of Pardalis; upgrade it.")
    raise ConfigError(
        f"{folder} is not empty and holds no results of an evaluation ({RESULTS}); choose another "
        "`folder`."
    )


@dataclass(frozen=True, slots=True)
class Row:
    """The most important number of a task, for a table.

    Attributes:
        low, high: its interval over items; None: not known.
        task_hash, data_hash: of the task's config, and of its items with their images.
    """

    task: str
    number: str
    value: float
    low: float | None
    high: float | None
    chance: float | None
    items: int
    failed: int
    shots: int
    seeds: int
    task_hash: str
    data_hash: str


def rows_of(results: Mapping[str, Any]) -> list[Row]:
    """Return a row for each task of results.json that has a number; raises ConfigError."""
    rows = []
    for name, entry in results["tasks"].items():
        try:
            rows += [_row(name, entry)] if entry["numbers"] else []
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"The entry of the task {str(name)[:60]!r} in {RESULTS} has another form than "
                f"results of an evaluation ({error!r}); evaluate it again."
            ) from error
    return rows


def _row(name: str, entry: Mapping[str, Any]) -> Row:
    label, number = next(iter(entry["numbers"].items()))
    low, high = number.get("low"), number.get("high")
    return Row(
        task=name,
        number=label,
        value=float(number["value"]),
        low=None if low is None else float(low),
        high=None if high is None else float(high),
        chance=float(found["value"]) if (found := entry["numbers"].get("chance")) else None,
        items=int(entry["items"]),
        failed=int(entry["failed"]),
        shots=int(entry["task"].get("shots", 0)),
        seeds=len(entry["seeds"]),
        task_hash=str(entry["hash"]),
        data_hash=str(entry["data"]["items"]),
    )


def read_items(folder: Path, task: str) -> list[Record]:
    """Return the items of a task in a folder of results, those that failed included."""
    return list(_read(folder / task / ITEMS))


def _read(path: Path) -> Iterator[Record]:
    """Yield the undamaged records of a file; a line that was cut off is left out."""
    if not path.is_file():
        return
    for line in read_lines(path):
        try:
            value = parse_json(line)
        except ValueError:
            continue
        match value:
            case {"id": str(), "seed": int(), "input": str(), "error": str()}:
                yield value
            case {"id": str(), "seed": int(), "input": str(), "scores": dict(), "details": dict()}:
                yield value


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None
