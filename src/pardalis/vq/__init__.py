"""The image tokenizer: images to grids of codes and back."""

from pardalis.vq.codebook import LiveCodebook, codebook_use, perplexity
from pardalis.vq.config import PRESETS, ImageTokenizerConfig, QuantizerConfig, chameleon, tiny
from pardalis.vq.init import initialise
from pardalis.vq.losses import psnr
from pardalis.vq.preprocessing import Fit, Placement, open_square, placement, square, to_pixels
from pardalis.vq.quantizer import Quantizer, VectorQuantizer, build_quantizer, nearest_codes
from pardalis.vq.stream import encode_stream
from pardalis.vq.tokenizer import ImageTokenizer

__all__ = [
    "PRESETS",
    "Fit",
    "ImageTokenizer",
    "ImageTokenizerConfig",
    "LiveCodebook",
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
    "placement",
    "psnr",
    "square",
    "tiny",
    "to_pixels",
]
