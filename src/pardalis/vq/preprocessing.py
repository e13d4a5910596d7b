"""What an image tokenizer sees of a picture: from any file to a square of bytes to pixels.

Weights fit only the pixels they were trained on. Two implementations of Chameleon's preprocessing
are in use, and a tokenizer's config names its own. Both scale the shorter side to the resolution by
Lanczos and keep the centre, with offsets rounded down. They differ in three things:

============  ================================  ==========================  ====================
              transparency on white             longer side after scaling   byte v becomes
============  ================================  ==========================  ====================
chameleon     in floats, fractions cut off      rounded                     v / 255 * 2 - 1
transformers  in integers, rounded (Pillow)     fraction cut off            v * 0.0078 - 1
============  ================================  ==========================  ====================

The first is Chameleon's release, the second ``ChameleonImageProcessorPil`` of ``transformers``,
where white is 0.989. Pixels are tested to equal, bit for bit, those of the second and the plain
arithmetic of the first. Three things are ours: pictures stand upright as their EXIF data say,
those of 16 bits are scaled and not clipped, and very elongated ones are cut before scaling.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from pardalis.documents.document import PictureSource
from pardalis.documents.pictures import Blend, open_picture
from pardalis.vq.config import Preprocessing

# The rest of a more elongated picture is cut off before scaling, which else would need memory
# for a picture of 10,000 x 1 pixels at 5 million x 512. Only the middle square is kept anyway.
_MOST_ELONGATED = 32


@dataclass(frozen=True)
class Convention:
    """What the implementations disagree about."""

    blend: Blend  # of transparency with white
    scaled: Callable[[int, int, int], int]  # (length, shorter side, resolution) to a new length
    values: Float[np.ndarray, "256"]  # pixel of each byte


_BYTES = np.arange(256, dtype=np.float64)

CONVENTIONS: dict[Preprocessing, Convention] = {
    "chameleon": Convention(
        blend="chameleon",
        scaled=lambda length, shorter, resolution: round(resolution / shorter * length),
        values=(_BYTES / 255 * 2 - 1).astype(np.float32),
    ),
    "transformers": Convention(
        blend="pillow",
        scaled=lambda length, shorter, resolution: int(resolution * length / shorter),
        values=(_BYTES * 0.0078).astype(np.float32) - np.float32(1),
    ),
}


def open_square(
    source: PictureSource, side: int, preprocessing: Preprocessing = "chameleon"
) -> UInt8[np.ndarray, "Y X 3"]:
    """Open a picture of any kind and return the square of bytes that a tokenizer sees of it.

    Raises:
        DataError: the picture cannot be opened (:func:`pardalis.documents.open_picture`).
    """
    image = open_picture(source, CONVENTIONS[preprocessing].blend)
    return square(image, side, preprocessing)


def square(
    image: Image.Image, side: int, preprocessing: Preprocessing = "chameleon"
) -> UInt8[np.ndarray, "Y X 3"]:
    """Return the centre of an RGB picture, its shorter side scaled to ``side``, as bytes."""
    if max(image.size) > _MOST_ELONGATED * min(image.size):
        image = _middle(image, _MOST_ELONGATED * min(image.size))
    scaled, shorter = CONVENTIONS[preprocessing].scaled, min(image.size)
    width, height = (scaled(length, shorter, side) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def to_pixels(
    pictures: UInt8[Tensor, "B 3 Y X"], preprocessing: Preprocessing = "chameleon"
) -> Float[Tensor, "B 3 Y X"]:
    """Return the pixels of bytes, about [-1, 1], on the device of the bytes.

    They are looked up: computed in 32 bits, half of Chameleon's would differ in the last bit.
    """
    values = torch.from_numpy(CONVENTIONS[preprocessing].values).to(pictures.device)
    return values[pictures.long()]


def to_images(pixels: Float[Tensor, "B 3 Y X"]) -> list[Image.Image]:
    """Return pictures of pixels, clamped; fractions are cut off, as Chameleon does."""
    scaled = (pixels.detach().float().clamp(-1, 1) + 1) / 2 * 255
    arrays = scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]


def _middle(image: Image.Image, length: int) -> Image.Image:
    """Cut a picture down to at most ``length`` pixels a side, around its centre."""
    width, height = (min(length, size) for size in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
