"""The stages of a run, in order: each reads what earlier ones left in the run folder.

RUN/
├─ recipe.toml            the resolved recipe
├─ stages.json            what each stage took, and what it was made from
├─ corpus/                a corpus built from packages, if the recipe asks for one
├─ text_tokenizer/        tokenizer.json
├─ image_tokenizer/       metrics, checkpoints, progress.html; final/ is the trained tokenizer
├─ shards/<source>/       ids, row plan, report of rejections
├─ training/              metrics and checkpoints of the decoder
├─ bundle/                the portable model
├─ samples/               what the model answered
└─ report.html, report.json

A run that starts from a bundle has that bundle's tokenizers, and no folders of its own for them.
"""

import dataclasses
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pardalis import bundle as bundles
from pardalis import config as configs
from pardalis.codec import Codec
from pardalis.corpora.drawings import PACKAGES as DRAWING_PACKAGES
from pardalis.corpora.drawings import build_drawings
from pardalis.corpora.encyclopedia import build_encyclopedia, package_versions
from pardalis.data import CurriculumStage, Loader, Shards, SourceConfig, prepare_source, read_source
from pardalis.documents import Document, Image
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate import ImageFeatures, write_report
from pardalis.evaluate.training_page import write_training_page
from pardalis.files import write_text
from pardalis.model import Decoder, ModelConfig, initialise
from pardalis.parallel import Layout, World, fill, layout_of, parallelise
from pardalis.pipeline.export import checkpoint_bundle
from pardalis.pipeline.recipe import RUN, Recipe, load_recipe
from pardalis.pipeline.samples import write_samples
from pardalis.pipeline.start import (
    given_content,
    image_tokenizer_folder,
    net_files,
    start_config,
    start_folder,
    start_weights,
)
from pardalis.tokens import TextTokenizer, train_text_tokenizer
from pardalis.train import ImageTokenizerTask, Line, LoopConfig, PretrainTask, train
from pardalis.vq import ImageTokenizer

logger = logging.getLogger(__name__)

_LICENCES = "LICENCES.md"
_ABSENT = "stages_of leaves this stage out of a recipe without it"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One step of a run.

    Attributes:
        name: what the command line and ``stages.json`` call it.
        command: the command that runs it alone.
        needs: stages whose results it reads.
        settings: the parts of the recipe that decide its result.
        sources: the sources whose content decides its result.
        steps: how far it goes; when this grows, it goes on where it was.
        outputs: what it makes, relative to the run folder.
        costly: what of it is kept under another name when the recipe changes.
        run: does it: (recipe, run folder, the processes that take part).
        is_shared: whether all processes take part, and not only the first.
    """

    name: str
    command: str
    run: Callable[[Recipe, Path, World], None]
    outputs: tuple[str, ...]
    needs: tuple[str, ...] = ()
    settings: Callable[[Recipe], list[Any]] = lambda recipe: []
    sources: Callable[[Recipe], tuple[SourceConfig, ...]] = lambda recipe: ()
    steps: Callable[[Recipe], int] = lambda recipe: 0
    costly: tuple[str, ...] = ()
    is_shared: bool = False


def located(source: SourceConfig, run: Path) -> SourceConfig:
    """Put the run folder into a source's path."""
    return dataclasses.replace(source, path=source.path.replace(RUN, str(run.resolve())))


def documents_of(sources: tuple[SourceConfig, ...], run: Path) -> Iterator[Document]:
    """Yield the readable documents of sources, one source after the other."""
    for source in sources:
        items = read_source(located(source, run), run)
        yield from (item for item in items if isinstance(item, Document))


def load_codec(run: Path, device: torch.device | str = "cpu") -> Codec:
    """Join the two tokenizers that a run has trained, or load those of the bundle it starts from.

    Raises:
        ConfigError: nothing ever ran in the folder.
        BundleError: the tokenizers or the bundle are not there.
    """
    return _codec(load_recipe(run / "recipe.toml"), run, device)


