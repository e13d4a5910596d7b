"""Stage ``corpus``: build the demo corpus that a recipe asks for, from installed packages."""

from pardalis.corpora.drawings import PACKAGES, build_drawings
from pardalis.corpora.encyclopedia import build_encyclopedia, package_versions
from pardalis.pipeline.stages.stage import Inputs, RunContext, Stage


def inputs(context: RunContext) -> Inputs:
    recipe = context.recipe
    if recipe.drawings is not None:
        return {"drawings": recipe.drawings, "packages": [p.sha256 for p in PACKAGES]}
    return {"corpus": recipe.corpus, "packages": package_versions()}


def run(context: RunContext) -> None:
    recipe, folder = context.recipe, context.folder / "corpus"
    if recipe.drawings is not None:
        build_drawings(recipe.drawings, folder)
    elif recipe.corpus is not None:
        build_encyclopedia(recipe.corpus, folder)


STAGE = Stage(
    name="corpus",
    run=run,
    inputs=inputs,
    outputs=("corpus",),
    applies=lambda recipe: recipe.corpus is not None or recipe.drawings is not None,
)
