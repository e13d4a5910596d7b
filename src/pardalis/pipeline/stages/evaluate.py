"""Stage ``evaluate``: score the trained model on the tasks of ``[evaluation]``.

Results of another model or of other tasks are kept under another name.
"""

from pardalis.bundle import CARD
from pardalis.errors import DataError
from pardalis.evaluate.tasks.card import card_of
from pardalis.evaluate.tasks.find import LoadedTask
from pardalis.files import found_at, write_text
from pardalis.pipeline.recipe import Recipe
from pardalis.pipeline.stages.stage import Inputs, RunContext, Stage

FOLDER = "evaluation"


def inputs(context: RunContext) -> Inputs:
    """Return the tasks and their files; what lies in the run is an input of its own stage."""
    evaluation = context.recipe.evaluation
    assert evaluation is not None
    loaded = evaluation.load(context.folder)
    found: Inputs = {
        "tasks": {each.task.name: each.task for each in loaded},
        "limits": {each.task.name: evaluation.limit or each.task.limit for each in loaded},
        "shots": evaluation.shots,
        "seeds": evaluation.seeds,
    }
    if not evaluation.is_built:
        found["files"] = {each.task.name: _digests(each, context) for each in loaded}
    return {"evaluation": found}


def _digests(loaded: LoadedTask, context: RunContext) -> dict[str, str]:
    """Return the hashes of the files of a task; raises DataError."""
    layouts = [each for each in (loaded.task.data, loaded.task.examples) if each is not None]
    found = {}
    for path in (path for each in layouts for path in each.files):
        try:
            found[str(path)] = context.digests.of(loaded.folder / path)
        except OSError as error:
            raise DataError(
                f"Task {loaded.task.name!r} of evaluation needs {loaded.folder / path}, which "
                f"{found_at(loaded.folder / path)}; put it there, or set evaluation.data."
            ) from error
    return found


def check(context: RunContext) -> None:
    """Read the items of all tasks; raises ConfigError and DataError."""
    evaluation = context.recipe.evaluation
    assert evaluation is not None
    if evaluation.training is not None:
        evaluation.chosen(context.folder)
    if not evaluation.is_built:
        evaluation.task_set(context.folder)


def run(context: RunContext) -> None:
    evaluation, folder = context.recipe.evaluation, context.folder
    assert evaluation is not None
    tasks = evaluation.task_set(folder)
    bundle = folder / "bundle"
    tasks.evaluate(bundle, folder / FOLDER, device=context.world.device)
    write_text(bundle / CARD, card_of(bundle, folder / FOLDER))


def _applies(recipe: Recipe) -> bool:
    return recipe.has_model and recipe.evaluation is not None


STAGE = Stage(
    name="evaluate",
    run=run,
    inputs=inputs,
    outputs=(f"{FOLDER}/results.json", f"{FOLDER}/index.html"),
    applies=_applies,
    needs=("corpus", "train"),
    costly=(FOLDER,),
    check=check,
)
