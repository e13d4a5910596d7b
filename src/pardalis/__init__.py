"""Pardalis: early-fusion mixed-modal models, from raw documents to interleaved completions.

    import pardalis
    bundle = pardalis.load("runs/quickstart")
    completion = pardalis.generate(bundle, "an owl", mode="image")

The names below are imported when they are first used, so that ``import pardalis`` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pardalis.bundle import Bundle, load
    from pardalis.documents import Document, Image, Text
    from pardalis.errors import PardalisError
    from pardalis.inference import (
        Engine,
        EngineConfig,
        GenerationConfig,
        Mask,
        Response,
        generate,
        generate_many,
        infill,
        infill_many,
        score,
    )

__version__ = "0.1.0"

_HOME = {
    "Bundle": "pardalis.bundle",
    "load": "pardalis.bundle",
    "Document": "pardalis.documents",
    "Image": "pardalis.documents",
    "Text": "pardalis.documents",
    "PardalisError": "pardalis.errors",
    "Engine": "pardalis.inference",
    "EngineConfig": "pardalis.inference",
    "GenerationConfig": "pardalis.inference",
    "Mask": "pardalis.inference",
    "Response": "pardalis.inference",
    "generate": "pardalis.inference",
    "generate_many": "pardalis.inference",
    "infill": "pardalis.inference",
    "infill_many": "pardalis.inference",
    "score": "pardalis.inference",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pardalis' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
