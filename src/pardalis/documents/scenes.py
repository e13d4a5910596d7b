"""Scenes of coloured shapes on a plain background, and drawing them.

A scene says how many objects there are, their colours and shapes, and how two of them lie to each
other, as GenEval's prompts do (arXiv 2310.11513).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np
import PIL.Image
from PIL import ImageDraw

from pardalis.errors import ConfigError

Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "black"]
Shape = Literal["square", "circle", "triangle"]
Relation = Literal["left of", "right of", "above", "below"]

Name = TypeVar("Name")

PALETTE: dict[Colour, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "orange": (245, 133, 20),
    "yellow": (240, 213, 32),
    "green": (44, 160, 70),
    "blue": (40, 85, 205),
    "purple": (145, 60, 185),
    "black": (25, 25, 25),
}
SHAPES: tuple[Shape, ...] = get_args(Shape)
RELATIONS: tuple[Relation, ...] = get_args(Relation)
DIRECTIONS: dict[Relation, tuple[int, int]] = {
    "left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1),
}  # fmt: skip

_BACKGROUND = (255, 255, 255)
_FINE = 4  # pixels drawn for each pixel of a side
_MOST_OBJECTS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Equal objects of a scene; None: any colour, any shape."""

    count: int = 1
    colour: Colour | None = None
    shape: Shape | None = None

    @property
    def text(self) -> str:
        """Words for it: ``two red circles``."""
        noun = self.shape or "object"
        words = [self.colour, noun if self.count == 1 else f"{noun}s"]
        named = " ".join(filter(None, words))
        article = "an" if named[0] in "aeiou" else "a"
        return f"{article if self.count == 1 else _NUMBERS[self.count]} {named}"


_NUMBERS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """All objects of an image.

    Attributes:
        relation: where the one object of the first group lies, seen from that of the second.

    Raises:
        ConfigError: there is no object or more than 16, or a relation without two single objects.
    """

    groups: tuple[Group, ...]
    relation: Relation | None = None

    def __post_init__(self) -> None:
        counts = [group.count for group in self.groups]
        if min(counts, default=0) < 1 or sum(counts) > _MOST_OBJECTS:
            raise ConfigError(
                f"groups must have 1 to {_MOST_OBJECTS} objects together, each group at least 1, "
                f"got {counts}."
            )
        if self.relation and counts != [1, 1]:
            raise ConfigError(
                f'relation "{self.relation}" needs two groups of one object each, got {counts}.'
            )

    @property
    def n_objects(self) -> int:
        return sum(group.count for group in self.groups)

    @property
    def text(self) -> str:
        """A prompt for it: ``a red circle left of a blue square``."""
        names = [group.text for group in self.groups]
        if self.relation:
            return f"{names[0]} {self.relation} {names[1]}"
        return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def draw_scene(scene: Scene, side: int, generator: np.random.Generator) -> PIL.Image.Image:
    """Draw a scene at random places, with random sizes, and colours and shapes where it names none.

    Objects do not touch, and keep a distance from the edges.

    Args:
        side: pixels of each side; in fewer than 16 for each of the objects that stand side by
            side, shapes are not told apart for certain.
    """
    objects = [group for group in scene.groups for _ in range(group.count)]
    if scene.relation:
        places = _related_places(scene.relation, generator)
    else:
        places = _places(len(objects), generator)
    image = PIL.Image.new("RGB", (side * _FINE, side * _FINE), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    for group, (x, y, size) in zip(objects, places, strict=True):
        colour = _one_of(tuple(PALETTE) if group.colour is None else (group.colour,), generator)
        shape = _one_of(SHAPES if group.shape is None else (group.shape,), generator)
        left, top, right, bottom = (
            round(side * _FINE * each)
            for each in (x - size / 2, y - size / 2, x + size / 2, y + size / 2)
        )
        if shape == "square":
            draw.rectangle((left, top, right, bottom), fill=PALETTE[colour])
        elif shape == "circle":
            draw.ellipse((left, top, right, bottom), fill=PALETTE[colour])
        else:
            corners = [(left, bottom), (right, bottom), ((left + right) // 2, top)]
            draw.polygon(corners, fill=PALETTE[colour])
    return image.resize((side, side), PIL.Image.Resampling.BOX)


def _one_of(names: Sequence[Name], generator: np.random.Generator) -> Name:
    return names[int(generator.integers(len(names)))]


def _places(n: int, generator: np.random.Generator) -> list[tuple[float, float, float]]:
    """Return a centre and a size for each object, each in a cell of its own of a square grid."""
    cells = max(2, math.isqrt(n - 1) + 1)
    chosen = generator.choice(cells**2, n, replace=False)
    places = []
    for cell in chosen.tolist():
        size = generator.uniform(0.6, 0.8) / cells
        free = (0.9 / cells - size) / 2  # so that neighbours stay apart
        dx, dy = generator.uniform(-free, free, 2)
        places.append(((cell % cells + 0.5) / cells + dx, (cell // cells + 0.5) / cells + dy, size))
    return places


def _related_places(
    relation: Relation, generator: np.random.Generator
) -> list[tuple[float, float, float]]:
    """Return places of two objects, whose line is at most 30 degrees away from the relation's."""
    sizes = generator.uniform(0.24, 0.34, 2)
    gap = sum(sizes) / 2 + generator.uniform(0.08, 0.2)  # between the centres
    across = gap * generator.uniform(-0.55, 0.55)
    dx, dy = DIRECTIONS[relation]
    offset = np.array([gap * dx + across * dy, gap * dy + across * dx]) / 2
    ends = np.array([offset, -offset])
    room = 0.48 - sizes[:, None] / 2
    low, high = (-room - ends).max(0), (room - ends).min(0)
    middle = generator.uniform(low, high) + 0.5
    return [(*(middle + end).tolist(), float(size)) for end, size in zip(ends, sizes, strict=True)]
