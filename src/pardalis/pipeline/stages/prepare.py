"""Stage ``prepare``: encode the documents of every source and write them as shards."""

import logging
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from pardalis.data import (
    Preparation,
    PrepareReport,
    Shards,
    balance,
    blocks_folder,
    shard_inputs,
)
from pardalis.data.blocks import SETTINGS
from pardalis.data.shards import INDEX
from pardalis.errors import DataError
from pardalis.files import remove
from pardalis.objectives import learnt_roles
from pardalis.pipeline.builders import codec_of, located
from pardalis.pipeline.checks import check_prepare
from pardalis.pipeline.licences import refresh_licences, write_licences
from pardalis.pipeline.recipe import Recipe
from pardalis.pipeline.stages.stage import CONTENTS, Inputs, RunContext, Stage
from pardalis.pipeline.start import given_content

logger = logging.getLogger(__name__)


def inputs(context: RunContext) -> Inputs:
    # Later stages read the bundle that the run starts from too, and they need this stage.
    recipe = context.recipe
    row_tokens = recipe.model_run.prepare.row_tokens
    roles = learnt_roles(recipe.model_run.training.objective)
    has_pages = any(source.has_pages for source in recipe.all_sources)
    learnt_whole = [source.name for source in recipe.all_sources if source.learn == "all"]
    return {
        "prepare": recipe.model_run.prepare,
        "image_fit": recipe.image_fit,
        "vocabulary": recipe.new_vocabulary,
        "given": given_content(recipe, context.digests.of) or [],  # as earlier versions wrote it
        "transforms": {
            source.name: shard_inputs(source.transforms, row_tokens)
            for source in recipe.all_sources
        },
        **({"learnt_roles": roles} if roles else {}),
        **({"learnt_whole": learnt_whole} if roles and learnt_whole else {}),
        # Absent in what earlier versions wrote, which rejected such a page whole.
        **({"damaged_images": "left out of pages"} if has_pages else {}),
    }


def run(context: RunContext) -> None:
    recipe, shards = context.recipe, context.folder / "shards"
    _remove_others(shards, {source.name for source in recipe.all_sources})
    reports = {name: each.run(context.workers) for name, each in preparations(context).items()}
    remove(context.folder / CONTENTS)
    _report_turns(recipe, reports)
    write_licences(context)


def preparations(context: RunContext) -> dict[str, Preparation]:
    """Return the preparation of each source, by name, which the same codec encodes."""
    recipe, folder = context.recipe, context.folder
    codec = codec_of(recipe, folder, context.world.device)
    prepare = recipe.model_run.prepare
    roles = learnt_roles(recipe.model_run.training.objective)
    return {
        source.name: Preparation(
            located(source, folder),
            codec,
            folder / "shards" / source.name,
            prepare,
            context.survey(source),
            roles,
        )
        for source in recipe.all_sources
    }


def _remove_others(shards: Path, names: Collection[str]) -> None:
    """Delete the shards, and blocks of shards, of sources that the recipe no longer has."""
    blocks = {blocks_folder(shards / name).name for name in names}
    for path in shards.glob("*/"):
        # Nothing else is deleted: in a run from elsewhere the folder may be a link to any other.
        is_ours = (path / INDEX).is_file() or (path / SETTINGS).is_file()
        if path.name not in {*names, *blocks} and is_ours and not path.is_symlink():
            shutil.rmtree(path)


def incomplete(context: RunContext) -> str:
    for source in context.recipe.all_sources:
        try:
            Shards.open(context.folder / "shards" / source.name)
        except DataError:
            return f"shards/{source.name}"
    return ""


def _report_turns(recipe: Recipe, reports: Mapping[str, PrepareReport]) -> None:
    """Log what is read and learnt of conversations, and warn if one modality dominates answers."""
    for name, report in reports.items():
        if (turns := report.turns) is not None:
            logger.info(
                "%s: %d conversations (%d items rejected); prompts: %d tokens, %d images; answers: "
                "%d tokens, %d images, %.1f %% of the tokens are of images.",
                name, turns.conversations, report.n_rejected, turns.prompt_tokens,
                turns.prompt_images, turns.answer_tokens, turns.answer_images, turns.image_percent,
            )  # fmt: skip
    of_sources = {source.name: source.weight for source in recipe.sources}
    mixtures = {stage.from_step: stage.weights for stage in recipe.curriculum} or {0: of_sources}
    for from_step, weights in mixtures.items():
        found = balance({name: reports[name] for name in weights}, weights)
        if found is not None and found.warning:
            logger.warning("%s%s", f"From step {from_step}: " if from_step else "", found.warning)


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
