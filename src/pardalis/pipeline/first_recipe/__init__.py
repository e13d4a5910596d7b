"""A first recipe for a folder of documents: what is found there, what fits it, and the file."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pardalis.devices import find_device
from pardalis.errors import ConfigError
from pardalis.files import write_text
from pardalis.pipeline.first_recipe.choose import Choice, choose
from pardalis.pipeline.first_recipe.found import Found, as_name, look, reader_at
from pardalis.pipeline.first_recipe.write import described, recipe_text, source_facts
from pardalis.pipeline.recipe import load_recipe

_LEAST_MINUTES, _MOST_MINUTES = 1.0, 30 * 24 * 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstRecipe:
    """A recipe that was written, with what it was chosen from."""

    path: Path
    name: str
    found: Found
    choice: Choice

    @property
    def reasons(self) -> dict[str, str]:
        """What was chosen and why, by what it is."""
        return dict(described(self.found, self.choice))

    @property
    def facts(self) -> dict[str, str]:
        """What each source holds, as a sentence, by its name."""
        return {source.name: source_facts(source) for source in self.found.sources}

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        found, choice, model = self.found, self.choice, self.choice.model
        return {
            "recipe": str(self.path),
            "name": self.name,
            "device": self.choice.device,
            "found": {
                "sources": [
                    {
                        "name": source.name,
                        "reader": source.reader,
                        "path": str(source.path),
                        "heldout": source.is_heldout,
                        "documents": source.n_documents,
                        "images": source.n_images,
                        "characters": source.n_characters,
                        "rejected": dict(source.rejected),
                        "complete": not source.is_cut,
                    }
                    for source in found.sources
                ],
                "median_side": found.median_side,
                "undecodable": found.n_undecodable,
                "notes": found.notes,
            },
            "chosen": {
                "heldout_fraction": choice.heldout_fraction,
                "resolution": choice.images.resolution,
                "codes_per_image": choice.images.codes_per_image,
                "image_tokenizer_steps": choice.images.steps,
                "image_tokenizer_step_s": choice.images.step_s,
                "vocab_size": model and model.vocab_size,
                "row_tokens": model and model.row_tokens,
                "parameters": model and model.parameters,
                "steps": model and model.steps,
                "step_s": model and model.step_s,
                "seconds": choice.seconds,
            },
            "reasons": self.reasons,
            "warnings": choice.warnings,
        }


def init(
    folder: Path,
    output: Path | None = None,
    *,
    minutes: float | int = 30,
    device: torch.device | str = "cpu",
) -> FirstRecipe:
    """Write a recipe that fits the documents in a folder and the time that a run may take.

    It reads the documents, and measures some steps of training on the device for a few seconds.

    Args:
        folder: what to train on: images with captions, pages, files and datasets, in any mixture.
        output: TOML file to write; default: one named after the folder, in the current folder.
        minutes: how long the whole run may take on this machine.

    Raises:
        ConfigError: the file exists already or cannot be written, the minutes are out of range,
            or there is no such device.
        DataError: as :func:`pardalis.pipeline.first_recipe.found.look`.
    """
    folder = Path(folder)
    if not (math.isfinite(minutes) and _LEAST_MINUTES <= minutes <= _MOST_MINUTES):
        raise ConfigError(
            f"minutes must lie from {_LEAST_MINUTES:g} to {_MOST_MINUTES:,.0f}, got {minutes:g}."
        )
    output = Path(output or f"{as_name(folder.resolve().name)}.toml")
    _check_free(output)
    on = find_device(device)
    found = look(folder)
    choice = choose(found, minutes, on)
    name = as_name(output.stem)
    try:
        with output.open("x", encoding="utf-8"):  # claims the name, and finds out whether it can
            pass
        try:
            write_text(output, recipe_text(found, choice, name, output))
        except BaseException:
            output.unlink(missing_ok=True)  # an empty recipe would be in the way of the next try
            raise
    except FileExistsError:
        _check_free(output)
    except OSError as error:
        raise _unwritable(output, error.strerror or str(error)) from error
    load_recipe(output)
    return FirstRecipe(path=output, name=name, found=found, choice=choice)


def _check_free(output: Path) -> None:
    """Raise ConfigError if a file is there already, or its folder is not."""
    if output.exists() or output.is_symlink():
        raise ConfigError(
            f"{output} exists already and is not overwritten; give another `output`, or remove it."
        )
    if not output.parent.is_dir():
        raise _unwritable(output, f"{output.parent} is not a folder")


def _unwritable(output: Path, reason: str) -> ConfigError:
    return ConfigError(f"{output} cannot be written: {reason}; give another `output`.")