def _codec(recipe: Recipe, run: Path, device: torch.device | str = "cpu") -> Codec:
    if recipe.start_from is not None:
        codec = bundles.load_codec(start_folder(recipe), device)
        return Codec(
            codec.vocabulary, codec.text_tokenizer, codec.image_tokenizer, recipe.image_fit
        )
    image_tokenizer = ImageTokenizer.load(image_tokenizer_folder(recipe, run)).to(device)
    text_tokenizer = TextTokenizer.load(run / "text_tokenizer" / "tokenizer.json")
    return Codec.of(text_tokenizer, image_tokenizer, recipe.image_fit)


# ── the stages ───────────────────────────────────────────────────────────────────────────────────


def _corpus(recipe: Recipe, run: Path, world: World) -> None:
    if recipe.drawings is not None:
        build_drawings(recipe.drawings, run / "corpus")
    else:
        assert recipe.corpus is not None, _ABSENT
        build_encyclopedia(recipe.corpus, run / "corpus")


def _text_tokenizer(recipe: Recipe, run: Path, world: World) -> None:
    assert recipe.text_tokenizer is not None, _ABSENT
    texts = (document.text for document in documents_of(recipe.sources, run))
    tokenizer = train_text_tokenizer(texts, recipe.text_tokenizer.vocab_size)
    tokenizer.save(run / "text_tokenizer" / "tokenizer.json")


def _image_tokenizer(recipe: Recipe, run: Path, world: World) -> None:
    train_image_tokenizer(recipe, run, run / "image_tokenizer", world)


def train_image_tokenizer(recipe: Recipe, run: Path, folder: Path, world: World) -> ImageTokenizer:
    """Train the image tokenizer of a recipe on the images of its sources.

    Args:
        run: where a corpus that the recipe builds lies.
        folder: takes metrics, checkpoints, the page ``progress.html`` and the tokenizer, ``final``.
    """
    config, training = recipe.image_tokenizer_config(), recipe.image_tokenizer_training
    loop = recipe.image_tokenizer_loop
    assert training is not None and loop is not None, _ABSENT
    seen = set[Path | bytes]()
    images = images_of(recipe.sources, run, seen, recipe.image_tokenizer_images)
    if not images:
        raise DataError(
            "The sources hold no image, so no image tokenizer can be trained; look at their "
            "paths and readers in the recipe."
        )
    heldout = images_of(recipe.heldout, run, seen)
    task = ImageTokenizerTask(
        config, training, images, heldout, total_steps=loop.steps, world=world
    )
    settings = {
        "model": configs.to_dict(config),
        "training": configs.to_dict(training),
        "images": len(images),
    }
    if files := net_files(recipe):
        settings["net_files"] = files
    train(task, folder, loop, "Image tokenizer", settings, world, _page_writer(task, folder, loop))
    if world.is_first:
        task.trained.save(folder / "final")
    return task.trained


def _page_writer(
    task: ImageTokenizerTask, folder: Path, loop: LoopConfig
) -> Callable[[Line], None]:
    """Return what writes the page of a training run, or says once that it cannot."""
    told: list[ConfigError] = []

    def write(line: Line) -> None:
        if told:
            return
        originals, reconstructions = task.samples()
        is_finished = line["step"] == loop.steps
        try:
            write_training_page(
                folder, originals, reconstructions, task.recent_counts(), line,
                is_finished=is_finished,
            )  # fmt: skip
        except ConfigError as error:
            told.append(error)
            logger.warning("No progress page is written: %s", error)

    return write


def images_of(
    sources: tuple[SourceConfig, ...], run: Path, seen: set[Path | bytes], most: int | None = None
) -> list[Image]:
    """Return the images of sources that were not seen before, each once; none is opened."""
    images: list[Image] = []
    for image in (p for document in documents_of(sources, run) for p in document.images):
        if len(images) == most:
            break
        if isinstance(image.source, Path | bytes) and image.source not in seen:
            seen.add(image.source)
            images.append(image)
    return images


def _prepare(recipe: Recipe, run: Path, world: World) -> None:
    assert recipe.prepare is not None, _ABSENT
    codec, shards = _codec(recipe, run, world.device), run / "shards"
    sources = _all_sources(recipe)
    for leftover in set(shards.glob("*/")) - {shards / source.name for source in sources}:
        shutil.rmtree(leftover)
    for source in sources:
        folder = shards / source.name
        prepare_source(located(source, run), codec, folder, recipe.prepare, run)
    licences = run / "corpus" / _LICENCES
    if licences.is_file():
        write_text(shards / _LICENCES, licences.read_text())


