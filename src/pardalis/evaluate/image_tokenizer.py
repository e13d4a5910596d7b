"""How much of a picture survives the image tokenizer, and how much of its codebook is in use."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from pardalis.progress import bar
from pardalis.vq.codebook import codebook_use, perplexity
from pardalis.vq.losses import psnr
from pardalis.vq.tokenizer import ImageTokenizer

_BATCH = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTokenizerScores:
    """Means over the pictures given; NaN when there are none."""

    psnr: float  # mean of psnr_of_each
    psnr_of_each: tuple[float, ...]  # dB, in the order given, of 8-bit RGB after the round trip
    codebook_use: float  # share of the codebook's entries that some picture uses
    perplexity: float  # exp(entropy) of all codes: how many entries are in even use, in effect


def evaluate_image_tokenizer(
    tokenizer: ImageTokenizer, images: Sequence[Image.Image]
) -> tuple[ImageTokenizerScores, list[Image.Image]]:
    """Encode and decode pictures; return the scores and the reconstructions.

    RGB pictures of any size; each is compared at the tokenizer's own resolution, so that what
    resizing loses is not counted. PSNR is :func:`pardalis.vq.psnr`, as during training, but of
    8-bit pictures, which is what a person gets to see.
    """
    counts = torch.zeros(tokenizer.config.n_codes, dtype=torch.int64)
    reconstructions: list[Image.Image] = []
    psnr_of_each: list[float] = []
    with bar("Reconstructing", total=len(images), unit="pictures") as advance:
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            codes = tokenizer.codes_of(batch)
            counts += torch.bincount(codes.flatten(), minlength=len(counts))
            decoded = tokenizer.images_of(codes)
            in_8_bits = tokenizer.preprocess(decoded)
            psnr_of_each += psnr(in_8_bits, tokenizer.preprocess(batch)).tolist()
            reconstructions += decoded
            advance(len(batch))
    scores = ImageTokenizerScores(
        psnr=float(np.mean(psnr_of_each)) if psnr_of_each else float("nan"),
        psnr_of_each=tuple(psnr_of_each),
        codebook_use=float(codebook_use(counts)),
        perplexity=float(perplexity(counts)),
    )
    return scores, reconstructions
