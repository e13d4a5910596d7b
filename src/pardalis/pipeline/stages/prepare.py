"""Stage ``prepare``: encode the documents of every source and write them as shards."""

import shutil

from pardalis.data import Shards, prepare_source, shard_inputs
from pardalis.errors import DataError
from pardalis.pipeline.builders import codec_of, located
from pardalis.pipeline.checks import check_prepare
from pardalis.pipeline.licences import refresh_licences, write_licences
from pardalis.pipeline.stages.stage import Inputs, RunContext, Stage
from pardalis.pipeline.start import given_content


def inputs(context: RunContext) -> Inputs:
    # Later stages read the bundle that the run starts from too, and they need this stage.
    recipe = context.recipe
    row_tokens = recipe.model_run.prepare.row_tokens
    return {
        "prepare": recipe.model_run.prepare,
        "image_fit": recipe.image_fit,
        "vocabulary": recipe.vocabulary,
        "given": given_content(recipe, context.digests.of) or [],  # as earlier versions wrote it
        "transforms": {
            source.name: shard_inputs(source.transforms, row_tokens)
            for source in recipe.all_sources
        },
    }


def run(context: RunContext) -> None:
    recipe, folder = context.recipe, context.folder
    codec, shards = codec_of(recipe, folder, context.world.device), folder / "shards"
    prepare = recipe.model_run.prepare
    names = {source.name for source in recipe.all_sources}
    for path in shards.glob("*/"):
        if path.name not in names:
            shutil.rmtree(path)
    for source in recipe.all_sources:
        content = context.survey(source)
        prepare_source(located(source, folder), codec, shards / source.name, prepare, content)
    write_licences(context)


def incomplete(context: RunContext) -> str:
    for source in context.recipe.all_sources:
        try:
            Shards.open(context.folder / "shards" / source.name)
        except DataError:
            return f"shards/{source.name}"
    return ""


STAGE = Stage(
    name="prepare",
    run=run,
    inputs=inputs,
    outputs=("shards",),  # a source that has not changed is kept
    applies=lambda recipe: recipe.has_model,
    needs=("corpus", "text_tokenizer", "image_tokenizer"),
    sources=lambda recipe: recipe.all_sources,
    check=check_prepare,
    refresh=refresh_licences,
    incomplete=incomplete,
)
