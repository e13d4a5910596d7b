"""Demo corpora: documents built from installed packages, with the licence of everything in them."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pardalis.config import Kinds
from pardalis.corpora.drawings import (
    DrawingsConfig,
    InstructionsConfig,
    build_drawings,
    build_instructions,
    fetch_packages,
)
from pardalis.corpora.encyclopedia import EncyclopediaConfig, build_encyclopedia


@runtime_checkable
class CorpusConfig(Protocol):
    """The config of a corpus that a recipe can ask for."""

    def build(self, folder: Path) -> None:
        """Write the documents into a folder that does not exist."""
        ...

    def packages_used(self) -> Any:
        """Return what identifies the packages that the documents come from, as plain values."""
        ...


CORPORA = Kinds(EncyclopediaConfig, DrawingsConfig, InstructionsConfig)
