"""The parts of a run, built from its recipe and folder: documents, codec, loader, model, task."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pardalis import bundle as bundles
from pardalis import config as configs
from pardalis.adapters import AdapterConfig, install, row_ids, start
from pardalis.codec import Codec
from pardalis.data import (
    CurriculumStage,
    Loader,
    PairLoader,
    Shards,
    SourceConfig,
    Transforms,
    read_source,
)
from pardalis.documents import Document, Image
from pardalis.errors import ConfigError, DataError
from pardalis.model import LanguageModel, build, initialise
from pardalis.objectives import Objective
from pardalis.parallel import Layout, World, fill, parallelise
from pardalis.pipeline.paths import in_run
from pardalis.pipeline.recipe import GivenModel, Recipe, load_recipe
from pardalis.pipeline.start import codec_bundle, image_tokenizer_folder, start_config
from pardalis.tokens import TextTokenizer
from pardalis.train import DecoderTask, ImageTokenizerTask
from pardalis.vq import ImageTokenizer
from pardalis.weights import stream_weights

# ── documents ────────────────────────────────────────────────────────────────────────────────────


def located(source: SourceConfig, run: Path) -> SourceConfig:
    """Return a source with the run folder in the place of ``{run}`` in its path."""
    there = functools.partial(in_run, run=run)
    return dataclasses.replace(
        source, path=there(source.path), rules=configs.replaced_paths(source.rules, there)
    )


def documents_of(sources: Iterable[SourceConfig], run: Path) -> Iterator[Document]:
    """Yield the readable documents of sources, one source after the other."""
    for source in sources:
        items = read_source(located(source, run))
        yield from (item for item in items if isinstance(item, Document))


def images_of(
    sources: Iterable[SourceConfig], run: Path, seen: set[Path | bytes], most: int | None = None
) -> list[Image]:
    """Return the images of sources that are not in ``seen``, each once, and add them to it.

    No image is opened.
    """
    images: list[Image] = []
    for image in (image for document in documents_of(sources, run) for image in document.images):
        if len(images) == most:
            break
        if isinstance(image.source, Path | bytes) and image.source not in seen:
            seen.add(image.source)
            images.append(image)
    return images


# ── tokenizers ───────────────────────────────────────────────────────────────────────────────────


def load_codec(run: Path, device: torch.device | str = "cpu") -> Codec:
    """Return the codec of a run: of its own tokenizers, or of the bundle that it starts from.

    Raises:
        ConfigError: the folder has no recipe.
        BundleError: the tokenizers or the bundle are missing.
    """
    return codec_of(load_recipe(run / "recipe.toml"), run, device)


def codec_of(recipe: Recipe, run: Path, device: torch.device | str = "cpu") -> Codec:
    """Return the codec of a recipe's run, whose tokenizers are trained; raises BundleError."""
    if (bundle := codec_bundle(recipe)) is not None:
        return bundles.load_codec(bundle, device).fitting(recipe.image_fit)
    image_tokenizer = ImageTokenizer.load(image_tokenizer_folder(recipe, run)).to(device)
    text_tokenizer = TextTokenizer.load(run / "text_tokenizer" / "tokenizer.json")
    codec = Codec.of(text_tokenizer, image_tokenizer, recipe.image_fit)
    names = recipe.new_vocabulary
    vocabulary = codec.vocabulary.extended(names.special, writable=names.writable)
    return Codec(vocabulary, text_tokenizer, image_tokenizer, recipe.image_fit)


def image_tokenizer_task(recipe: Recipe, run: Path, world: World) -> ImageTokenizerTask:
    """Return the training task of a recipe's image tokenizer; raises DataError without images."""
    described = recipe.image_tokenizer_run
    seen = set[Path | bytes]()
    images = images_of(recipe.sources, run, seen, described.images)
    if not images:
        raise DataError(
            "The sources hold no image, so no image tokenizer can be trained; check the path and "
            "the reader of each of `sources` in the recipe."
        )
    heldout = images_of(recipe.heldout, run, seen)
    return ImageTokenizerTask(
        described.model,
        described.training,
        images,
        heldout,
        total_steps=described.loop.steps,
        world=world,
    )


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


def training_loader(recipe: Recipe, run: Path, codec: Codec) -> Loader:
    """Return the loader of a run's training rows."""
    weights = {source.name: source.weight for source in recipe.sources}
    return _loader(recipe.sources, run, recipe.curriculum or weights, codec, recipe)


