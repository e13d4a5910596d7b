"""Stage ``image_tokenizer``: train the image tokenizer on the images of the sources."""

import logging
from collections.abc import Callable
from pathlib import Path

from pardalis.errors import ConfigError
from pardalis.evaluate.training_page import write_training_page
from pardalis.pipeline.builders import image_tokenizer_task
from pardalis.pipeline.checks import check_image_tokenizer
from pardalis.pipeline.recipe import Recipe
from pardalis.pipeline.stages.stage import Inputs, RunContext, Stage
from pardalis.pipeline.start import net_files
from pardalis.train import ImageTokenizerTask, Line, LoopConfig, train
from pardalis.vq import ImageTokenizer

logger = logging.getLogger(__name__)


def inputs(context: RunContext) -> Inputs:
    recipe = context.recipe
    return {
        "model": recipe.image_tokenizer_run.model,
        "training": recipe.image_tokenizer_run.training,
        "images": recipe.image_tokenizer_run.images,
        "net_files": net_files(recipe, context.digests.of),
    }


def steps(recipe: Recipe) -> int:
    return recipe.image_tokenizer_run.loop.steps if recipe.trains_image_tokenizer else 0


def run(context: RunContext) -> None:
    train_image_tokenizer(context, context.folder / "image_tokenizer")


def train_image_tokenizer(context: RunContext, folder: Path) -> ImageTokenizer:
    """Train the image tokenizer of a recipe on the images of its sources.

    Args:
        folder: takes metrics, checkpoints, the page ``progress.html``, and in ``final`` the
            tokenizer.
    """
    recipe, world = context.recipe, context.world
    loop = recipe.image_tokenizer_run.loop
    task = image_tokenizer_task(recipe, context.folder, world)
    settings = STAGE.settings(context) if world.is_first else {}
    page = _page_writer(task, folder, loop)
    train(task, folder, loop, "Image tokenizer", settings, world, page)
    if world.is_first:
        task.trained.save(folder / "final")
    return task.trained


def _page_writer(
    task: ImageTokenizerTask, folder: Path, loop: LoopConfig
) -> Callable[[Line], None]:
    """Return a function that writes the page of a training run, or warns once that it cannot."""
    warned = False

    def write(line: Line) -> None:
        nonlocal warned
        if warned:
            return
        originals, reconstructions = task.samples()
        is_finished = line["step"] == loop.steps
        try:
            write_training_page(
                folder, originals, reconstructions, task.recent_counts(), line,
                is_finished=is_finished,
            )  # fmt: skip
        except ConfigError as error:
            warned = True
            logger.warning("No progress page is written: %s", error)

    return write


STAGE = Stage(
    name="image_tokenizer",
    run=run,
    inputs=inputs,
    outputs=("image_tokenizer/final/config.json", "image_tokenizer/final/model.safetensors"),
    applies=lambda recipe: recipe.trains_image_tokenizer,
    needs=("corpus",),
    steps=steps,
    costly=("image_tokenizer",),
    is_shared=True,
    sources=lambda recipe: recipe.sources,
    is_frozen=lambda recipe: recipe.image_tokenizer_run.freeze,
    check=check_image_tokenizer,
)
