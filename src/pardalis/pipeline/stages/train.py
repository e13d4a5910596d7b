"""Stage ``train``: train the decoder on the shards, and write the bundle.

A recipe with an adapter also gets the folder of the adapter, which is merged into the bundle.
"""

from pardalis.adapters import save_adapter
from pardalis.data import row_inputs
from pardalis.parallel import layout_of
from pardalis.pipeline.builders import codec_of, model_task
from pardalis.pipeline.checks import check_train
from pardalis.pipeline.export import checkpoint_adapter, checkpoint_bundle
from pardalis.pipeline.measuring import measurement_of
from pardalis.pipeline.recipe import GivenModel, Recipe
from pardalis.pipeline.stages.stage import Inputs, RunContext, Stage
from pardalis.train import train


def inputs(context: RunContext) -> Inputs:
    recipe = context.recipe
    run = recipe.model_run
    adapter = {} if recipe.adapter is None else {"adapter": recipe.adapter}
    return adapter | {
        # With start_from the bundle decides the shape; it is an input of the stage prepare.
        "model": {"dropout": run.model.dropout} if isinstance(run.model, GivenModel) else run.model,
        "training": run.training,
        "sources": {source.name: source.weight for source in recipe.sources},
        "transforms": {
            source.name: found
            for source in recipe.all_sources
            if (found := row_inputs(source.transforms))
        },
        "curriculum": recipe.curriculum,
    }


def steps(recipe: Recipe) -> int:
    return recipe.model_run.loop.steps if recipe.has_model else 0


def run(context: RunContext) -> None:
    recipe, folder, world = context.recipe, context.folder, context.world
    codec = codec_of(recipe, folder)
    task = model_task(recipe, folder, codec, layout_of(world, recipe.parallel))
    settings = STAGE.settings(context) | {
        "model": task.model.config,
        "codec": codec.fingerprint,
    }
    train(
        task,
        folder / "training",
        recipe.model_run.loop,
        "Decoder",
        settings,
        world,
        measurement=measurement_of(recipe, folder, codec, task, world),
    )
    if world.is_first:
        checkpoint_bundle(recipe, folder, codec).save(folder / "bundle")
        if recipe.adapter is not None:
            save_adapter(
                checkpoint_adapter(recipe, folder, codec), folder / "adapter", codec.vocabulary
            )


def incomplete(context: RunContext) -> str:
    names = ("adapter_config.json", "adapter_model.safetensors") if context.recipe.adapter else ()
    found = (f"adapter/{name}" for name in names)
    return next((name for name in found if not (context.folder / name).is_file()), "")


STAGE = Stage(
    name="train",
    run=run,
    inputs=inputs,
    outputs=(
        "training",
        "bundle/bundle.json",
        "bundle/model.safetensors",
        "bundle/text_tokenizer.json",
        "bundle/image_tokenizer/config.json",
        "bundle/image_tokenizer/model.safetensors",
    ),
    applies=lambda recipe: recipe.has_model,
    needs=("prepare", "retrieval"),
    steps=steps,
    costly=("training", "bundle", "adapter"),
    is_shared=True,
    incomplete=incomplete,
    check=check_train,
)
