"""Stage ``corpus``: build the demo corpus that a recipe asks for, from installed packages."""

from pardalis.pipeline.stages.stage import Inputs, RunContext, Stage


def inputs(context: RunContext) -> Inputs:
    corpus = context.recipe.corpus
    return {"corpus": corpus, "packages": corpus.packages_used() if corpus else None}


def run(context: RunContext) -> None:
    if context.recipe.corpus is not None:
        context.recipe.corpus.build(context.folder / "corpus")
        context.forget_built()


STAGE = Stage(
    name="corpus",
    run=run,
    inputs=inputs,
    outputs=("corpus",),
    applies=lambda recipe: recipe.corpus is not None,
)
