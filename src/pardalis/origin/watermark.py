"""An invisible mark in the pixels of an image, which says that a model of Pardalis generated it.

The method is DWT-DCT-SVD in chroma, as ``dwtDctSvd`` of the package invisible-watermark has it: the
largest singular value of the DCT of each 4 x 4 block of the Haar approximation of U is moved to a
point of a lattice that stands for a bit. Each block has a bit of one fixed random sequence, so the
mark carries no message, and blocks that are damaged cost certainty only. It differs in going to the
nearest point that survives 8-bit pixels, and in leaving all other coefficients as they are.
"""

import hashlib
from collections.abc import Iterable
from functools import cache
from typing import TypeAlias

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pardalis.errors import ConfigError

Floats: TypeAlias = NDArray[np.float32]

SMALLEST = 64  # pixels of the shorter side
_BLOCK = 8  # pixels of a block's side
_STEP = 36.0  # of the lattice, as in invisible-watermark
CERTAIN = 5.0  # standard deviations from which an image has the mark
_SIZES = (64, 96, 128, 192, 256, 384, 512, 768, 1024)  # of images of models
_TO_U = 0.492 * np.array([-0.299, -0.587, 0.886], np.float32)
_FROM_U = np.array([0, -0.395, 2.032], np.float32)  # luma and V stay
_ROUNDS = 3


def check_size(width: int, height: int) -> None:
    """Raise ConfigError unless images of this size can carry the mark."""
    if min(width, height) < SMALLEST:
        raise ConfigError(
            f"watermark needs images of at least {SMALLEST} x {SMALLEST} pixels, and the model's "
            f"have {width} x {height}; leave it out."
        )


def add_watermark(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return an RGB image with the mark; raises ConfigError if it is too small."""
    check_size(*image.size)
    pixels = np.asarray(image.convert("RGB"))
    blocks = _blocks(pixels)
    u, values, vt = np.linalg.svd(blocks)
    bits = _bits(len(blocks))
    points = values[:, 0] / _STEP - (0.25 + 0.5 * bits)
    nearest = np.round(points)
    other = nearest + np.where(points >= nearest, 1, -1)  # on the other side of the value
    chosen = nearest.copy()
    for turn in range(_ROUNDS):
        target = np.maximum(chosen, 0) + 0.25 + 0.5 * bits
        moved = (target * _STEP - values[:, 0]).astype(np.float32)
        change = moved[:, None, None] * u[:, :, :1] * vt[:, :1, :]
        marked = _with_change(pixels, change)
        wrong = _read(marked) != bits
        if not wrong.any() or turn + 1 == _ROUNDS:
            break
        chosen = np.where(wrong, np.where(chosen == nearest, other, nearest), chosen)
    return PIL.Image.fromarray(marked)


def watermark_certainty(image: PIL.Image.Image) -> float:
    """Return how many standard deviations an image is away from one without the mark.

    It is about 0 without the mark, and with it at most the root of the number of 8 x 8 blocks. From
    5 on an image has the mark: one in some 500,000 without it gets there. One that was resized is
    tried in the usual sizes of models; one that was cropped or turned has lost its mark.
    """
    most = 0.0
    for each in _as_generated(image.convert("RGB")):
        most = max(most, _certainty(each))
        if most >= CERTAIN:
            break
    return most


def _as_generated(image: PIL.Image.Image) -> Iterable[PIL.Image.Image]:
    """Yield an image, and what it may have been before it was resized."""
    if min(image.size) >= SMALLEST:
        yield image
    width, height = image.size
    for size in _SIZES if width == height else ():
        if size != width:
            yield image.resize((size, size), PIL.Image.Resampling.LANCZOS)


def _certainty(image: PIL.Image.Image) -> float:
    found = _read(np.asarray(image))
    right = int(np.sum(found == _bits(len(found))))
    return float((right - len(found) / 2) / (np.sqrt(len(found)) / 2))


def _read(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the bit of each block."""
    values = np.linalg.svd(_blocks(pixels), compute_uv=False)[:, 0]
    result: NDArray[np.bool_] = values % _STEP > _STEP / 2
    return result


def _blocks(pixels: NDArray[np.uint8]) -> Floats:
    """Return the DCT of each block of the Haar approximation of U (blocks, 4, 4), row by row."""
    rows, columns = (side // _BLOCK for side in pixels.shape[:2])
    used = pixels[: rows * _BLOCK, : columns * _BLOCK].astype(np.float32)
    chroma = used @ _TO_U + 128
    halves = chroma.reshape(rows * 4, 2, columns * 4, 2).sum((1, 3)) / 2
    blocks = halves.reshape(rows, 4, columns, 4).swapaxes(1, 2).reshape(-1, 4, 4)
    result: Floats = _dct() @ blocks @ _dct().T
    return result


def _with_change(pixels: NDArray[np.uint8], change: Floats) -> NDArray[np.uint8]:
    """Return an image in which the DCT of each block differs by a change."""
    rows, columns = (side // _BLOCK for side in pixels.shape[:2])
    blocks = _dct().T @ change @ _dct()
    halves = blocks.reshape(rows, columns, 4, 4).swapaxes(1, 2).reshape(rows * 4, columns * 4)
    chroma = np.repeat(np.repeat(halves, 2, 0), 2, 1) / 2
    result = pixels.astype(np.float32)
    result[: rows * _BLOCK, : columns * _BLOCK] += chroma[:, :, None] * _FROM_U
    return np.clip(np.round(result), 0, 255).astype(np.uint8)


@cache
def _dct() -> Floats:
    """Return the matrix of the orthonormal DCT of 4 values."""
    rows, columns = np.mgrid[:4, :4]
    matrix = np.cos(np.pi * (2 * columns + 1) * rows / 8) / np.sqrt(2)
    matrix[0] /= np.sqrt(2)
    result: Floats = matrix.astype(np.float32)
    return result


def _bits(number: int) -> NDArray[np.bool_]:
    """Return the first bits of the sequence; they never change, or old marks could not be read."""
    seed = np.frombuffer(hashlib.shake_256(b"pardalis").digest(-(-number // 8)), np.uint8)
    return np.unpackbits(seed)[:number].astype(np.bool_)
