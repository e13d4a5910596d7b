"""The image tokenizer: pictures to grids of codes and back."""

from pardalis.vq.codebook import LiveCodebook, codebook_use, perplexity
from pardalis.vq.config import PRESETS, ImageTokenizerConfig, QuantizerConfig, chameleon, tiny
from pardalis.vq.init import initialise
from pardalis.vq.losses import psnr
from pardalis.vq.preprocessing import open_square, square, to_pixels
from pardalis.vq.quantizer import VectorQuantizer, nearest_codes
from pardalis.vq.tokenizer import ImageTokenizer

__all__ = [
    "PRESETS",
    "ImageTokenizer",
    "ImageTokenizerConfig",
    "LiveCodebook",
    "QuantizerConfig",
    "VectorQuantizer",
    "chameleon",
    "codebook_use",
    "initialise",
    "nearest_codes",
    "open_square",
    "perplexity",
    "psnr",
    "square",
    "tiny",
    "to_pixels",
]
