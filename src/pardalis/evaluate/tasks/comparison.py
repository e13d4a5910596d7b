"""Comparing evaluations: paired differences over the items that all of them have."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pardalis import inputs
from pardalis.errors import ConfigError
from pardalis.evaluate.curves import Band, Panel, panel_chart
from pardalis.evaluate.extras import can_write_pages
from pardalis.evaluate.tasks.find import task_of
from pardalis.evaluate.tasks.page import card, finder, primary
from pardalis.evaluate.tasks.results import numbers, read_items, read_results
from pardalis.evaluate.tasks.task import Record, TaskConfig
from pardalis.evaluate.templates import markup, render
from pardalis.files import write_text

_N_EXAMPLES = 6  # items on the page on which the first and the last evaluation differ most


def compare_results(
    folders: Sequence[Path | str], page: Path | str | None = None
) -> dict[str, Any]:
    """Compare folders of results with the first of them; return plain values.

    Each number of a task is compared over the items that are finished in all folders, and its
    difference has an interval of the paired bootstrap: an item is drawn with what all models made
    of it.

    Args:
        page: an .html file to write.

    Raises:
        ConfigError: there are fewer than two folders, one holds no results, they have no task in
            common, a task was evaluated otherwise, or the page is no .html file.
    """
    places = [Path(folder) for folder in folders]
    if len(places) < 2:
        raise ConfigError(f"`folders` must be at least two folders of results, got {len(places)}.")
    if page is not None and Path(page).suffix not in (".html", ".htm"):
        raise ConfigError(f"page must end in .html or .htm, got {page}.")
    found = [read_results(place) for place in places]
    names = [name for name in found[0]["tasks"] if all(name in each["tasks"] for each in found)]
    if not names:
        has = "; ".join(
            f"{place}: {', '.join(each['tasks']) or 'none'}"
            for place, each in zip(places, found, strict=True)
        )
        raise ConfigError(f"The folders have no task in common ({has}).")
    result: dict[str, Any] = {
        "folders": [
            {"folder": str(place), **each["bundle"]}
            for place, each in zip(places, found, strict=True)
        ],
        "tasks": {},
    }
    shown: dict[str, Any] = {}
    for name in names:
        entries = [each["tasks"][name] for each in found]
        _require_same(name, places, entries)
        records = _paired(name, places)
        task = task_of(entries[0]["task"])
        result["tasks"][name] = _compared(task, records, places)
        if page is not None:
            first, last = (
                finder(places[0] / name, entries[0]),
                finder(places[-1] / name, entries[-1]),
            )
            shown[name] = [
                (card(a, first), card(b, last))
                for a, b in _most_different(entries[0], records[0], records[-1])
            ]
    if page is not None and can_write_pages("The page of the comparison is"):
        values = {
            "result": result,
            "shown": shown,
            "charts": _charts(result),
            "first_of": lambda compared: next(iter(compared["numbers"][0])),
        }
        write_text(
            Path(page), render(Path(__file__).with_name("comparison_page.html.jinja"), values)
        )
    return result


def _require_same(name: str, places: Sequence[Path], entries: Sequence[Mapping[str, Any]]) -> None:
    """Raise ConfigError unless a task is the same in all folders."""
    first = entries[0]
    for place, other in zip(places[1:], entries[1:], strict=True):
        if first["hash"] != other["hash"]:
            what = inputs.changes(dict(first["task"]), dict(other["task"]))
        elif first["data"]["files"] != other["data"]["files"]:
            what = inputs.changes(dict(first["data"]["files"]), dict(other["data"]["files"]))
        else:
            continue
        raise ConfigError(
            f"The task {name!r} of {place} is not that of {places[0]}, so their numbers do not "
            f"compare: {what or 'its hash differs'}."
        )


def _paired(name: str, places: Sequence[Path]) -> list[list[Record]]:
    """Return the items that are finished in all folders, the same at the same index."""
    by_key = [
        {
            (record["seed"], record["id"]): record
            for record in read_items(place, name)
            if "error" not in record
        }
        for place in places
    ]
    keys = [key for key in by_key[0] if all(key in each for each in by_key)]
    if not keys:
        raise ConfigError(f"The folders have no finished item of the task {name!r} in common.")
    for key in keys:
        if len({each[key]["input"] for each in by_key}) > 1:
            raise ConfigError(
                f"The item {key[1][:60]!r} of the task {name!r} has other fields or images in one "
                "of the folders, so their numbers do not compare."
            )
    return [[each[key] for key in keys] for each in by_key]


def _compared(
    task: TaskConfig, records: Sequence[Sequence[Record]], places: Sequence[Path]
) -> dict[str, Any]:
    found = [
        numbers(task.summarise(each, place / task.name))
        for each, place in zip(records, places, strict=True)
    ]
    name = next(iter(found[0]))
    return {
        "kind": task.kind,  # type: ignore[attr-defined]
        "items": len(records[0]),
        "higher_is_better": task.higher_is_better,
        "numbers": found,
        # of each folder after the first
        "differences": [numbers(task.differences(records[0], each)) for each in records[1:]],
        "better_and_worse": [_counts(task, name, records[0], each) for each in records[1:]],
    }


def _counts(
    task: TaskConfig, name: str, first: Sequence[Record], second: Sequence[Record]
) -> list[int]:
    """Return on how many items the second is better, and on how many it is worse, by a score."""
    sign = 1 if task.higher_is_better else -1
    differences = [
        sign * (b["scores"][name] - a["scores"][name])
        for a, b in zip(first, second, strict=True)
        if name in a["scores"] and name in b["scores"]
    ]
    return [sum(each > 0 for each in differences), sum(each < 0 for each in differences)]


def _most_different(
    entry: Mapping[str, Any], first: Sequence[Record], last: Sequence[Record]
) -> list[tuple[Record, Record]]:
    """Return items whose first score differs most between two evaluations."""
    name = primary(entry)
    pairs = [
        (abs(a["scores"][name] - b["scores"][name]), a, b)
        for a, b in zip(first, last, strict=True)
        if name in a["scores"] and name in b["scores"]
    ]
    pairs.sort(key=lambda pair: -pair[0])
    return [(a, b) for difference, a, b in pairs[:_N_EXAMPLES] if difference > 0]


def _charts(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a curve of each task's first number over the folders, if there are more than two."""
    folders = result["folders"]
    if len(folders) < 3:
        return {}
    steps = [each.get("made_by", {}).get("steps") for each in folders]
    is_over_steps = all(type(step) is int for step in steps) and len(set(steps)) == len(steps)
    charts = {}
    for name, compared in result["tasks"].items():
        first = next(iter(compared["numbers"][0]))
        values = [each[first] for each in compared["numbers"]]
        x = steps if is_over_steps else list(range(1, len(folders) + 1))
        points = sorted(zip(x, values, strict=True), key=lambda point: point[0])
        band = Band(
            label=first,
            x=[place for place, _ in points],
            middle=[value["value"] for _, value in points],
            low=[value.get("low", value["value"]) for _, value in points],
            high=[value.get("high", value["value"]) for _, value in points],
            colour="#2f5d8c",
        )
        panel = Panel(
            title=f"{name}: {first}",
            x_label="training step" if is_over_steps else "folder",
            y_label=first,
            bands=[band],
        )
        charts[name] = markup(panel_chart(panel))
    return charts
