"""Judging images of scenes of coloured shapes on a plain background.

In GenEval (arXiv 2310.11513) a net judges; here it is a program that finds every object, so that a
model is not blamed for the errors of a detector. :func:`judge` is right on scenes that
:func:`pardalis.documents.scenes.draw_scene` has drawn, also with some noise and blur.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
from jaxtyping import Bool, Float, Int

from pardalis.documents.scenes import DIRECTIONS, PALETTE, Colour, Group, Relation, Scene, Shape


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
    return length > 0 and float(beyond @ np.array(DIRECTIONS[relation])) / length > 0.5


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
