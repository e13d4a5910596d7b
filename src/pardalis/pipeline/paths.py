"""Paths in a recipe that begin in the folder of the run, which they call ``{run}``."""

from pathlib import Path

RUN = "{run}"  # stands for the run folder


def is_in_run(path: Path) -> bool:
    """Whether a path of a recipe begins in the folder of the run."""
    return path.parts[:1] == (RUN,)


def in_run(path: Path, run: Path) -> Path:
    """Return a path with the run folder in the place of ``{run}``."""
    return run.resolve().joinpath(*path.parts[1:]) if is_in_run(path) else path