def _training(recipe: Recipe, run: Path, world: World) -> None:
    config, loop = recipe.training, recipe.training_loop
    assert config is not None and loop is not None, _ABSENT
    codec = _codec(recipe, run)
    layout = layout_of(world, recipe.parallel)
    model = new_decoder(recipe, codec, layout)
    task = PretrainTask(
        model,
        training_loader(recipe, run, codec),
        config,
        codec.vocabulary.image,
        total_steps=loop.steps,
        layout=layout,
        **_heldout(recipe, run, codec),
    )
    settings = training_settings(recipe, codec, model.config)
    train(task, run / "training", loop, "Decoder", settings, world)
    if world.is_first:
        checkpoint_bundle(recipe, run, codec).save(run / "bundle")


def new_decoder(recipe: Recipe, codec: Codec, layout: Layout) -> Decoder:
    """Return what training begins with, shared among the ranks, of which none need hold it whole.

    It has the weights of the bundle to start from, or knows nothing.
    """
    config, training = _model_config(recipe, codec), recipe.training
    assert training is not None, _ABSENT
    with torch.device("meta"):
        model = Decoder(config)
    parallelise(model, layout, recipe.parallel, training.precision)
    if recipe.start_from is None:
        return initialise(model, training.init_seed)
    weights = start_weights(recipe)
    for name, parameter in model.named_parameters():
        fill(parameter, weights[name])
    return model


def training_settings(recipe: Recipe, codec: Codec, model: ModelConfig) -> dict[str, Any]:
    """Return the plain values that decide the numbers of a decoder's training."""
    settings = {
        "model": configs.to_dict(model),
        "training": _deciding(recipe),
        "codec": codec.fingerprint,
        "sources": {source.name: source.weight for source in recipe.sources},
    }
    if recipe.curriculum:
        settings["curriculum"] = [configs.to_dict(stage) for stage in recipe.curriculum]
    return settings


def _model_config(recipe: Recipe, codec: Codec) -> ModelConfig:
    if recipe.start_from is not None:
        return start_config(recipe)
    return recipe.model_config(codec.vocabulary.size)


def training_loader(recipe: Recipe, run: Path, codec: Codec) -> Loader:
    """Return the loader of a run's training rows."""
    weights = {source.name: source.weight for source in recipe.sources}
    shards = _shards(recipe.sources, run, codec)
    return _loader(shards, recipe.curriculum or weights, codec, recipe)


def _shards(sources: tuple[SourceConfig, ...], run: Path, codec: Codec) -> dict[str, Shards]:
    return {
        source.name: Shards.open(run / "shards" / source.name, codec.fingerprint)
        for source in sources
    }


def _loader(
    shards: dict[str, Shards],
    weights: dict[str, float] | tuple[CurriculumStage, ...],
    codec: Codec,
    recipe: Recipe,
) -> Loader:
    assert recipe.prepare is not None and recipe.training is not None, _ABSENT
    return Loader(
        shards,
        weights,
        row_tokens=recipe.prepare.row_tokens,
        batch_rows=recipe.training.batch_rows,
        seed=recipe.training.data_seed,
        pad_id=codec.vocabulary.pad_id,
    )


