"""Masks: the parts of a prompt that are to be filled in, as Python and files of prompts write them.

This module imports no torch, so that files of prompts can be read without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from pardalis.errors import RequestError

_FORMS = (
    'A mask is {"mask": true}, {"mask": "text"}, {"mask": "image"}, {"mask": "any"} or {"mask": '
    '{"image": IMAGE, "rows": [0.5, 1]}}'
)


@dataclass(frozen=True, slots=True)
class Mask:
    """A part of a prompt that is to be filled in.

    Attributes:
        holds: text, a whole image, or text with whole images between ("any"), which only models
            have learnt whose spans may hold images.
        image: part of this image is to be filled in, and ``holds`` says nothing.
        rows: which part, as fractions of its height from the top; whole rows of codes that this
            touches.

    Raises:
        RequestError: the rows are no part of an image.
    """

    holds: str = "text"  # "text", "image" or "any"
    image: Any = None
    rows: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.holds not in ("text", "image", "any"):
            raise RequestError(f"A mask holds 'text', 'image' or 'any', got {self.holds!r}.")
        _checked_rows(self.rows)

    @property
    def is_image(self) -> bool:
        return self.image is not None or self.holds == "image"


def is_mask(part: object) -> bool:
    """Whether a part of a prompt is a mask, or is written as one: a mapping with "mask"."""
    return isinstance(part, Mask) or (isinstance(part, Mapping) and "mask" in part)


def to_mask(part: Any) -> Mask:
    """Return a mask that may be written as a mapping.

    Raises:
        RequestError: it has another form, or as :class:`Mask` says.
    """
    if isinstance(part, Mask):
        return part
    match dict(part):
        case {"mask": True, **rest} if not rest:
            return Mask()
        case {"mask": str(holds), **rest} if not rest:
            return Mask(holds)
        case {"mask": {"image": image, **how}, **rest} if not rest and not how.keys() - {"rows"}:
            return Mask(image=image, rows=_checked_rows(how.get("rows", (0.0, 1.0))))
    raise RequestError(f"{_FORMS}, got {dict(part)!r:.200}.")


def _checked_rows(rows: Any) -> tuple[float, float]:
    """Return two fractions of an image's height; raises RequestError."""
    if not _are_rows(rows):
        raise RequestError(
            "The rows of a mask must be two numbers from 0 (top) to 1, the smaller one first, "
            f"got {rows!r:.200}."
        )
    return float(rows[0]), float(rows[1])


def _are_rows(rows: Any) -> bool:
    """Whether something is two fractions of an image's height, the smaller one first."""
    if not (isinstance(rows, tuple | list) and len(rows) == 2):
        return False
    return all(isinstance(row, Real) for row in rows) and bool(0 <= rows[0] < rows[1] <= 1)
