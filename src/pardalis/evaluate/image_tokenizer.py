"""How much of a picture survives the image tokenizer, and how much of its codebook is in use."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from pardalis.progress import bar
from pardalis.vq.codebook import codebook_use, perplexity
from pardalis.vq.tokenizer import ImageTokenizer, square

_BATCH = 32
_PEAK = 255.0
# 8-bit pictures that come back unchanged would have infinite PSNR; a mean needs a finite one.
_MAX_PSNR_DB = 100.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTokenizerScores:
    """Means over the pictures given; NaN when there are none."""

    psnr: float
    """Mean over pictures of each picture's PSNR, in dB, on 8-bit RGB after the round trip."""

    psnr_of_each: tuple[float, ...]
    """PSNR of each picture, in dB, in the order given."""

    codebook_use: float
    """Share of the codebook's entries that some picture uses."""

    perplexity: float
    """exp(entropy) of the codes over all pictures: how many entries are in even use, in effect."""


def evaluate_image_tokenizer(
    tokenizer: ImageTokenizer, images: Sequence[Image.Image]
) -> tuple[ImageTokenizerScores, list[Image.Image]]:
    """Encode and decode pictures; return the scores and the reconstructions.

    RGB pictures of any size; each is compared at the tokenizer's own resolution, so that what
    resizing loses is not counted.
    """
    side = tokenizer.config.resolution
    counts = torch.zeros(tokenizer.config.n_codes, dtype=torch.int64)
    reconstructions: list[Image.Image] = []
    psnr_of_each: list[float] = []
    with bar("Reconstructing", total=len(images), unit="pictures") as advance:
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            codes = tokenizer.codes_of(batch)
            counts += torch.bincount(codes.flatten(), minlength=len(counts))
            decoded = tokenizer.images_of(codes)
            originals = [Image.fromarray(square(image, side)) for image in batch]
            psnr_of_each += map(psnr, originals, decoded)
            reconstructions += decoded
            advance(len(batch))
    scores = ImageTokenizerScores(
        psnr=float(np.mean(psnr_of_each)) if psnr_of_each else float("nan"),
        psnr_of_each=tuple(psnr_of_each),
        codebook_use=codebook_use(counts),
        perplexity=perplexity(counts) if images else float("nan"),
    )
    return scores, reconstructions


def psnr(image: Image.Image, other: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two 8-bit RGB pictures, in dB, at most 100."""
    a, b = (np.asarray(picture.convert("RGB"), dtype=np.float64) for picture in (image, other))
    if a.shape != b.shape:
        raise ValueError(f"PSNR of pictures of {image.size} and {other.size} pixels")
    error = float(np.mean((a - b) ** 2))
    return min(10 * math.log10(_PEAK**2 / error), _MAX_PSNR_DB) if error else _MAX_PSNR_DB