def _heldout(recipe: Recipe, run: Path, codec: Codec) -> dict[str, Any]:
    """Return what evaluates the held-out rows: each at most once, whatever source it is of."""
    if not recipe.heldout:
        return {}
    assert recipe.training is not None, _ABSENT
    shards = _shards(recipe.heldout, run, codec)
    weights = {name: float(some.n_rows) for name, some in shards.items()}
    rows = min(recipe.heldout_rows, sum(some.n_rows for some in shards.values()))
    batches = max(1, rows // recipe.training.batch_rows)
    return {"heldout_loader": _loader(shards, weights, codec, recipe), "heldout_batches": batches}


def _answer(recipe: Recipe, run: Path, world: World) -> None:
    model = bundles.load(run / "bundle", world.device)
    documents = {
        "train": documents_of(recipe.sources, run),
        "heldout": documents_of(recipe.heldout, run),
    }
    write_samples(model, documents, recipe.sample, run)


def _report(recipe: Recipe, run: Path, world: World) -> None:
    write_report(run, _codec(recipe, run).image_tokenizer, ImageFeatures.load())


def _learnt(recipe: Recipe) -> tuple[SourceConfig, ...]:
    return recipe.sources


def _decoder_settings(recipe: Recipe) -> Any:
    """Return what the recipe says of the decoder; what a bundle says of it is in start_content."""
    return recipe.model_config(vocab_size=1) if recipe.start_from is None else recipe.model


def _deciding(recipe: Recipe) -> dict[str, Any]:
    return {} if recipe.training is None else recipe.training.deciding


def _corpus_settings(recipe: Recipe) -> list[Any]:
    if recipe.drawings is not None:
        return [recipe.drawings, [package.sha256 for package in DRAWING_PACKAGES]]
    return [recipe.corpus, package_versions()]


def _all_sources(recipe: Recipe) -> tuple[SourceConfig, ...]:
    return (*recipe.sources, *recipe.heldout)


STAGES: tuple[Stage, ...] = (
    Stage(
        name="corpus",
        command="data corpus",
        settings=_corpus_settings,
        outputs=("corpus",),
        run=_corpus,
    ),
    Stage(
        name="text_tokenizer",
        command="tokenizer train-text",
        needs=("corpus",),
        settings=lambda recipe: [recipe.text_tokenizer],
        sources=_learnt,
        outputs=("text_tokenizer",),
        run=_text_tokenizer,
    ),
    Stage(
        name="image_tokenizer",
        command="tokenizer train-image",
        needs=("corpus",),
        settings=lambda recipe: [
            recipe.image_tokenizer_config(),
            recipe.image_tokenizer_training,
            recipe.image_tokenizer_images,
            *net_files(recipe),
        ],
        sources=_learnt,
        steps=lambda recipe: (
            recipe.image_tokenizer_loop.steps if recipe.image_tokenizer_loop else 0
        ),
        outputs=("image_tokenizer",),
        costly=("image_tokenizer",),
        run=_image_tokenizer,
        is_shared=True,
    ),
    Stage(
        name="prepare",
        command="data prepare",
        needs=("corpus", "text_tokenizer", "image_tokenizer"),
        # Everything that reads the bundle to start from comes after this stage and needs it.
        settings=lambda recipe: [
            recipe.prepare,
            recipe.image_fit,
            *(given_content(recipe)),
        ],
        sources=_all_sources,
        outputs=("shards",),  # each source is replaced alone, when it changed
        run=_prepare,
    ),
    Stage(
        name="train",
        command="train",
        needs=("prepare",),
        settings=lambda recipe: [
            _decoder_settings(recipe),
            _deciding(recipe),
            {source.name: source.weight for source in recipe.sources},
            *recipe.curriculum,
        ],
        steps=lambda recipe: recipe.training_loop.steps if recipe.training_loop else 0,
        outputs=("training", "bundle"),
        costly=("training", "bundle"),
        run=_training,
        is_shared=True,
    ),
    Stage(
        name="sample",
        command="sample",
        needs=("train",),
        settings=lambda recipe: [recipe.sample],
        outputs=("samples",),
        run=_answer,
    ),
    Stage(
        name="report",
        command="report",
        needs=("sample",),
        outputs=("report.json", "report.html"),
        run=_report,
    ),
)


def stages_of(recipe: Recipe) -> list[Stage]:
    """Return the stages that a recipe has: no corpus to build, no tokenizers to train for some."""
    absent = set()
    if recipe.corpus is None and recipe.drawings is None:
        absent.add("corpus")
    if recipe.text_tokenizer is None:
        absent.add("text_tokenizer")
    if not recipe.trains_image_tokenizer:
        absent.add("image_tokenizer")
    if not recipe.has_decoder:
        absent |= {"prepare", "train", "sample", "report"}
    return [stage for stage in STAGES if stage.name not in absent]