def _heldout_loader(recipe: Recipe, run: Path, codec: Codec) -> tuple[Loader | None, int]:
    """Return the loader of the held-out rows and its number of batches, each row at most once."""
    if not recipe.heldout:
        return None, 0
    shards = _shards(recipe.heldout, run, codec)
    weights = {name: float(each.n_rows) for name, each in shards.items()}
    n_rows = min(recipe.heldout_rows, sum(each.n_rows for each in shards.values()))
    n_batches = max(1, n_rows // recipe.model_run.training.batch_rows)
    return _loader(recipe.heldout, run, weights, codec, recipe), n_batches


def _shards(sources: Iterable[SourceConfig], run: Path, codec: Codec) -> dict[str, Shards]:
    return {
        source.name: Shards.open(
            run / "shards" / source.name, codec.fingerprint, codec.vocabulary.size
        )
        for source in sources
    }


def _loader(
    sources: Sequence[SourceConfig],
    run: Path,
    weights: Mapping[str, float] | Sequence[CurriculumStage],
    codec: Codec,
    recipe: Recipe,
) -> Loader:
    described, shards = recipe.model_run, _shards(sources, run, codec)
    loader = PairLoader if any(each.has_pairs for each in shards.values()) else Loader
    return loader(
        shards,
        weights,
        row_tokens=described.prepare.row_tokens,
        batch_rows=described.training.batch_rows,
        seed=described.training.data_seed,
        pad_id=codec.vocabulary.pad_id,
        transforms={
            source.name: Transforms(source.transforms, codec.grammar, source.name, run)
            for source in sources
        },
    )


# ── the model ────────────────────────────────────────────────────────────────────────────────────


def model_config(recipe: Recipe, vocab_size: int) -> Any:
    """Return the config of the model that a recipe trains."""
    described = recipe.model_run
    model, row_tokens = described.model, described.prepare.row_tokens
    if isinstance(model, GivenModel):
        return start_config(model, row_tokens)
    return model.sized(vocab_size, row_tokens)


def new_model(recipe: Recipe, codec: Codec, layout: Layout) -> LanguageModel:
    """Return the model that training starts with, sharded over the ranks.

    It has the weights of the bundle that the recipe starts from, or new initial values. No rank
    holds more than its own part.
    """
    training = recipe.model_run.training
    with torch.device("meta"):
        model = build(model_config(recipe, codec.vocabulary.size))
    parallelise(model, layout, recipe.parallel, training.precision)
    if recipe.start_from is None:
        return initialise(model, training.init_seed)
    stream_weights(model, recipe.start_from / bundles.MODEL, fill)
    return model


def adapted_model(
    recipe: Recipe, adapter: AdapterConfig, codec: Codec, layout: Layout
) -> LanguageModel:
    """Return the model of the bundle that a recipe starts from, frozen, with a new adapter.

    Raises:
        ConfigError: the adapter does not fit the model or the ranks.
    """
    folder, training = recipe.start_from, recipe.model_run.training
    assert folder is not None
    check_adapter_ranks(adapter, layout.world.size)
    is_narrow = layout.mesh is not None and training.precision == "bfloat16"  # by FSDP
    with torch.device("meta"):
        model = build(model_config(recipe, codec.vocabulary.size))
    trained = install(
        model,
        adapter,
        row_ids(adapter.rows, codec.vocabulary),
        dtype=bundles.stored_dtype(folder),
        vectors_dtype=torch.bfloat16 if is_narrow else torch.float32,
    )
    parallelise(model, layout, recipe.parallel, training.precision)
    stream_weights(model, folder / bundles.MODEL, fill, trained)
    start(model, adapter, training.init_seed)
    return model


def check_adapter_ranks(adapter: AdapterConfig, ranks: int) -> None:
    """Raise ConfigError if an adapter cannot be trained by as many ranks."""
    if adapter.base_dtype == "int8" and ranks > 1:
        raise ConfigError(
            f"adapter.base_dtype = 'int8' works in one process, and {ranks} run; use 'bfloat16', "
            "which the ranks share."
        )


def model_task(recipe: Recipe, run: Path, codec: Codec, layout: Layout) -> DecoderTask:
    """Return the training task of a recipe's model."""
    described = recipe.model_run
    modalities = {name: i for name, i in codec.vocabulary.modalities.items() if name != "text"}
    objective = described.training.objective.build(
        modalities, lambda: new_model(recipe, codec, layout)
    )
    rows = training_loader(recipe, run, codec)
    check_rows_together(recipe, objective, rows.rows_per_position)
    heldout, heldout_batches = _heldout_loader(recipe, run, codec)
    adapter = recipe.adapter
    model = (
        new_model(recipe, codec, layout)
        if adapter is None
        else adapted_model(recipe, adapter, codec, layout)
    )
    return DecoderTask(
        model,
        rows,
        objective,
        described.training,
        total_steps=described.loop.steps,
        modalities=modalities,
        heldout=heldout,
        heldout_batches=heldout_batches,
        layout=layout,
    )


def check_rows_together(recipe: Recipe, objective: Objective, given: int) -> None:
    """Raise ConfigError unless sources give as many rows at a time as the objective takes."""
    if given != objective.rows_together:
        raise ConfigError(
            f"training.objective.kind = {recipe.model_run.training.objective.kind!r} learns from "
            f"{objective.rows_together} rows at a time, and the sources give {given}; pairs are "
            "what the reader 'pairs' makes."
        )
