"""Preprocessing of an image tokenizer: from any image file to a square of bytes to pixels.

Two implementations of Chameleon's preprocessing are in use, and a tokenizer's config names the one
that its weights were trained with. Both scale the shorter side to the resolution by Lanczos and
crop the centre (:data:`ImageFit` ``crop``). They differ in three points:

============  ================================  ==========================  ====================
              transparency on white             longer side after scaling   byte v becomes
============  ================================  ==========================  ====================
chameleon     in floats, truncated              rounded                     v / 255 * 2 - 1
transformers  in integers, rounded (Pillow)     truncated                   v * 0.0078 - 1
============  ================================  ==========================  ====================

The first is Chameleon's release, the second ``ChameleonImageProcessorPil`` of ``transformers``,
where white is 0.989. Tests check that pixels equal those of the second, and the arithmetic of the
first, bit for bit. Three things differ from both: the EXIF orientation is applied, 16-bit images
are scaled and not clipped, and very elongated images are cropped before scaling.

:data:`ImageFit` ``pad`` scales the longer side instead and adds white borders, so that nothing of
the image is lost. Chameleon does so with images of prompts (arXiv 2405.09818).
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

ImageFit = Literal["crop", "pad"]

CropBox: TypeAlias = tuple[int, int, int, int]
"""Part of an upright image: left, top, right, bottom, in whole pixels."""

# A more elongated image is cropped before scaling: one of 10,000 x 1 pixels would be scaled to
# 5 million x 512, of which only the centre is kept.
_MAX_ASPECT_RATIO = 32


@dataclass(frozen=True)
class Convention:
    """The points in which the two implementations differ."""

    blend: Blend  # how transparency is blended with white
    scaled: Callable[[int, int, int], int]  # (length, fitted side, resolution) -> scaled length
    values: Float[np.ndarray, "256"]  # pixel value of each byte


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
    """How an upright image is cropped, scaled and placed in a square."""

    side: int  # side of the square
    crop: CropBox  # part of the image that is scaled
    size: tuple[int, int]  # width and height after scaling
    offset: tuple[int, int]  # top left corner in the square; negative where the square crops

    def box(self, box: Box) -> Box | None:
        """Map a box of the image to pixels of the square, clipped; None if nothing is left."""
        left, right = self._span(0, box[0], box[2])
        top, bottom = self._span(1, box[1], box[3])
        return (left, top, right, bottom) if left < right and top < bottom else None

    def _span(self, axis: int, start: float, end: float) -> tuple[float, float]:
        offset, size, origin = self.offset[axis], self.size[axis], self.crop[axis]
        length = self.crop[axis + 2] - origin
        low, high = float(max(offset, 0)), float(min(offset + size, self.side))
        return (
            max(low, (start - origin) * size / length + offset),
            min(high, (end - origin) * size / length + offset),
        )


def place_in_square(
    size: tuple[int, int],
    side: int,
    preprocessing: Preprocessing = "chameleon",
    image_fit: ImageFit = "crop",
    window: CropBox | None = None,
) -> Placement:
    """Return how :func:`to_square` places an image of this width and height."""
    crop = window or (0, 0, *size)
    if image_fit == "crop":
        crop = _limit_aspect_ratio(crop)
    width, height = crop[2] - crop[0], crop[3] - crop[1]
    fitted = min(width, height) if image_fit == "crop" else max(width, height)
    scaled = CONVENTIONS[preprocessing].scaled
    new_width, new_height = (max(1, scaled(length, fitted, side)) for length in (width, height))
    # int() truncates towards 0: the size of a cropped or padded margin is rounded down.
    offset = (int((side - new_width) / 2), int((side - new_height) / 2))
    return Placement(side, crop, (new_width, new_height), offset)


def open_square(
    source: ImageSource,
    side: int,
    preprocessing: Preprocessing = "chameleon",
    image_fit: ImageFit = "crop",
    window: CropBox | None = None,
) -> UInt8[np.ndarray, "Y X 3"]:
    """Open an image of any kind and return it as the square of bytes that a tokenizer encodes.

    Raises:
        DataError: the image cannot be opened (:func:`pardalis.documents.open_image`).
    """
    image = open_image(source, CONVENTIONS[preprocessing].blend)
    return to_square(image, side, preprocessing, image_fit, window)


def to_square(
    image: PIL.Image.Image,
    side: int,
    preprocessing: Preprocessing = "chameleon",
    image_fit: ImageFit = "crop",
    window: CropBox | None = None,
) -> UInt8[np.ndarray, "Y X 3"]:
    """Crop or pad an RGB image, or a window of it, to a square of bytes."""
    place = place_in_square(image.size, side, preprocessing, image_fit, window)
    if place.crop != (0, 0, *image.size):
        image = image.crop(place.crop)
    canvas = PIL.Image.new("RGB", (side, side), "white")
    canvas.paste(image.resize(place.size, PIL.Image.Resampling.LANCZOS), place.offset)
    return np.asarray(canvas)


def to_pixels(
    images: UInt8[Tensor, "B 3 Y X"], preprocessing: Preprocessing = "chameleon"
) -> Float[Tensor, "B 3 Y X"]:
    """Return bytes as pixels of about [-1, 1], on the same device.

    A lookup table keeps them exact: computed in 32 bits, half of Chameleon's values would differ in
    the last bit.
    """
    values = torch.from_numpy(CONVENTIONS[preprocessing].values).to(images.device)
    return values[images.long()]


def to_images(pixels: Float[Tensor, "B 3 Y X"]) -> list[PIL.Image.Image]:
    """Return pixels as images, clamped and truncated as in Chameleon."""
    scaled = (pixels.detach().float().clamp(-1, 1) + 1) / 2 * 255
    arrays = scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [PIL.Image.fromarray(array) for array in arrays]


def _limit_aspect_ratio(window: CropBox) -> CropBox:
    """Crop a window to its middle if it is too elongated."""
    left, top, right, bottom = window
    width, height = right - left, bottom - top
    longest = _MAX_ASPECT_RATIO * min(width, height)
    left, top = left + max(0, width - longest) // 2, top + max(0, height - longest) // 2
    return left, top, left + min(width, longest), top + min(height, longest)
