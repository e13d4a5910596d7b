"""The recipes that come with Pardalis, which a name stands for wherever a recipe is needed."""

import difflib
import os
from itertools import takewhile
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
        ConfigError: it is neither, or a folder that is no run.
    """
    path, recipes = Path(recipe), shipped_recipes()
    if str(path) in recipes and not path.is_file():  # a folder of that name may be a run
        return recipes[str(path)]
    if os.path.exists(path):  # unlike Path.exists, it takes a name of any length
        if path.is_dir() and not (path / "recipe.toml").is_file():
            raise _not_a_run(path)
        return path
    known = {name: name for name in recipes} | _beside(path)
    if near := difflib.get_close_matches(path.stem, known, n=1, cutoff=0.5):
        raise ConfigError(
            f"No recipe at {recipe}; did you mean {known[near[0]]}? Those of Pardalis are listed "
            "by `shipped_recipes`."
        )
    raise ConfigError(
        f"No recipe at {recipe}; give the path of a TOML file, or the name of a recipe of "
        f"Pardalis, which are {', '.join(recipes)}."
    )


def _beside(path: Path) -> dict[str, str]:
    """Return the TOML files in the folder of a path, by their names without the suffix."""
    try:
        return {found.stem: str(found) for found in path.parent.glob("*.toml")}
    except OSError:  # a name that is too long, say
        return {}


def _not_a_run(folder: Path) -> ConfigError:
    """Say that a folder is no run: of documents, say, for which a recipe has been written."""
    problem = f"{folder} is a folder without a recipe.toml, so it is not that of a run"
    written = Path(f"{folder}.toml")
    if written.is_file():
        return ConfigError(f"{problem}; did you mean {written}?")
    return ConfigError(f"{problem}; give the path of a recipe, which `init` writes for documents.")


def about(recipe: Path) -> str:
    """Return what a recipe says of itself: the first sentence of its comments, not its commands."""
    lines = recipe.read_text().splitlines()
    comments = takewhile(lambda line: line.startswith("#"), lines)
    words = (line.removeprefix("#").strip() for line in comments)
    said = " ".join(line for line in words if not line.startswith("pardalis "))
    return said.strip().split(". ")[0].removesuffix(".") + "."
