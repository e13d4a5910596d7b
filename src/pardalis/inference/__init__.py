"""Generation: its options, the engine that runs many requests at once, and a reference loop.

The public names stand in :mod:`pardalis.inference.public`, which is imported when one of them is
first used: the command line reads the options without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pardalis.inference.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    return getattr(import_module("pardalis.inference.public"), name)
