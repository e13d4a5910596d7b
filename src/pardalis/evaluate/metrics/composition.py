"""Scenes of coloured shapes on a plain background: drawing them, and judging images of them.

A scene says how many objects there are, their colours and shapes, and how two of them lie to each
other, as GenEval's prompts do (arXiv 2310.11513). There a net judges; here it is a program that
finds every object, so that a model is not blamed for the errors of a detector.
:func:`judge` is right on scenes that :func:`draw_scene` has drawn, also with some noise and blur.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np
import PIL.Image
from jaxtyping import Bool, Float, Int
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
_DIRECTIONS: dict[Relation, tuple[int, int]] = {
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


@dataclass(frozen=True, slots=True)
class Found:
    """An object that was found in an image; lengths are shares of its sides."""

    colour: Colour
    shape: Shape | None  # None: another one
    x: float  # of its centre, from the left
    y: float  # from the top
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """Which parts of a scene an image shows, and all objects that were found in it."""

    count: bool  # as many objects as the scene has
    colours: bool  # the colours that the scene names, each as often
    shapes: bool
    relation: bool  # True where the scene has none
    right: bool  # the objects are exactly those of the scene, and lie as it says
    found: tuple[Found, ...]


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
    dx, dy = _DIRECTIONS[relation]
    offset = np.array([gap * dx + across * dy, gap * dy + across * dx]) / 2
    ends = np.array([offset, -offset])
    room = 0.48 - sizes[:, None] / 2
    low, high = (-room - ends).max(0), (room - ends).min(0)
    middle = generator.uniform(low, high) + 0.5
    return [(*(middle + end).tolist(), float(size)) for end, size in zip(ends, sizes, strict=True)]


def judge(image: PIL.Image.Image, scene: Scene) -> Judgement:
    """Compare the objects that :func:`find_objects` finds with those of a scene."""
    found = find_objects(image)
    wanted = [group for group in scene.groups for _ in range(group.count)]
    pairs = _matched(wanted, found)
    as_many = len(found) == len(wanted)
    lies = scene.relation is None or any(
        _lies(a, b, scene.relation)
        for a in found
        for b in found
        if a is not b and _fits(wanted[0], a) and _fits(wanted[1], b)
    )
    return Judgement(
        count=as_many,
        colours=_has_all([g.colour for g in wanted], [each.colour for each in found]),
        shapes=_has_all([g.shape for g in wanted], [each.shape for each in found]),
        relation=lies,
        right=as_many and pairs == len(wanted) and lies,
        found=tuple(found),
    )


def _has_all(wanted: Sequence[str | None], found: Sequence[str | None]) -> bool:
    """Tell whether each name that is wanted was found as often; None is wanted of nothing."""
    return Counter(filter(None, wanted)) <= Counter(filter(None, found))


def _fits(group: Group, found: Found) -> bool:
    return group.colour in (None, found.colour) and group.shape in (None, found.shape)


def _matched(wanted: Sequence[Group], found: Sequence[Found]) -> int:
    """Return how many wanted objects can have a found one to themselves (Kuhn's method)."""
    taken: dict[int, int] = {}  # which wanted object has which one found

    def place(number: int, tried: set[int]) -> bool:
        for j, other in enumerate(found):
            if j not in tried and _fits(wanted[number], other):
                tried.add(j)
                if j not in taken or place(taken[j], tried):
                    taken[j] = number
                    return True
        return False

    return sum(place(number, set()) for number in range(len(wanted)))


def _lies(a: Found, b: Found, relation: Relation) -> bool:
    """Tell whether ``a`` lies in a direction from ``b``, at most 60 degrees away, as in GenEval.

    A tenth of both widths and heights is taken from the distance of centres first.
    """
    offset = np.array([a.x - b.x, a.y - b.y])
    slack = 0.1 * np.array([a.width + b.width, a.height + b.height])
    beyond = np.sign(offset) * np.maximum(np.abs(offset) - slack, 0)
    length = float(np.linalg.norm(beyond))
    return length > 0 and float(beyond @ np.array(_DIRECTIONS[relation])) / length > 0.5


_WORKED_SIDE = 128  # pixels, to which larger images are reduced
_LEAST_AREA = 0.002  # share of the image; a smaller object is noise
_FAR = 110.0  # from the nearest mix of a colour and the background, in RGB: no colour of ours
_LIKE_BACKGROUND = 60.0  # RGB; objects of such a colour cannot be seen
_MOST_SHARE = 1.15  # for colours that are stronger than those of the palette
_ANGLES = np.deg2rad(np.arange(0, 90, 5))


def find_objects(image: PIL.Image.Image) -> list[Found]:
    """Return the objects of an image on a plain background, those with the largest area first.

    The background is the median of the border. Each pixel is taken as a mix of the
    background and one colour of the palette; the object begins where the colour is a half. Objects
    are parts that hang together, divided by colours where two touch. The shape follows from the
    share of the smallest rectangle around it, at any angle, that it fills: a square 1, a circle
    0.79, a triangle 0.5.
    """
    image = image.convert("RGB")
    if (longest := max(image.size)) > _WORKED_SIDE:
        sides = tuple(max(1, round(n * _WORKED_SIDE / longest)) for n in image.size)
        image = image.resize((sides[0], sides[1]), PIL.Image.Resampling.BOX)
    pixels = np.asarray(image, np.float64)
    shares, colours = _unmixed(pixels, _background(pixels))
    mask = shares > 0.5
    least = _LEAST_AREA * mask.size
    found = []
    for part in _parts(mask, least):
        box = _box(part)
        for piece, colour in _by_colour(part[box], shares[box], colours[box], least):
            whole = np.zeros_like(part)
            whole[box] = piece
            found.append((int(piece.sum()), _found(whole, colour)))
    return [each for _, each in sorted(found, key=lambda item: -item[0])]


def _by_colour(
    part: Bool[np.ndarray, "y x"],
    shares: Float[np.ndarray, "y x"],
    colours: Int[np.ndarray, "y x"],
    least: float,
) -> list[tuple[Bool[np.ndarray, "y x"], Colour]]:
    """Divide a part by colours if two of them have pieces of some size; their edges have others."""
    names = tuple(PALETTE)
    weights = np.bincount(colours[part], shares[part], len(names))
    large = max(least, 0.15 * part.sum())
    pieces = [
        (piece, names[number])
        for number in np.nonzero(weights >= large / 2)[0].tolist()
        for piece in _parts(part & (colours == number), large)
    ]
    return pieces if len(pieces) > 1 else [(part, names[int(weights.argmax())])]


def _box(mask: Bool[np.ndarray, "Y X"]) -> tuple[slice, slice]:
    """Return the rows and columns that hold all of a mask."""
    rows, columns = (np.nonzero(mask.any(axis))[0] for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _background(pixels: Float[np.ndarray, "Y X 3"]) -> Float[np.ndarray, " 3"]:
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    median: Float[np.ndarray, " 3"] = np.median(border, axis=0)
    return median


def _unmixed(
    pixels: Float[np.ndarray, "Y X 3"], background: Float[np.ndarray, " 3"]
) -> tuple[Float[np.ndarray, "Y X"], Int[np.ndarray, "Y X"]]:
    """Return the share of the best colour in each pixel, and its number in the palette."""
    directions = np.array(list(PALETTE.values()), np.float64) - background
    lengths = np.square(directions).sum(1)
    difference = pixels - background
    shares = (difference @ directions.T) / np.maximum(lengths, 1)
    shares = np.where(lengths < _LIKE_BACKGROUND**2, 0, np.clip(shares, 0, _MOST_SHARE))
    mixes = shares[..., None] * directions
    distances = np.linalg.norm(difference[..., None, :] - mixes, axis=-1)
    best = distances.argmin(-1)
    share = np.take_along_axis(shares, best[..., None], -1)[..., 0]
    near = np.take_along_axis(distances, best[..., None], -1)[..., 0] < _FAR
    return np.where(near, share, 0.0), best


def _parts(mask: Bool[np.ndarray, "Y X"], least: float) -> list[Bool[np.ndarray, "Y X"]]:
    """Return the parts of a mask that hang together by sides of pixels, from a least area on.

    Runs of pixels in a row are united with those of the row above that they touch.
    """
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = (each.tolist() for each in np.nonzero(edges > 0))
    ends = np.nonzero(edges < 0)[1].tolist()
    parents = list(range(len(rows)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    first = 0  # the first run above that may touch
    for run, row in enumerate(rows):
        while rows[first] < row - 1 or (rows[first] == row - 1 and ends[first] <= starts[run]):
            first += 1
        above = first
        while rows[above] == row - 1 and starts[above] < ends[run]:
            parents[root(run)] = root(above)
            above += 1
    members: dict[int, list[int]] = {}
    for run in range(len(rows)):
        members.setdefault(root(run), []).append(run)
    parts = []
    for runs in members.values():
        if sum(ends[run] - starts[run] for run in runs) >= least:
            part = np.zeros_like(mask)
            for run in runs:
                part[rows[run], starts[run] : ends[run]] = True
            parts.append(part)
    return parts


def _found(part: Bool[np.ndarray, "Y X"], colour: Colour) -> Found:
    ys, xs = np.nonzero(part)
    height, width = part.shape
    return Found(
        colour=colour,
        shape=_shape(np.stack([xs, ys], 1).astype(np.float64)),
        x=float(xs.mean() + 0.5) / width,
        y=float(ys.mean() + 0.5) / height,
        width=float(np.ptp(xs) + 1) / width,
        height=float(np.ptp(ys) + 1) / height,
    )


def _shape(points: Float[np.ndarray, "n 2"]) -> Shape | None:
    axes = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)])
    turned = np.stack([-axes[1], axes[0]])
    pixel = np.abs(axes).sum(0)  # the extent of one pixel
    widths, heights = (np.ptp(points @ each, axis=0) + pixel for each in (axes, turned))
    best = int((widths * heights).argmin())
    fill = len(points) / float(widths[best] * heights[best])
    aspect = float(min(widths[best], heights[best]) / max(widths[best], heights[best]))
    if aspect < 0.7 or fill < 0.4:
        return None
    return "square" if fill > 0.88 else "circle" if fill > 0.66 else "triangle"
