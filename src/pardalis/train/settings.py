"""What a run was started with, kept in its folder, so that it is not resumed as another run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pardalis.config import deciding, shown
from pardalis.errors import BundleError, ConfigError
from pardalis.files import read_json, write_json
from pardalis.inputs import changes

FILE_NAME = "settings.json"


def keep_settings(run_folder: Path, steps: int, settings: Mapping[str, Any]) -> None:
    """Write the settings of a run that begins: configs and plain values."""
    write_json(run_folder / FILE_NAME, {"steps": steps, "settings": deciding(settings)})


def check_settings(run_folder: Path, steps: int, settings: Mapping[str, Any]) -> None:
    """Compare the settings of a run that resumes with those it began with; steps may grow.

    Raises:
        ConfigError: a setting differs.
        BundleError: the run's settings cannot be read.
    """
    path = run_folder / FILE_NAME
    try:
        begun = read_json(path)
        old_steps, old = begun["steps"], dict(begun["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{path} cannot be read, so this run cannot be resumed safely; put the file back, or "
            "train into another folder."
        ) from error
    if type(old_steps) is not int:
        raise BundleError(f"{path} has {shown(old_steps)} as steps; put the file back.")
    check_steps(run_folder, old_steps, steps)
    if found := changes(old, settings):
        raise ConfigError(
            f"{run_folder} was begun with other settings: {found}. Set them as they were, or "
            "train into another folder."
        )


def check_steps(run_folder: Path, old: int, steps: int) -> None:
    """Raise ConfigError if a run that has checkpoints is to have fewer steps than before."""
    if steps < old:
        raise ConfigError(
            f"{run_folder} was begun with steps = {old} and now has steps = {steps}; a run can "
            "grow and not shrink. Use at least the old number, or train into another folder."
        )
