"""Decoding: requests, the engine that answers many at once, and the naive loop, its oracle."""

from pardalis.inference.answer import fitting, generate, generate_many
from pardalis.inference.config import EngineConfig
from pardalis.inference.engine import Answer, Engine
from pardalis.inference.events import (
    Event,
    Finished,
    PictureBegun,
    PictureDone,
    PictureRows,
    TextDelta,
    Usage,
)
from pardalis.inference.prompt import Mode, Part, Prompt, as_document, to_request
from pardalis.inference.reference import generate_reference
from pardalis.inference.request import (
    Contrastive,
    Guidance,
    PictureGuide,
    Request,
    SamplingConfig,
)
from pardalis.inference.token_loop import Progress, TokenLoop, generate_ids

__all__ = [
    "Answer",
    "Contrastive",
    "Engine",
    "EngineConfig",
    "Event",
    "Finished",
    "Guidance",
    "Mode",
    "Part",
    "PictureBegun",
    "PictureDone",
    "PictureGuide",
    "PictureRows",
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
