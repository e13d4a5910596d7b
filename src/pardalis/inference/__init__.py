"""Decoding: requests, the engine that answers many at once, and the naive loop, its oracle."""

from pardalis.inference.answer import fitting, generate, generate_many
from pardalis.inference.config import EngineConfig
from pardalis.inference.engine import Completion, Engine
from pardalis.inference.events import (
    Event,
    Finished,
    ImageBegun,
    ImageDone,
    ImageRows,
    TextDelta,
    Usage,
)
from pardalis.inference.prompt import GenerationMode, Part, Prompt, as_document, to_request
from pardalis.inference.reference import generate_reference
from pardalis.inference.request import (
    Contrastive,
    Guidance,
    ImageGuidance,
    Request,
    SamplingConfig,
)
from pardalis.inference.token_loop import Progress, TokenLoop, generate_ids

__all__ = [
    "Completion",
    "Contrastive",
    "Engine",
    "EngineConfig",
    "Event",
    "Finished",
    "GenerationMode",
    "Guidance",
    "ImageBegun",
    "ImageDone",
    "ImageGuidance",
    "ImageRows",
    "Part",
    "Progress",
    "Prompt",
    "Request",
    "SamplingConfig",
    "TextDelta",
    "TokenLoop",
    "Usage",
    "as_document",
    "fitting",
    "generate",
    "generate_ids",
    "generate_many",
    "generate_reference",
    "to_request",
]
