"""Tasks that measure a model while it is trained.

RUN/training/metrics.jsonl               their numbers, ``tasks/<task>/<number>``, in its lines
RUN/training/tasks/step-00000100/        every item and a page, as of any evaluation
"""

import logging
from pathlib import Path
from typing import Any

from pardalis.bundle import Bundle
from pardalis.codec import Codec
from pardalis.errors import PardalisError
from pardalis.files import remove
from pardalis.parallel import World
from pardalis.pipeline.export import bundle_in_training
from pardalis.pipeline.recipe import Recipe
from pardalis.train import DecoderTask, Measurement

logger = logging.getLogger(__name__)

FOLDER = "tasks"  # also the first part of their names in metrics.jsonl


def measurement_of(
    recipe: Recipe, run: Path, codec: Codec, task: DecoderTask, world: World
) -> Measurement | None:
    """Return what is measured of a task in training; None: nothing.

    An evaluation that fails is told, and training goes on without its numbers.

    Raises:
        DataError: a file or an image of a task is missing, or an item does not fit its task.
        RequestError: the model cannot do what a task asks, such as generate images.
    """
    evaluation = recipe.evaluation
    if evaluation is None or evaluation.training is None:
        return None
    tasks = evaluation.training_set(run)
    tasks.check_bundle(Bundle(task.model, codec, {}))

    def measure(steps: int) -> dict[str, float]:
        bundle = bundle_in_training(recipe, task, codec)
        numbers: dict[str, float] = {}
        if bundle is not None:
            folder = run / "training" / FOLDER / f"step-{steps:08d}"
            remove(folder)  # of steps that are repeated
            try:
                numbers = _numbers(tasks.evaluate(bundle, folder))
            except PardalisError as error:
                logger.warning("Step %d is not evaluated on its tasks: %s", steps, error)
        world.broadcast()  # the others wait, whose next step needs the first
        return numbers

    return Measurement(evaluation.training.every, measure)


def _numbers(results: dict[str, Any]) -> dict[str, float]:
    """Return the values of results.json by the names that metrics.jsonl has for them."""
    return {
        f"{FOLDER}/{task}/{name}": number["value"]
        for task, entry in results["tasks"].items()
        for name, number in entry["numbers"].items()
    }
