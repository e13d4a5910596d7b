"""The stages of a run, in order: each reads what earlier ones left in the run folder.

RUN/
├─ recipe.toml            the resolved recipe
├─ stages.json            what each stage took, and what it was made from
├─ corpus/                the demo corpus, if the recipe asks for it
├─ text_tokenizer/        tokenizer.json
├─ image_tokenizer/       metrics and checkpoints; final/ is the trained tokenizer
├─ shards/<source>/       ids, row plan, report of rejections
├─ training/              metrics and checkpoints of the decoder
├─ bundle/                the portable model
├─ answers/               what the model answered
└─ report.html, report.json

A run that starts from a bundle has that bundle's tokenizers, and no folders of its own for them.
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from pardalis import bundle as bundles
from pardalis import config as configs
from pardalis.codec import Codec
from pardalis.data import Loader, Shards, SourceConfig, prepare_source, read_source
from pardalis.documents import Document
from pardalis.documents.encyclopedia import build_encyclopedia, package_versions
from pardalis.errors import DataError
from pardalis.evaluate import PictureFeatures, write_report
from pardalis.files import write_text
from pardalis.model import Decoder, initialise
from pardalis.pipeline.answers import write_answers
from pardalis.pipeline.recipe import RUN, Recipe, load_recipe
from pardalis.pipeline.start import load_start, start_content, start_folder
from pardalis.tokens import TextTokenizer, train_text_tokenizer
from pardalis.train import ImageTokenizerTask, PretrainTask, train
from pardalis.vq import ImageTokenizer, ImageTokenizerConfig, open_square

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
        run: does it: (recipe, run folder, device).
    """

    name: str
    command: str
    run: Callable[[Recipe, Path, torch.device], None]
    outputs: tuple[str, ...]
    needs: tuple[str, ...] = ()
    settings: Callable[[Recipe], list[Any]] = lambda recipe: []
    sources: Callable[[Recipe], tuple[SourceConfig, ...]] = lambda recipe: ()
    steps: Callable[[Recipe], int] = lambda recipe: 0
    costly: tuple[str, ...] = ()


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
        return bundles.load_codec(start_folder(recipe), device)
    image_tokenizer = ImageTokenizer.load(run / "image_tokenizer" / "final").to(device)
    return Codec.of(TextTokenizer.load(run / "text_tokenizer" / "tokenizer.json"), image_tokenizer)


# ── the stages ───────────────────────────────────────────────────────────────────────────────────


def _corpus(recipe: Recipe, run: Path, device: torch.device) -> None:
    assert recipe.corpus is not None, _ABSENT
    build_encyclopedia(recipe.corpus, run / "corpus")


def _text_tokenizer(recipe: Recipe, run: Path, device: torch.device) -> None:
    assert recipe.text_tokenizer is not None, _ABSENT
    texts = (document.text for document in documents_of(recipe.sources, run))
    tokenizer = train_text_tokenizer(texts, recipe.text_tokenizer.n_pieces)
    tokenizer.save(run / "text_tokenizer" / "tokenizer.json")


