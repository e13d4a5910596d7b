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
_STRIP = 32 * _BLOCK  # rows of pixels whose blocks are decomposed at once, to save memory
_STEP = 36.0  # of the lattice, as in invisible-watermark
_ENOUGH = 7.0  # margin of a block; where 8-bit pixels leave less, points farther away are tried
CERTAIN = 5.0  # standard deviations from which an image has the mark
_SIZES = (64, 96, 128, 192, 256, 384, 512)  # of images of models
_TO_U = 0.492 * np.array([-0.299, -0.587, 0.886], np.float32)
_FROM_U = np.array([0, -0.395, 2.032], np.float32)  # luma and V stay


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
    first, bits = values[:, 0], _bits(len(blocks))
    nearest = np.round(first / _STEP - _place(bits))
    changes = []
    for lattice in (nearest, nearest - 1, nearest + 1):
        moved = ((np.maximum(lattice, 0) + _place(bits)) * _STEP - first).astype(np.float32)
        changes.append(moved[:, None, None] * u[:, :, :1] * vt[:, :1, :])
    margins = np.stack([_margins(_with_change(pixels, change), bits) for change in changes])
    chosen = np.where(margins[0] >= _ENOUGH, 0, margins.argmax(0))
    return PIL.Image.fromarray(_with_change(pixels, np.choose(chosen[:, None, None], changes)))


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
    pixels = np.asarray(image)
    number = (pixels.shape[0] // _BLOCK) * (pixels.shape[1] // _BLOCK)
    right = int(np.sum(_margins(pixels, _bits(number)) > 0))
    return float((right - number / 2) / (np.sqrt(number) / 2))


def _place(bits: NDArray[np.bool_]) -> Floats:
    """Return where the points of the lattice that stand for bits lie within a step."""
    return np.where(bits, np.float32(0.75), np.float32(0.25))


def _margins(pixels: NDArray[np.uint8], bits: NDArray[np.bool_]) -> Floats:
    """Return how far each block is from being read as the other bit, a quarter step at most.

    That of a block which is read as the other bit is not above 0.
    """
    strips = range(0, pixels.shape[0], _STRIP)
    first = np.concatenate([_largest(pixels[start : start + _STRIP]) for start in strips])
    margins = _STEP / 4 - np.abs(first % _STEP - _place(bits) * _STEP)
    return margins.astype(np.float32)


def _largest(pixels: NDArray[np.uint8]) -> Floats:
    """Return the largest singular value of each block."""
    values: Floats = np.linalg.svd(_blocks(pixels), compute_uv=False)[:, 0].astype(np.float32)
    return values


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
