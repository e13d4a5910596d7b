"""The page of an evaluation: numbers with intervals, and items that went badly or were drawn."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pardalis.documents import Image, open_image
from pardalis.errors import DataError
from pardalis.evaluate.tasks.results import IMAGES, PAGE, read_items
from pardalis.evaluate.tasks.task import Record
from pardalis.evaluate.templates import image_uri, render
from pardalis.files import write_text
from pardalis.seeds import numpy_generator

_N_EXAMPLES = 6  # of each kind on a page
_LONGEST = 1200  # characters of a text on a page

ImagesOf: TypeAlias = Callable[[Record, str], Image | None]
"""Finds an image of an item by the name that its record has for it."""


def write_page(
    folder: Path, results: Mapping[str, Any], images: Mapping[str, ImagesOf] | None = None
) -> None:
    """Write index.html for the content of results.json.

    Args:
        images: how to find the images of data of each task; the page has only the names of others,
            unless they are files where the task found them.
    """
    shown = {}
    for name, entry in results["tasks"].items():
        finished = [record for record in read_items(folder, name) if "error" not in record]
        find = finder(folder / name, entry, (images or {}).get(name))
        shown[name] = {
            "worst": [card(record, find) for record in worst(finished, entry)],
            "drawn": [card(record, find) for record in drawn(finished, name)],
        }
    page = render(
        Path(__file__).with_name("results_page.html.jinja"),
        {"results": results, "shown": shown, "primary": primary},
    )
    write_text(folder / PAGE, page)


def primary(entry: Mapping[str, Any]) -> str | None:
    """Return the name of the most important number of a task; None if no item is finished."""
    return next(iter(entry["numbers"]), None)


def worst(records: Sequence[Record], entry: Mapping[str, Any]) -> list[Record]:
    """Return the items with the worst scores, of equal ones those with the smallest margin.

    They are sorted by the first number that is a score of items, as that of a corpus is not.
    """
    scored = {name for record in records for name in record["scores"]}
    name = next((name for name in entry["numbers"] if name in scored), None)
    having = [record for record in records if name in record["scores"]]
    sign = -1 if name == primary(entry) and not entry["higher_is_better"] else 1

    def badness(record: Record) -> tuple[float, float]:
        return sign * record["scores"][name], record["scores"].get("margin", 0.0)

    return sorted(having, key=badness)[:_N_EXAMPLES]


def drawn(records: Sequence[Record], name: str) -> list[Record]:
    """Return some items at random, always the same."""
    n = min(_N_EXAMPLES, len(records))
    generator = numpy_generator(0, "page", name)
    return [records[i] for i in sorted(generator.choice(len(records), n, replace=False).tolist())]


def card(record: Record, find: Callable[[Record, str], str | None]) -> dict[str, Any]:
    """Return what a page shows of an item; images as data URIs where they are found."""

    def parts(segments: Sequence[Mapping[str, str]] | None) -> list[dict[str, str | None]]:
        return [
            {"role": each.get("role"), "text": _short(each["text"])}
            if "text" in each
            else {
                "role": each.get("role"),
                "image": each["image"],
                "uri": find(record, each["image"]),
            }
            for each in segments or ()
        ]

    return {
        "id": record["id"],
        "seed": record["seed"],
        "prompt": parts(record["prompt"]),
        "answer": parts(record["answer"]),
        "expected": parts(record["expected"]),
        "scores": record["scores"],
    }


def finder(
    folder: Path, entry: Mapping[str, Any], of_data: ImagesOf | None = None
) -> Callable[[Record, str], str | None]:
    """Return how to find an image of a record as a data URI; None where it is not to be found.

    Args:
        folder: of the task's results.
        of_data: how to find images of the data, before their files are looked for.
    """

    def find(record: Record, name: str) -> str | None:
        image = of_data(record, name) if of_data is not None else None
        places = [Path(entry["data"]["folder"]) / name]
        if name.startswith(f"{IMAGES}/"):
            places.insert(0, folder / name)
        files = (Image(path) for path in places if path.is_file())
        if (image := image or next(files, None)) is None:
            return None
        try:
            return image_uri(open_image(image.source))
        except DataError:
            return None

    return find


def _short(text: str) -> str:
    """Return a text for the page: of a long one the end, where the question stands."""
    return text if len(text) <= _LONGEST else f"[...] {text[-_LONGEST:]}"
