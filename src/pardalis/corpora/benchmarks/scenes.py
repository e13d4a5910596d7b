"""Tasks about drawn scenes: counting, colours, positions, and prompts for images of such scenes.

A scene is coloured shapes on white that do not touch. Its specification is part of each question::

    {"groups": [{"count": 2, "colour": "red", "shape": "circle"}, ...], "relation": null}

``relation`` says where the one object of the first group lies, seen from that of the second.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL.Image
from PIL import ImageDraw

from pardalis.corpora.benchmarks.materials import Materials, in_split
from pardalis.corpora.benchmarks.questions import (
    Benchmark,
    Question,
    Split,
    TaskImage,
    with_wrong_ones,
)

Group: TypeAlias = dict[str, Any]
Scene: TypeAlias = dict[str, Any]

COLOURS = {
    "red": (214, 39, 40),
    "orange": (245, 133, 20),
    "yellow": (240, 213, 32),
    "green": (44, 160, 70),
    "blue": (40, 85, 205),
    "purple": (145, 60, 185),
    "black": (25, 25, 25),
}
SHAPES = ("square", "circle", "triangle")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = ("one", "two", "three", "four", "five", "six")

_FINE = 4  # pixels drawn for each pixel of a side
_CELLS = 3  # a side, each with at most one object
_LEAST_RADIUS, _LARGEST_RADIUS = 0.09, 0.13  # of an object, as shares of the side
_GAP = 0.02  # between an object and the edge of its cell
_MOST_OTHERS = 3  # objects that are not counted
_PROMPTS_TESTED = 50  # percent of all prompts


def draw_scene(scene: Scene, side: int, generator: np.random.Generator) -> PIL.Image.Image:
    """Draw a scene of at most nine objects at random places, with random sizes.

    Two objects with a relation stand in one line or column of a grid of 3 x 3, so the direction
    from one to the other is at most 30 degrees away from the relation's.
    """
    objects = [group for group in scene["groups"] for _ in range(group["count"])]
    if scene["relation"]:
        cells = _related_cells(scene["relation"], generator)
    else:
        chosen = generator.choice(_CELLS**2, len(objects), replace=False).tolist()
        cells = [divmod(cell, _CELLS) for cell in chosen]
    image = PIL.Image.new("RGB", (side * _FINE, side * _FINE), "white")
    canvas = ImageDraw.Draw(image)
    for group, (row, column) in zip(objects, cells, strict=True):
        radius = generator.uniform(_LEAST_RADIUS, _LARGEST_RADIUS)
        free = 0.5 / _CELLS - radius - _GAP
        x, y = (np.array([column, row]) + 0.5) / _CELLS + generator.uniform(-free, free, 2)
        _draw_object(canvas, group, tuple(side * _FINE * each for each in (x, y, radius)))
    return image.resize((side, side), PIL.Image.Resampling.BOX)


def _draw_object(canvas: ImageDraw.ImageDraw, group: Group, place: tuple[float, ...]) -> None:
    x, y, radius = place
    left, top, right, bottom = map(round, (x - radius, y - radius, x + radius, y + radius))
    colour = COLOURS[group["colour"]]
    match group["shape"]:
        case "square":
            canvas.rectangle((left, top, right, bottom), fill=colour)
        case "circle":
            canvas.ellipse((left, top, right, bottom), fill=colour)
        case _:
            canvas.polygon([(left, bottom), (right, bottom), (round(x), top)], fill=colour)


def _related_cells(relation: str, generator: np.random.Generator) -> list[tuple[int, int]]:
    """Return the row and the column of two objects."""
    along = sorted(generator.choice(_CELLS, 2, replace=False).tolist())
    if relation in ("right of", "below"):
        along.reverse()
    across = int(generator.integers(_CELLS))
    if relation in ("above", "below"):
        return [(place, across) for place in along]
    return [(across, place) for place in along]


# ── questions ────────────────────────────────────────────────────────────────────────────────────


def _counts(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Question]:
    while True:
        shape, other = _some(SHAPES, 2, generator)
        count = int(generator.integers(len(NUMBERS))) + 1
        others = int(generator.integers(_MOST_OTHERS + 1))
        colours = _some(tuple(COLOURS), 2, generator)
        groups = [_group(colours[0], shape, count)]
        if others:
            groups.append(_group(colours[1], other, others))
        found = with_wrong_ones(NUMBERS[count - 1], NUMBERS, str.__ne__, generator)
        assert found is not None  # as there are so many numbers
        choices, answer = found
        yield _shown("count", {"groups": groups, "relation": None}, materials, generator) | {
            "shapes": f"{shape}s",
            "choices": choices,
            "answer": answer,
        }


def _colours(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Question]:
    while True:
        *shown, another = _some(tuple(COLOURS), len(SHAPES) + 1, generator)
        groups = [
            _group(colour, shape)
            for colour, shape in zip(shown, _some(SHAPES, len(SHAPES), generator), strict=True)
        ]
        found = with_wrong_ones(shown[0], [*shown[1:], another], str.__ne__, generator)
        assert found is not None  # as they are all different
        choices, answer = found
        yield _shown("colour", {"groups": groups, "relation": None}, materials, generator) | {
            "shape": groups[0]["shape"],
            "choices": choices,
            "answer": answer,
        }


def _positions(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Question]:
    while True:
        scene = _pair(generator)
        found = with_wrong_ones(scene["relation"], RELATIONS, str.__ne__, generator)
        assert found is not None  # as there are four
        choices, answer = found
        first, second = (f"{group['colour']} {group['shape']}" for group in scene["groups"])
        yield _shown("position", scene, materials, generator) | {
            "first": first,
            "second": second,
            "choices": choices,
            "answer": answer,
        }


def _prompts(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Question]:
    """Yield prompts that say a count, two colours, and a position, in turn; each once."""
    seen: set[str] = set()
    while True:
        for asks in ("count", "colour", "position"):
            scene = _pair(generator)
            if asks == "count":
                count = int(generator.integers(2, len(NUMBERS) + 1))
                scene = {"groups": [scene["groups"][0] | {"count": count}], "relation": None}
            elif asks == "colour":
                scene["relation"] = None
            prompt = text_of(scene)
            if prompt not in seen and in_split(prompt, _PROMPTS_TESTED)(split):
                seen.add(prompt)
                shown = _shown("prompt", scene, materials, generator)
                yield shown | {"prompt": prompt, "asks": asks}


def text_of(scene: Scene) -> str:
    """Return a prompt for a scene: ``a red circle left of a blue square``."""
    names = []
    for group in scene["groups"]:
        named = f"{group['colour']} {group['shape']}"
        if group["count"] > 1:
            names.append(f"{NUMBERS[group['count'] - 1]} {named}s")
        else:
            names.append(f"{'an' if named[0] in 'aeiou' else 'a'} {named}")
    return f" {scene['relation'] or 'and'} ".join(names)


def _pair(generator: np.random.Generator) -> Scene:
    """Return two objects of different colours and shapes, and a relation."""
    colours, shapes = _some(tuple(COLOURS), 2, generator), _some(SHAPES, 2, generator)
    groups = [_group(colour, shape) for colour, shape in zip(colours, shapes, strict=True)]
    return {"groups": groups, "relation": _some(RELATIONS, 1, generator)[0]}


def _shown(
    kind: str, scene: Scene, materials: Materials, generator: np.random.Generator
) -> Question:
    """Return the fields of a scene that is drawn; its name is a number, the same in every run."""
    number = f"{int(generator.integers(2**48)):012x}"
    image = draw_scene(scene, materials.side, generator)
    return {
        "id": number,
        "image": TaskImage(Path("images", f"{kind}.{number}.png"), image),
        "scene": scene,
    }


def _group(colour: str, shape: str, count: int = 1) -> Group:
    return {"count": count, "colour": colour, "shape": shape}


def _some(names: Sequence[str], n: int, generator: np.random.Generator) -> list[str]:
    return [names[place] for place in generator.choice(len(names), n, replace=False).tolist()]


BENCHMARKS = (
    Benchmark("scene_count", "how many shapes of a kind a scene has", _counts, ()),
    Benchmark("scene_colour", "the colour of one of three shapes", _colours, ()),
    Benchmark("scene_position", "how one shape lies to another", _positions, ()),
    Benchmark("scene_prompt", "prompts of scenes for text-to-image", _prompts, (), 0),
)
