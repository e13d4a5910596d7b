"""The image tokenizer: images to grids of codes and back."""

from pardalis.vq.codebook import CodebookTrainer, codebook_use, perplexity
from pardalis.vq.config import PRESETS, ImageTokenizerConfig, QuantizerConfig, chameleon, tiny
from pardalis.vq.init import initialise
from pardalis.vq.losses import psnr
from pardalis.vq.preprocessing import (
    ImageFit,
    Placement,
    open_square,
    place_in_square,
    to_pixels,
    to_square,
)
from pardalis.vq.quantizer import Quantizer, VectorQuantizer, build_quantizer, nearest_codes
from pardalis.vq.stream import encode_stream
from pardalis.vq.tokenizer import ImageTokenizer

__all__ = [
    "PRESETS",
    "CodebookTrainer",
    "ImageFit",
    "ImageTokenizer",
    "ImageTokenizerConfig",
    "Placement",
    "Quantizer",
    "QuantizerConfig",
    "VectorQuantizer",
    "build_quantizer",
    "chameleon",
    "codebook_use",
    "encode_stream",
    "initialise",
    "nearest_codes",
    "open_square",
    "perplexity",
    "place_in_square",
    "psnr",
    "tiny",
    "to_pixels",
    "to_square",
]
