"""Decoding: requests, sampling, the naive loop that is the oracle, and the cached loop."""

from pardalis.inference.answer import Mode, Part, Prompt, as_document, generate, generate_many
from pardalis.inference.cached import generate_cached
from pardalis.inference.reference import generate_reference
from pardalis.inference.request import Request, SamplingConfig
from pardalis.inference.sampling import guide, gumbel_noise, sample

__all__ = [
    "Mode",
    "Part",
    "Prompt",
    "Request",
    "SamplingConfig",
    "as_document",
    "generate",
    "generate_cached",
    "generate_many",
    "generate_reference",
    "guide",
    "gumbel_noise",
    "sample",
]
