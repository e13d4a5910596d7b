"""What an image tokenizer sees of an image: from any file to a square of bytes to pixels.

Weights fit only the pixels they were trained on. Two implementations of Chameleon's preprocessing
are in use, and a tokenizer's config names its own. Both scale the shorter side to the resolution by
Lanczos and keep the centre (:data:`Fit` ``crop``). They differ in three things:

============  ================================  ==========================  ====================
              transparency on white             longer side after scaling   byte v becomes
============  ================================  ==========================  ====================
chameleon     in floats, fractions cut off      rounded                     v / 255 * 2 - 1
transformers  in integers, rounded (Pillow)     fraction cut off            v * 0.0078 - 1
============  ================================  ==========================  ====================

The first is Chameleon's release, the second ``ChameleonImageProcessorPil`` of ``transformers``,
where white is 0.989. Pixels are tested to equal, bit for bit, those of the second and the plain
arithmetic of the first. Three things are ours: images stand upright as their EXIF data say,
those of 16 bits are scaled and not clipped, and very elongated ones are cut before scaling.

The other way to fit a square, ``pad``, scales the longer side instead and adds white borders, so
that nothing of the image is lost: for those that people show (arXiv 2405.09818).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pardalis.documents.document import Box, ImageSource
from pardalis.documents.images import Blend, open_image
from pardalis.vq.config import Preprocessing

Fit = Literal["crop", "pad"]

CropBox: TypeAlias = tuple[int, int, int, int]
"""The part of an upright image that is used at all: left, top, right, bottom, in whole pixels."""

# The rest of a more elongated image is cut off before scaling, which else would need memory
# for an image of 10,000 x 1 pixels at 5 million x 512. Only the middle square is kept anyway.
_MOST_ELONGATED = 32


@dataclass(frozen=True)
class Convention:
    """What the implementations disagree about."""

    blend: Blend  # of transparency with white
    scaled: Callable[[int, int, int], int]  # (length, fitted side, resolution) to a new length
    values: Float[np.ndarray, "256"]  # pixel of each byte


_BYTES = np.arange(256, dtype=np.float64)

CONVENTIONS: dict[Preprocessing, Convention] = {
    "chameleon": Convention(
        blend="chameleon",
        scaled=lambda length, fitted, resolution: round(resolution / fitted * length),
        values=(_BYTES / 255 * 2 - 1).astype(np.float32),
    ),
    "transformers": Convention(
        blend="pillow",
        scaled=lambda length, fitted, resolution: int(resolution * length / fitted),
        values=(_BYTES * 0.0078).astype(np.float32) - np.float32(1),
    ),
}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the pixels of an upright image stand in the square made of it."""

    side: int  # of the square
    cut: CropBox  # what is scaled; the rest of the image is not used
    size: tuple[int, int]  # width and height that it is scaled to
    offset: tuple[int, int]  # of its left top corner in the square; below 0 where it is cropped

    def box(self, box: Box) -> Box | None:
        """Return a box of the image in pixels of the square, clipped; None if nothing is left."""
        left, right = self._span(0, box[0], box[2])
        top, bottom = self._span(1, box[1], box[3])
        return (left, top, right, bottom) if left < right and top < bottom else None

    def _span(self, axis: int, start: float, end: float) -> tuple[float, float]:
        offset, size, origin = self.offset[axis], self.size[axis], self.cut[axis]
        length = self.cut[axis + 2] - origin
        low, high = float(max(offset, 0)), float(min(offset + size, self.side))
        return (
            max(low, (start - origin) * size / length + offset),
            min(high, (end - origin) * size / length + offset),
        )


def placement(
    size: tuple[int, int],
    side: int,
    preprocessing: Preprocessing = "chameleon",
    fit: Fit = "crop",
    window: CropBox | None = None,
) -> Placement:
    """Return how :func:`square` places an image of that width and height; offsets round down."""
    cut = window or (0, 0, *size)
    if fit == "crop":
        cut = _middle(cut)
    width, height = cut[2] - cut[0], cut[3] - cut[1]
    fitted = min(width, height) if fit == "crop" else max(width, height)
    scaled = CONVENTIONS[preprocessing].scaled
    new_width, new_height = (max(1, scaled(length, fitted, side)) for length in (width, height))
    # int() cuts towards 0, so that cropped and padded offsets are both rounded down.
    offset = (int((side - new_width) / 2), int((side - new_height) / 2))
    return Placement(side, cut, (new_width, new_height), offset)


def open_square(
    source: ImageSource,
    side: int,
    preprocessing: Preprocessing = "chameleon",
    fit: Fit = "crop",
    window: CropBox | None = None,
) -> UInt8[np.ndarray, "Y X 3"]:
    """Open an image of any kind and return the square of bytes that a tokenizer sees of it.

    Raises:
        DataError: the image cannot be opened (:func:`pardalis.documents.open_image`).
    """
    image = open_image(source, CONVENTIONS[preprocessing].blend)
    return square(image, side, preprocessing, fit, window)


def square(
    image: PIL.Image.Image,
    side: int,
    preprocessing: Preprocessing = "chameleon",
    fit: Fit = "crop",
    window: CropBox | None = None,
) -> UInt8[np.ndarray, "Y X 3"]:
    """Return an RGB image, or a window of it, fitted to a square of bytes."""
    place = placement(image.size, side, preprocessing, fit, window)
    if place.cut != (0, 0, *image.size):
        image = image.crop(place.cut)
    canvas = PIL.Image.new("RGB", (side, side), "white")
    canvas.paste(image.resize(place.size, PIL.Image.Resampling.LANCZOS), place.offset)
    return np.asarray(canvas)


def to_pixels(
    images: UInt8[Tensor, "B 3 Y X"], preprocessing: Preprocessing = "chameleon"
) -> Float[Tensor, "B 3 Y X"]:
    """Return the pixels of bytes, about [-1, 1], on the device of the bytes.

    They are looked up: computed in 32 bits, half of Chameleon's would differ in the last bit.
    """
    values = torch.from_numpy(CONVENTIONS[preprocessing].values).to(images.device)
    return values[images.long()]


def to_images(pixels: Float[Tensor, "B 3 Y X"]) -> list[PIL.Image.Image]:
    """Return images of pixels, clamped; fractions are cut off, as Chameleon does."""
    scaled = (pixels.detach().float().clamp(-1, 1) + 1) / 2 * 255
    arrays = scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [PIL.Image.fromarray(array) for array in arrays]


def _middle(window: CropBox) -> CropBox:
    """Return the middle of a window that is too elongated, and any other as it is."""
    left, top, right, bottom = window
    width, height = right - left, bottom - top
    longest = _MOST_ELONGATED * min(width, height)
    left, top = left + max(0, width - longest) // 2, top + max(0, height - longest) // 2
    return left, top, left + min(width, longest), top + min(height, longest)
