"""Scores of generated images by nets, which are given many images of finished items at once."""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from pardalis.documents import open_image
from pardalis.evaluate.metrics.image_scores import Judge
from pardalis.evaluate.tasks.task import Record
from pardalis.progress import bar

_AT_ONCE = 64  # images that are judged together


def judged_images(
    name: str, judges: Sequence[Judge], records: Sequence[Record], folder: Path
) -> list[Record]:
    """Return finished items with the scores of the first image of each one's answer.

    Items that have the scores keep them, and those without an image have none. An item whose score
    is no finite number fails.

    Args:
        name: of the task.
        records: their ``details.text`` is what an image is compared with.
        folder: of the task's results, where the images of records begin.
    """
    names = {judge.name for judge in judges}
    found: list[Record] = []
    left: list[tuple[Record, str]] = []
    for record in records:
        names_of = (each["image"] for each in record["answer"] if "image" in each)
        image = None if names <= record["scores"].keys() else next(names_of, None)
        if image is None:
            found.append(record)
        else:
            left.append((record, image))
    if not left:
        return found
    with bar(f"{name}: {', '.join(sorted(names))}", len(left), "images") as advance:
        for start in range(0, len(left), _AT_ONCE):
            some = left[start : start + _AT_ONCE]
            images = [open_image(folder / image) for _, image in some]
            texts = [str(record["details"]["text"]) for record, _ in some]
            scores = {judge.name: judge.of(images, texts).tolist() for judge in judges}
            for place, (record, _) in enumerate(some):
                of_image = {score: float(values[place]) for score, values in scores.items()}
                found.append(_with_scores(record, of_image))
            advance(len(some))
    return found


def _with_scores(record: Record, scores: Mapping[str, float]) -> Record:
    """Return an item with further scores; it fails if one is not finite."""
    for name, value in scores.items():
        if not isfinite(value):
            head = {key: record[key] for key in ("id", "seed", "input")}
            return head | {"error": f"The score {name!r} of its image is {value}, not a number."}
    return {**record, "scores": {**record["scores"], **scores}}
