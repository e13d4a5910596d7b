"""Mistakes in a recipe that a stage would refuse, found before any stage runs.

Each function is the ``check`` of a stage. It asks the functions that the stage asks later, with
what is known by then: nothing of what stages write is read.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pardalis import bundle as bundles
from pardalis.adapters import install, row_ids
from pardalis.data import Transforms
from pardalis.data.prepare import longest_document
from pardalis.errors import ConfigError, DataError
from pardalis.model import build
from pardalis.objectives import learnt_roles
from pardalis.parallel.layout import data_ranks
from pardalis.pipeline.builders import check_adapter_ranks, check_rows_together, model_config
from pardalis.pipeline.plan import planned_image_tokenizer, planned_model, planned_vocabulary
from pardalis.pipeline.prompts import MIN_TEXT_TOKENS
from pardalis.pipeline.recipe import Recipe
from pardalis.pipeline.retrieval import builds_index, transforms_of, used_index
from pardalis.pipeline.stages.stage import RunContext, is_built
from pardalis.pipeline.start import codec_bundle, image_tokenizer_folder
from pardalis.retrieval import Index
from pardalis.retrieval.index import separator_id
from pardalis.tokens import Grammar
from pardalis.train.decoder_task import check_training
from pardalis.train.image_tokenizer import check_image_training
from pardalis.vq import ImageTokenizer
from pardalis.weights import check_weights


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Prepend the place to an error, which may begin with the bare name of a field."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{place}{error}") from error


def check_image_tokenizer(context: RunContext) -> None:
    """Raise ConfigError or DataError if the image tokenizer cannot be trained."""
    recipe, described = context.recipe, context.recipe.image_tokenizer_run
    with _at("image_tokenizer_training: "):
        check_image_training(
            described.model, described.training, described.loop.steps, context.world.size
        )
    if any(is_built(source) for source in recipe.sources):
        return
    surveys = context.surveys(recipe.sources)
    if not any(found.n_images - found.n_rejections for found in surveys):
        raise DataError(
            "The sources hold no image, so no image tokenizer can be trained; check the path and "
            "the reader of each of `sources` in the recipe."
        )


def check_prepare(context: RunContext) -> None:
    """Raise an error if documents cannot become rows.

    Raises:
        ConfigError: a row is shorter than an image of the sources, or than what transforms take, or
            the given vocabulary lacks what transforms write.
        BundleError: the given tokenizers cannot be read.
    """
    recipe = context.recipe
    row_tokens = recipe.model_run.prepare.row_tokens
    longest = {each.name: longest_document(each, row_tokens) for each in recipe.all_sources}
    if context.awaits_model:
        return
    if (bundle := codec_bundle(recipe)) is not None:
        grammar = bundles.load_codec(bundle).grammar
        for source in recipe.all_sources:
            Transforms(source.transforms, grammar, source.name)
    elif recipe.image_tokenizer_from is not None:
        ImageTokenizer.load(image_tokenizer_folder(recipe, context.folder))
    needed = 1 + _tokens_per_image(recipe)  # with bos
    for source in recipe.all_sources:
        if longest[source.name] >= needed or is_built(source):
            continue
        found = context.survey(source)
        if found.n_images > found.n_rejections:
            raise ConfigError(
                f"prepare.row_tokens is {row_tokens}, which holds a document of "
                f"{longest[source.name]} tokens of source {source.name!r}, but an image takes "
                f"{needed} with its <bos>; raise it, or use an image tokenizer with fewer codes."
            )


def check_retrieval(context: RunContext) -> None:
    """Raise an error if nothing can be retrieved as the recipe says.

    Raises:
        ConfigError: the sources, the separator, the objective and the transforms do not fit each
            other, or a package is missing.
        BundleError: weights are missing.
        DataError: there is no index of the name that a transform gives, or other nets made it.
    """
    recipe = context.recipe
    config, transforms = recipe.retrieval_config, transforms_of(recipe.all_sources)
    config.indexed(recipe.sources)
    if (embedder := config.known_embedder(recipe.all_sources)) is not None:
        embedder.require()
    own = builds_index(recipe.all_sources)
    if not own:
        _check_other_index(recipe, Index.open(used_index(recipe.all_sources, context.folder)))
    roles = learnt_roles(recipe.model_run.training.objective)
    sources = {source.name: source for source in recipe.all_sources}
    for name, each in transforms.items():
        if each.documents > config.rules.candidates:
            raise ConfigError(
                f"The transform 'retrieval' of source {name!r} draws documents = {each.documents} "
                f"of retrieval.rules.candidates = {config.rules.candidates}; raise the candidates."
            )
        if each.learn_retrieved and sources[name].learnt_roles(roles):
            raise ConfigError(
                f"The objective learns the turns of some roles alone, but source {name!r} would "
                "also learn what is retrieved; set learn_retrieved = false in its transform."
            )
    if own and config.separator and not context.awaits_model:
        with _at("retrieval: "):
            separator_id(Grammar(planned_vocabulary(recipe), 1), config.separator)


def _check_other_index(recipe: Recipe, index: Index) -> None:
    config = recipe.retrieval_config
    if config.separator or config.sources:
        name = "separator" if config.separator else "sources"
        raise ConfigError(
            f"retrieval.{name} describes an index that the run builds, but the transforms take "
            f"{index.folder}; leave it out, or leave out `index`."
        )
    index.embedder(config.embedder)


def check_train(context: RunContext) -> None:
    """Raise an error if the model cannot be trained.

    Raises:
        ConfigError: the schedule, the curriculum, the batch, the ranks, the objective, the shape
            of the model and the sources do not fit each other.
        BundleError: the weights that training starts from are damaged or do not fit.
    """
    recipe = context.recipe
    described, steps = recipe.model_run, recipe.model_run.loop.steps
    replicate, shard = data_ranks(context.world.size, recipe.parallel)
    with _at("training: "):
        check_training(described.training, steps, replicate * shard)
    for number, stage in enumerate(recipe.curriculum):
        if stage.from_step >= steps:
            raise ConfigError(
                f"curriculum.{number}.from_step is {stage.from_step}, but the run ends after "
                f"training_loop.steps = {steps}, so that stage never begins; lower it, leave the "
                "stage out, or raise the steps."
            )
    has_pairs = {source.has_pairs for source in recipe.all_sources}
    if len(has_pairs) > 1:
        raise ConfigError(
            "Some of the sources have the reader 'pairs' and others do not, but a run learns from "
            "pairs or from rows; leave the others out."
        )
    if context.awaits_model:
        return
    if recipe.parallel.tensor > 1:
        planned_model(recipe).check_tensor(recipe.parallel.tensor)
    vocabulary = planned_vocabulary(recipe)
    with torch.device("meta"):
        model = build(model_config(recipe, vocabulary.size))
    if recipe.start_from is not None:
        check_weights(model, recipe.start_from / bundles.MODEL)
    if recipe.adapter is not None:
        check_adapter_ranks(recipe.adapter, context.world.size)
        with _at("adapter."):
            ids = row_ids(recipe.adapter.rows, vocabulary)
        with torch.device("meta"):
            install(build(model.config), recipe.adapter, ids)
    modalities = {name: ids for name, ids in vocabulary.modalities.items() if name != "text"}
    objective = described.training.objective.build(modalities, lambda: model)
    check_rows_together(recipe, objective, 2 if True in has_pairs else 1)
    with _at("training: "):
        check_training(described.training, steps, replicate * shard, objective.rows_together)


def check_sample(context: RunContext) -> None:
    """Raise ConfigError if no prompt of ``[sample]`` can be completed within the context."""
    recipe = context.recipe
    if context.awaits_model:
        return
    size = model_config(recipe, planned_vocabulary(recipe).size).context
    n_image = 1 + _tokens_per_image(recipe)  # with bos
    for name, needed in (("images", n_image), ("captions", n_image + MIN_TEXT_TOKENS)):
        if getattr(recipe.sample, name) and needed > size:
            raise ConfigError(
                f"sample.{name} is {getattr(recipe.sample, name)}, but each takes at least "
                f"{needed} tokens, and the context of the model is {size}; set sample.{name} to "
                "0, or raise prepare.row_tokens."
            )


def _tokens_per_image(recipe: Recipe) -> int:
    codes = planned_image_tokenizer(recipe).codes_per_image
    return Grammar(planned_vocabulary(recipe), codes).tokens_per_image
