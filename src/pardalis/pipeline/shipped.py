"""The recipes that come with Pardalis, which a name stands for wherever a recipe is needed."""

import difflib
import os
from pathlib import Path

import pardalis
from pardalis.errors import ConfigError


def shipped_recipes() -> dict[str, Path]:
    """Return the paths of the recipes of Pardalis by name, in order of the names."""
    package = Path(pardalis.__file__).parent
    folders = (package.parents[1] / "recipes", package / "recipes")  # a checkout; a wheel
    found = {path.stem: path for folder in folders for path in folder.glob("*.toml")}
    return dict(sorted(found.items()))


def find_recipe(recipe: Path | str) -> Path:
    """Return the path of a recipe, which may be named as one of Pardalis; a file comes first.

    Raises:
        ConfigError: it is neither.
    """
    path, recipes = Path(recipe), shipped_recipes()
    if str(path) in recipes and not path.is_file():  # a folder of that name may be a run
        return recipes[str(path)]
    if os.path.exists(path):  # unlike Path.exists, it takes a name of any length
        return path
    near = difflib.get_close_matches(path.stem, recipes, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise ConfigError(
        f"No recipe at {recipe}; give the path of a TOML file, or the name of a recipe of "
        f"Pardalis, which are {', '.join(recipes)}{hint}"
    )


def about(recipe: Path) -> str:
    """Return what a recipe says of itself: the first sentence of its comments."""
    lines = [line.removeprefix("#").strip() for line in recipe.read_text().splitlines()]
    return " ".join(lines[lines.index("") + 1 :]).split(". ")[0] + "."
