"""Stage ``train``: train the decoder on the shards, and write the bundle."""

from pardalis import config as configs
from pardalis.parallel import layout_of
from pardalis.pipeline.builders import codec_of, decoder_task
from pardalis.pipeline.export import checkpoint_bundle
from pardalis.pipeline.recipe import Recipe
from pardalis.pipeline.stages.stage import Inputs, RunContext, Stage
from pardalis.train import train


def inputs(context: RunContext) -> Inputs:
    recipe = context.recipe
    return {
        # The bundle of start_from decides the rest; it is an input of the stage prepare.
        "model": recipe.model if recipe.start_from else recipe.model_config(vocab_size=1),
        "training": recipe.training,
        "sources": {source.name: source.weight for source in recipe.sources},
        "curriculum": recipe.curriculum,
    }


def steps(recipe: Recipe) -> int:
    return recipe.training_loop.steps if recipe.training_loop else 0


def run(context: RunContext) -> None:
    recipe, folder, world = context.recipe, context.folder, context.world
    assert recipe.training_loop is not None, "the stage applies"
    codec = codec_of(recipe, folder)
    task = decoder_task(recipe, folder, codec, layout_of(world, recipe.parallel))
    settings = STAGE.settings(context) | {
        "model": configs.to_dict(task.model.config),
        "codec": codec.fingerprint,
    }
    train(task, folder / "training", recipe.training_loop, "Decoder", settings, world)
    if world.is_first:
        checkpoint_bundle(recipe, folder, codec).save(folder / "bundle")


STAGE = Stage(
    name="train",
    run=run,
    inputs=inputs,
    outputs=("training", "bundle"),
    applies=lambda recipe: recipe.has_decoder,
    needs=("prepare",),
    steps=steps,
    costly=("training", "bundle"),
    is_shared=True,
)
