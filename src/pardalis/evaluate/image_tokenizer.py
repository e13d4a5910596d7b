"""Reconstruction PSNR and codebook use of an image tokenizer."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pardalis.progress import bar
from pardalis.vq.codebook import codebook_use, perplexity
from pardalis.vq.losses import psnr
from pardalis.vq.preprocessing import to_pixels, to_square
from pardalis.vq.tokenizer import ImageTokenizer

_PIXELS_PER_BATCH = 1 << 20  # 4 images of 512 x 512, 256 of 64 x 64


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTokenizerScores:
    """Scores over all images; NaN if there are none."""

    psnr: float  # mean of psnr_of_each
    psnr_of_each: tuple[float, ...]  # dB, of 8-bit RGB, in the order of the images
    codebook_use: float  # share of the codebook's entries that at least one image uses
    perplexity: float  # exp(entropy) of all codes


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """A batch of 8-bit images, their codes and their reconstructions."""

    originals: list[PIL.Image.Image]  # squares of the tokenizer's resolution
    reconstructions: list[PIL.Image.Image]
    codes: Int[Tensor, "B G"]


def round_trips(
    tokenizer: ImageTokenizer, squares: Iterable[PIL.Image.Image]
) -> Iterator[RoundTrip]:
    """Encode and decode images of the tokenizer's resolution, in batches of bounded memory."""
    n = max(1, _PIXELS_PER_BATCH // tokenizer.config.resolution**2)
    remaining = iter(squares)
    while originals := list(islice(remaining, n)):
        codes = tokenizer.codes_of(originals)
        yield RoundTrip(originals, tokenizer.images_of(codes), codes)


def unit_pixels(images: Sequence[PIL.Image.Image]) -> Float[Tensor, "B 3 Y X"]:
    """Return images of one size as pixels in [-1, 1], independent of a tokenizer's scaling."""
    bytes_ = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return to_pixels(bytes_.permute(0, 3, 1, 2))


def evaluate_image_tokenizer(
    tokenizer: ImageTokenizer, images: Sequence[PIL.Image.Image]
) -> tuple[ImageTokenizerScores, list[PIL.Image.Image]]:
    """Encode and decode RGB images of any size; return the scores and the reconstructions.

    Images are compared at the tokenizer's resolution, so the loss by resizing is not counted. PSNR
    is that of training (:func:`pardalis.vq.psnr`), but of 8-bit images.
    """
    config = tokenizer.config
    counts = torch.zeros(config.n_codes, dtype=torch.int64)
    reconstructions: list[PIL.Image.Image] = []
    psnr_of_each: list[float] = []
    squares = (
        PIL.Image.fromarray(to_square(i, config.resolution, config.preprocessing)) for i in images
    )
    with bar("Reconstructing", total=len(images), unit="images") as advance:
        for trip in round_trips(tokenizer, squares):
            counts += torch.bincount(trip.codes.flatten(), minlength=len(counts))
            reconstructed, pixels = unit_pixels(trip.reconstructions), unit_pixels(trip.originals)
            psnr_of_each += psnr(reconstructed, pixels).tolist()
            reconstructions += trip.reconstructions
            advance(len(trip.originals))
    scores = ImageTokenizerScores(
        psnr=float(np.mean(psnr_of_each)) if psnr_of_each else float("nan"),
        psnr_of_each=tuple(psnr_of_each),
        codebook_use=float(codebook_use(counts)),
        perplexity=float(perplexity(counts)),
    )
    return scores, reconstructions
