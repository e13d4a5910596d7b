"""Chains of runs: ``start_from`` may name a bundle, the folder of a run, or another recipe.

A recipe stands for its run beside this one: ``start_from = "pretrain.toml"`` of a run in
``runs/tuned`` means the bundle in ``runs/pretrain``, if ``pretrain`` is that recipe's name.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from pardalis.errors import ConfigError
from pardalis.pipeline.recipe import Recipe, load_recipe

_RECIPE, _BUNDLE = "recipe.toml", "bundle"


@dataclass(frozen=True, slots=True)
class Parent:
    """The run whose bundle another run starts from."""

    recipe: Recipe
    folder: Path

    @property
    def bundle(self) -> Path:
        return self.folder / _BUNDLE


def parent_of(recipe: Recipe, run: Path) -> Parent | None:
    """Return the run that a recipe starts from; None if it names a bundle, or starts from nothing.

    Args:
        run: the folder of the recipe's own run.

    Raises:
        ConfigError: the recipe of the parent cannot be read, or it trains no model.
    """
    start = recipe.start_from
    if start is None:
        return None
    if start.suffix == ".toml":
        parent = load_recipe(start)
        found = Parent(parent, run.parent / parent.name)
    elif (start / _RECIPE).is_file():
        found = Parent(load_recipe(start / _RECIPE), start)
    else:
        return None
    if not found.recipe.has_model:
        raise ConfigError(
            f"start_from is {start}, whose recipe trains tokenizers only; name one with a model, "
            "or name its image tokenizer by image_tokenizer_from."
        )
    return found


def parents_of(recipe: Recipe, run: Path) -> list[Parent]:
    """Return all runs that a run stands on, the first one first.

    Raises:
        ConfigError: as :func:`parent_of`; or the recipes start from each other.
    """
    chain: list[Parent] = []
    while (parent := parent_of(recipe, run)) is not None:
        folders = [run.resolve(), *(each.folder.resolve() for each in chain)]
        if parent.folder.resolve() in folders[: len(chain) + 1]:
            raise ConfigError(
                f"start_from of {recipe.name!r} leads back to the run {parent.folder}; a chain of "
                "runs needs a first recipe without start_from."
            )
        chain.append(parent)
        recipe, run = parent.recipe, parent.folder
    return chain[::-1]


def with_bundle(recipe: Recipe, run: Path) -> Recipe:
    """Return a recipe whose ``start_from`` is a bundle, if it named a run or a recipe."""
    parent = parent_of(recipe, run)
    return recipe if parent is None else dataclasses.replace(recipe, start_from=parent.bundle)
