"""Stage ``sample``: generate images, captions and pages for prompts of the sources."""

from pardalis import bundle as bundles
from pardalis.pipeline.builders import documents_of
from pardalis.pipeline.checks import check_sample
from pardalis.pipeline.samples import write_samples
from pardalis.pipeline.stages.stage import Inputs, RunContext, Stage


def inputs(context: RunContext) -> Inputs:
    return {"sample": context.recipe.sample}


def run(context: RunContext) -> None:
    recipe, folder = context.recipe, context.folder
    bundle = bundles.load(folder / "bundle", context.world.device)
    documents = {
        "train": documents_of(recipe.sources, folder),
        "heldout": documents_of(recipe.heldout, folder),
    }
    write_samples(bundle, documents, recipe.sample, folder)


STAGE = Stage(
    name="sample",
    run=run,
    inputs=inputs,
    outputs=("samples",),
    applies=lambda recipe: recipe.has_model,
    needs=("train",),
    check=check_sample,
)
