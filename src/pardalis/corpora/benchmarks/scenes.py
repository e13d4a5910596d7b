"""Tasks about drawn scenes: counting, colours, positions, and prompts for images of such scenes.

A scene is coloured shapes on white that do not touch. Its specification is part of each question::

    {"groups": [{"count": 2, "colour": "red", "shape": "circle"}, ...], "relation": null}

``relation`` says where the one object of the first group lies, seen from that of the second.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from pardalis.corpora.benchmarks.materials import Materials, in_split
from pardalis.corpora.benchmarks.questions import (
    Benchmark,
    Question,
    Split,
    TaskImage,
    with_wrong_ones,
)
from pardalis.documents.scenes import (
    PALETTE,
    RELATIONS,
    SHAPES,
    Colour,
    Group,
    Scene,
    Shape,
    draw_scene,
)

Name = TypeVar("Name", bound=str)

NUMBERS = ("one", "two", "three", "four", "five", "six")

_MOST_OTHERS = 3  # objects that are not counted
_PROMPTS_TESTED = 50  # percent of all prompts


def _counts(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Question]:
    while True:
        shape, other = _some(SHAPES, 2, generator)
        count = int(generator.integers(len(NUMBERS))) + 1
        others = int(generator.integers(_MOST_OTHERS + 1))
        colours = _some(tuple(PALETTE), 2, generator)
        groups = [_group(colours[0], shape, count)]
        if others:
            groups.append(_group(colours[1], other, others))
        scene = Scene(groups=tuple(groups))
        found = with_wrong_ones(NUMBERS[count - 1], NUMBERS, str.__ne__, generator)
        assert found is not None  # as there are so many numbers
        choices, answer = found
        yield _shown("count", scene, materials, generator) | {
            "shapes": f"{shape}s",
            "choices": choices,
            "answer": answer,
        }


def _colours(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Question]:
    while True:
        *shown, another = _some(tuple(PALETTE), len(SHAPES) + 1, generator)
        groups = tuple(
            _group(colour, shape)
            for colour, shape in zip(shown, _some(SHAPES, len(SHAPES), generator), strict=True)
        )
        found = with_wrong_ones(shown[0], [*shown[1:], another], str.__ne__, generator)
        assert found is not None  # as they are all different
        choices, answer = found
        yield _shown("colour", Scene(groups=groups), materials, generator) | {
            "shape": groups[0].shape,
            "choices": choices,
            "answer": answer,
        }


def _positions(
    materials: Materials, split: Split, generator: np.random.Generator
) -> Iterator[Question]:
    while True:
        scene = _pair(generator)
        assert scene.relation is not None
        found = with_wrong_ones(scene.relation, RELATIONS, str.__ne__, generator)
        assert found is not None  # as there are four
        choices, answer = found
        first, second = (f"{group.colour} {group.shape}" for group in scene.groups)
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
                scene = Scene(groups=(replace(scene.groups[0], count=count),))
            elif asks == "colour":
                scene = replace(scene, relation=None)
            prompt = scene.text
            if prompt not in seen and in_split(prompt, _PROMPTS_TESTED)(split):
                seen.add(prompt)
                shown = _shown("prompt", scene, materials, generator)
                yield shown | {"prompt": prompt, "asks": asks}


def _pair(generator: np.random.Generator) -> Scene:
    """Return two objects of different colours and shapes, and a relation."""
    colours, shapes = _some(tuple(PALETTE), 2, generator), _some(SHAPES, 2, generator)
    groups = [_group(colour, shape) for colour, shape in zip(colours, shapes, strict=True)]
    return Scene(groups=tuple(groups), relation=_some(RELATIONS, 1, generator)[0])


def _shown(
    kind: str, scene: Scene, materials: Materials, generator: np.random.Generator
) -> Question:
    """Return the fields of a scene that is drawn; its name is a number, the same in every run."""
    number = f"{int(generator.integers(2**48)):012x}"
    image = draw_scene(scene, materials.side, generator)
    return {
        "id": number,
        "image": TaskImage(Path("images", f"{kind}.{number}.png"), image),
        "scene": asdict(scene),
    }


def _group(colour: Colour, shape: Shape, count: int = 1) -> Group:
    return Group(count=count, colour=colour, shape=shape)


def _some(names: Sequence[Name], n: int, generator: np.random.Generator) -> list[Name]:
    return [names[place] for place in generator.choice(len(names), n, replace=False).tolist()]


BENCHMARKS = (
    Benchmark("scene_count", "how many shapes of a kind a scene has", _counts, ()),
    Benchmark("scene_colour", "the colour of one of three shapes", _colours, ()),
    Benchmark("scene_position", "how one shape lies to another", _positions, ()),
    Benchmark("scene_prompt", "prompts of scenes for text-to-image", _prompts, (), 0),
)