def _image_tokenizer(recipe: Recipe, run: Path, device: torch.device) -> None:
    config, training = recipe.image_tokenizer_config(), recipe.image_tokenizer_training
    loop, most = recipe.image_tokenizer_loop, recipe.image_tokenizer_pictures
    assert training is not None and loop is not None and most is not None, _ABSENT
    seen = set[Path | bytes]()
    pictures = _pixels(documents_of(recipe.sources, run), config, most, seen)
    heldout = _pixels(documents_of(recipe.heldout, run), config, most // 10, seen)
    if len(pictures) == 0:
        raise DataError(
            "The sources hold no picture that can be read, so no image tokenizer can be trained; "
            "look at their paths and readers in the recipe."
        )
    task = ImageTokenizerTask(
        config,
        training,
        pictures,
        heldout if len(heldout) else None,
        total_steps=loop.steps,
        device=device,
    )
    settings = {
        "model": configs.to_dict(config),
        "training": configs.to_dict(training),
        "pictures": len(pictures),
    }
    folder = run / "image_tokenizer"
    train(task, folder, loop, "Image tokenizer", settings)
    task.tokenizer.save(folder / "final")


def _pixels(
    documents: Iterator[Document],
    config: ImageTokenizerConfig,
    most: int,
    seen: set[Path | bytes],
) -> UInt8[Tensor, "N 3 Y X"]:
    """Read pictures as squares, each once; what cannot be read is left to prepare to report."""
    side = config.resolution
    arrays: list[np.ndarray] = []
    for picture in (picture for document in documents for picture in document.pictures):
        key = picture.source
        if len(arrays) == most:
            break
        if not isinstance(key, Path | bytes) or key in seen:
            continue
        seen.add(key)
        with suppress(DataError):
            arrays.append(open_square(key, side, config.preprocessing))
    if not arrays:
        return torch.zeros(0, 3, side, side, dtype=torch.uint8)
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def _prepare(recipe: Recipe, run: Path, device: torch.device) -> None:
    codec, shards = _codec(recipe, run, device), run / "shards"
    sources = _all_sources(recipe)
    for leftover in set(shards.glob("*/")) - {shards / source.name for source in sources}:
        shutil.rmtree(leftover)
    for source in sources:
        folder = shards / source.name
        prepare_source(located(source, run), codec, folder, recipe.prepare, run)
    licences = run / "corpus" / _LICENCES
    if licences.is_file():
        write_text(shards / _LICENCES, licences.read_text())


def _training(recipe: Recipe, run: Path, device: torch.device) -> None:
    begun = _beginning(recipe, run)
    model, codec, config = begun.model, begun.codec, recipe.training
    task = PretrainTask(
        model,
        training_loader(recipe, run, codec),
        config,
        codec.vocabulary.image,
        total_steps=recipe.training_loop.steps,
        device=device,
        **_heldout(recipe, run, codec),
    )
    settings = {
        "model": configs.to_dict(model.config),
        "training": configs.to_dict(config),
        "codec": codec.fingerprint,
        "sources": {source.name: source.weight for source in recipe.sources},
    }
    last = train(task, run / "training", recipe.training_loop, "Decoder", settings)
    made_by = {"recipe": recipe.name, "steps": recipe.training_loop.steps, **begun.made_by}
    made_by["numbers"] = last
    licences = _with_licences(begun.licences, run / "shards" / _LICENCES)
    bundles.Bundle(model, codec, made_by, licences).save(run / "bundle")


def _beginning(recipe: Recipe, run: Path) -> bundles.Bundle:
    """Return what training begins with: the bundle to start from, or a model that knows nothing."""
    if recipe.start_from is not None:
        return load_start(recipe)
    codec = _codec(recipe, run)
    model = Decoder(recipe.model_config(codec.vocabulary.size))
    return bundles.Bundle(initialise(model, recipe.training.init_seed), codec, made_by={})


def _with_licences(before: str, of_run: Path) -> str:
    """Join the licences of what was learnt before and in this run; the same text stands once."""
    new = of_run.read_text() if of_run.is_file() else ""
    return before if new in before else "\n".join(filter(None, (before, new)))


def training_loader(recipe: Recipe, run: Path, codec: Codec) -> Loader:
    """Return the loader of a run's training rows."""
    weights = {source.name: source.weight for source in recipe.sources}
    return _loader(_shards(recipe.sources, run, codec), weights, codec, recipe)


def _shards(sources: tuple[SourceConfig, ...], run: Path, codec: Codec) -> dict[str, Shards]:
    return {
        source.name: Shards.open(run / "shards" / source.name, codec.fingerprint)
        for source in sources
    }


def _loader(
    shards: dict[str, Shards], weights: dict[str, float], codec: Codec, recipe: Recipe
) -> Loader:
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
    shards = _shards(recipe.heldout, run, codec)
    weights = {name: float(some.n_rows) for name, some in shards.items()}
    rows = min(recipe.heldout_rows, sum(some.n_rows for some in shards.values()))
    batches = max(1, rows // recipe.training.batch_rows)
    return {"heldout_loader": _loader(shards, weights, codec, recipe), "heldout_batches": batches}


def _answer(recipe: Recipe, run: Path, device: torch.device) -> None:
    model = bundles.load(run / "bundle", device)
    documents = {
        "train": documents_of(recipe.sources, run),
        "heldout": documents_of(recipe.heldout, run),
    }
    write_answers(model, documents, recipe.answer, run)


def _report(recipe: Recipe, run: Path, device: torch.device) -> None:
    write_report(run, _codec(recipe, run).image_tokenizer, PictureFeatures.load())


def _learnt(recipe: Recipe) -> tuple[SourceConfig, ...]:
    return recipe.sources


def _decoder_settings(recipe: Recipe) -> Any:
    """Return what the recipe says of the decoder; what a bundle says of it is in start_content."""
    return recipe.model_config(vocab_size=1) if recipe.start_from is None else recipe.model


def _all_sources(recipe: Recipe) -> tuple[SourceConfig, ...]:
    return (*recipe.sources, *recipe.heldout)


STAGES: tuple[Stage, ...] = (
    Stage(
        name="corpus",
        command="data corpus",
        settings=lambda recipe: [recipe.corpus, package_versions()],
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
            recipe.image_tokenizer_pictures,
        ],
        sources=_learnt,
        steps=lambda recipe: (
            recipe.image_tokenizer_loop.steps if recipe.image_tokenizer_loop else 0
        ),
        outputs=("image_tokenizer",),
        costly=("image_tokenizer",),
        run=_image_tokenizer,
    ),
    Stage(
        name="prepare",
        command="data prepare",
        needs=("corpus", "text_tokenizer", "image_tokenizer"),
        # Everything that reads the bundle to start from comes after this stage and needs it.
        settings=lambda recipe: [
            recipe.prepare,
            *(start_content(recipe) if recipe.start_from is not None else []),
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
            recipe.training,
            {source.name: source.weight for source in recipe.sources},
        ],
        steps=lambda recipe: recipe.training_loop.steps,
        outputs=("training", "bundle"),
        costly=("training", "bundle"),
        run=_training,
    ),
    Stage(
        name="answer",
        command="answer",
        needs=("train",),
        settings=lambda recipe: [recipe.answer],
        outputs=("answers",),
        run=_answer,
    ),
    Stage(
        name="report",
        command="report",
        needs=("answer",),
        outputs=("report.json", "report.html"),
        run=_report,
    ),
)


def stages_of(recipe: Recipe) -> list[Stage]:
    """Return the stages that a recipe has: no corpus to build, no tokenizers to train for some."""
    absent = set() if recipe.corpus is not None else {"corpus"}
    if recipe.start_from is not None:
        absent |= {"text_tokenizer", "image_tokenizer"}
    return [stage for stage in STAGES if stage.name not in absent]
