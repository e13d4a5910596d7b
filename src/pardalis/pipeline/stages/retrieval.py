"""Stage ``retrieval``: build the index of documents, and find the candidates of every document."""

import logging
import shutil
from dataclasses import replace

from pardalis.bundle import read_licences
from pardalis.config import deciding
from pardalis.data import SourceConfig
from pardalis.pipeline.builders import codec_of, located
from pardalis.pipeline.checks import check_retrieval
from pardalis.pipeline.recipe import Recipe
from pardalis.pipeline.retrieval import builds_index, transforms_of, used_index
from pardalis.pipeline.stages.stage import Inputs, RunContext, Stage
from pardalis.retrieval import Index, IndexConfig, build_index, write_neighbours
from pardalis.retrieval.transform import NEIGHBOURS

logger = logging.getLogger(__name__)


def inputs(context: RunContext) -> Inputs:
    recipe = context.recipe
    config, transforms = recipe.retrieval_config, transforms_of(recipe.all_sources)
    embedder, given = config.known_embedder(recipe.all_sources), {}
    if embedder is not None:
        embedder.require()
    if not builds_index(recipe.all_sources):
        folder = used_index(recipe.all_sources, context.folder)
        given = {"index": Index.open(folder).identity}
    return {
        "retrieval": deciding(replace(config, embedder=embedder)),
        "net_files": [context.digests.of(path) for path in (embedder.files if embedder else ())],
        "row_tokens": recipe.model_run.prepare.row_tokens,
        "document_tokens": {name: each.document_tokens for name, each in transforms.items()},
        "seed": recipe.model_run.training.data_seed,
        **given,
    }


def sources(recipe: Recipe) -> list[SourceConfig]:
    """Return the sources that are indexed or retrieved for."""
    found = {s.name: s for s in recipe.all_sources if s.name in transforms_of(recipe.all_sources)}
    if builds_index(recipe.all_sources):
        found |= {source.name: source for source in recipe.retrieval_config.indexed(recipe.sources)}
    return list(found.values())


def run(context: RunContext) -> None:
    recipe, folder = context.recipe, context.folder
    config, transforms = recipe.retrieval_config, transforms_of(recipe.all_sources)
    codec = codec_of(recipe, folder, context.world.device)
    place = used_index(recipe.all_sources, folder)
    if builds_index(recipe.all_sources):
        indexed = config.indexed(recipe.sources)
        described = IndexConfig(
            embedder=config.embedder,
            document_tokens=recipe.model_run.prepare.row_tokens,
            separator=config.separator,
        )
        contents = context.surveys(indexed)
        index = build_index(
            place,
            [located(source, folder) for source in indexed],
            codec,
            described,
            contents,
            read_licences(folder / "shards"),
        )
    else:
        index = Index.open(place, codec)
    if transforms:
        _find_neighbours(context, index)


def _find_neighbours(context: RunContext, index: Index) -> None:
    recipe, folder = context.recipe, context.folder
    config, transforms = recipe.retrieval_config, transforms_of(recipe.all_sources)
    for path in (folder / NEIGHBOURS).glob("*/"):
        if path.name not in transforms and not path.is_symlink():
            shutil.rmtree(path)
    embedder, search = index.embedder(config.embedder), index.search()
    for source in recipe.all_sources:
        if source.name not in transforms:
            continue
        report = write_neighbours(
            folder / NEIGHBOURS / source.name,
            located(source, folder),
            index,
            embedder,
            search,
            config.rules,
            document_tokens=transforms[source.name].document_tokens,
            n_documents=context.survey(source).n_items,
            seed=recipe.model_run.training.data_seed,
        )
        logger.info(
            "%s: %d documents got %.2f candidates each, %d of them none; the mean score is %.2f.",
            source.name, report.documents, report.candidates / max(1, report.documents),
            report.without, report.mean_score,
        )  # fmt: skip


def incomplete(context: RunContext) -> str:
    transforms = transforms_of(context.recipe.all_sources)
    needed = [f"{NEIGHBOURS}/{name}/neighbours.json" for name in transforms]
    if builds_index(context.recipe.all_sources):
        needed.append("retrieval/index/index.json")
    return next((name for name in needed if not (context.folder / name).is_file()), "")


STAGE = Stage(
    name="retrieval",
    run=run,
    inputs=inputs,
    outputs=("retrieval",),
    applies=lambda recipe: recipe.has_model and recipe.retrieves,
    needs=("corpus", "text_tokenizer", "image_tokenizer", "prepare"),
    sources=sources,
    check=check_retrieval,
    incomplete=incomplete,
)
