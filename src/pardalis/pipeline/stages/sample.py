"""Stage ``sample``: generate images, captions and pages for prompts of the sources."""

from pardalis import bundle as bundles
from pardalis.errors import DataError
from pardalis.evaluate.sample_file import generated_images
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


def incomplete(context: RunContext) -> str:
    path = context.folder / "samples" / "samples.json"
    try:
        names = generated_images(path)
    except DataError:
        return "samples/samples.json"
    absent = (name for name in names if not (path.parent / name).is_file())
    return next((f"samples/{name}" for name in absent), "")


STAGE = Stage(
    name="sample",
    run=run,
    inputs=inputs,
    outputs=("samples/samples.json",),
    applies=lambda recipe: recipe.has_model,
    needs=("train",),
    check=check_sample,
    incomplete=incomplete,
)
