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
"""

import dataclasses
from collections.abc import Callable, Iterator
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
from pardalis.documents import Document, open_picture
from pardalis.documents.encyclopedia import build_encyclopedia
from pardalis.errors import DataError
from pardalis.evaluate import PictureFeatures, write_report
from pardalis.model import Decoder, initialise
from pardalis.pipeline.answers import write_answers
from pardalis.pipeline.recipe import RUN, Recipe
from pardalis.tokens import TextTokenizer, train_text_tokenizer
from pardalis.train import ImageTokenizerTask, PretrainTask, train
from pardalis.vq import ImageTokenizer, square


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a run.

    Attributes:
        name: what the command line and ``stages.json`` call it.
        command: the command that runs it alone.
        needs: stages whose results it reads.
        identity: the parts of the recipe that decide its result.
        extent: parts that only decide how far it goes; when they grow, it goes on where it was.
        outputs: what it makes, relative to the run folder; the first is the one it owns.
    """

    name: str
    command: str
    needs: tuple[str, ...]
    identity: Callable[[Recipe], list[Any]]
    extent: Callable[[Recipe], list[Any]]
    outputs: tuple[str, ...]
    run: Callable[[Recipe, Path, str], None]


def located(source: SourceConfig, run: Path) -> SourceConfig:
    """Put the run folder into a source's path."""
    return dataclasses.replace(source, path=source.path.replace(RUN, str(run.resolve())))


def documents_of(sources: tuple[SourceConfig, ...], run: Path) -> Iterator[Document]:
    """Yield the readable documents of sources, one source after the other."""
    for source in sources:
        items = read_source(located(source, run), run)
        yield from (item for item in items if isinstance(item, Document))


def load_codec(run: Path, device: str = "cpu") -> Codec:
    """Join the two tokenizers that a run has trained."""
    image_tokenizer = ImageTokenizer.load(run / "image_tokenizer" / "final").to(device)
    return Codec.of(TextTokenizer.load(run / "text_tokenizer" / "tokenizer.json"), image_tokenizer)


# ── the stages ───────────────────────────────────────────────────────────────────────────────────


def _corpus(recipe: Recipe, run: Path, device: str) -> None:
    assert recipe.corpus is not None, "stages_of leaves this stage out of a recipe without it"
    build_encyclopedia(recipe.corpus, run / "corpus")


def _text_tokenizer(recipe: Recipe, run: Path, device: str) -> None:
    texts = (document.text for document in documents_of(recipe.sources, run))
    tokenizer = train_text_tokenizer(texts, recipe.text_tokenizer.n_pieces)
    tokenizer.save(run / "text_tokenizer" / "tokenizer.json")


def _image_tokenizer(recipe: Recipe, run: Path, device: str) -> None:
    config = recipe.image_tokenizer_config()
    seen: set[Path | bytes] = set()
    pictures = _pixels(documents_of(recipe.sources, run), config.resolution, seen)
    heldout = _pixels(documents_of(recipe.heldout, run), config.resolution, seen)
    if len(pictures) == 0:
        raise DataError(
            "The sources hold no picture that can be read, so no image tokenizer can be trained; "
            "look at their paths and readers in the recipe."
        )
    task = ImageTokenizerTask(
        config,
        recipe.image_tokenizer_training,
        pictures,
        heldout if len(heldout) else None,
        total_steps=recipe.image_tokenizer_loop.steps,
        device=device,
    )
    settings = {
        "model": configs.to_dict(config),
        "training": configs.to_dict(recipe.image_tokenizer_training),
        "pictures": len(pictures),
    }
    folder = run / "image_tokenizer"
    train(task, folder, recipe.image_tokenizer_loop, "Image tokenizer", settings)
    task.tokenizer.save(folder / "final")


def _pixels(
    documents: Iterator[Document], side: int, seen: set[Path | bytes]
) -> UInt8[Tensor, "N 3 Y X"]:
    """Read every picture once, as squares; what cannot be read is left to prepare to report."""
    arrays = []
    for document in documents:
        for picture in document.pictures:
            key = picture.source
            if not isinstance(key, Path | bytes) or key in seen:
                continue
            seen.add(key)
            try:
                arrays.append(square(open_picture(key), side))
            except DataError:
                continue
    if not arrays:
        return torch.zeros(0, 3, side, side, dtype=torch.uint8)
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def _prepare(recipe: Recipe, run: Path, device: str) -> None:
    codec = load_codec(run, device)
    for source in (*recipe.sources, *recipe.heldout):
        folder = run / "shards" / source.name
        prepare_source(located(source, run), codec, folder, recipe.prepare, run)


def _training(recipe: Recipe, run: Path, device: str) -> None:
    codec = load_codec(run)
    config = recipe.training
    model = Decoder(recipe.model_config(codec.vocabulary.size))
    task = PretrainTask(
        initialise(model, config.init_seed),
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
    licences = run / "corpus" / "LICENCES.md"
    bundles.Bundle(
        model,
        codec,
        {"recipe": recipe.name, "steps": recipe.training_loop.steps, "numbers": last},
        licences.read_text() if licences.is_file() else "",
    ).save(run / "bundle")


def training_loader(recipe: Recipe, run: Path, codec: Codec) -> Loader:
    """Return the loader of a run's training rows."""
    return _loader(recipe.sources, run, codec, recipe)


def _loader(sources: tuple[SourceConfig, ...], run: Path, codec: Codec, recipe: Recipe) -> Loader:
    return Loader(
        {source.name: Shards.open(run / "shards" / source.name) for source in sources},
        {source.name: source.weight for source in sources},
        row_tokens=recipe.prepare.row_tokens,
        batch_rows=recipe.training.batch_rows,
        seed=recipe.training.data_seed,
        pad_id=codec.vocabulary.pad_id,
    )


def _heldout(recipe: Recipe, run: Path, codec: Codec) -> dict[str, Any]:
    if not recipe.heldout:
        return {}
    loader = _loader(recipe.heldout, run, codec, recipe)
    batches = max(1, recipe.heldout_rows // recipe.training.batch_rows)
    return {"heldout_loader": loader, "heldout_batches": batches}


def _answer(recipe: Recipe, run: Path, device: str) -> None:
    model = bundles.load(run / "bundle", device)
    documents = {
        "train": documents_of(recipe.sources, run),
        "heldout": documents_of(recipe.heldout, run),
    }
    write_answers(model, documents, recipe.answer, run)


def _report(recipe: Recipe, run: Path, device: str) -> None:
    tokenizer = ImageTokenizer.load(run / "image_tokenizer" / "final")
    write_report(run, tokenizer, PictureFeatures.load())


STAGES: tuple[Stage, ...] = (
    Stage("corpus", "data corpus", (), lambda r: [r.corpus], lambda r: [], ("corpus",), _corpus),
    Stage(
        "text_tokenizer",
        "tokenizer train-text",
        ("corpus",),
        lambda r: [r.text_tokenizer, *r.sources],
        lambda r: [],
        ("text_tokenizer",),
        _text_tokenizer,
    ),
    Stage(
        "image_tokenizer",
        "tokenizer train-image",
        ("corpus",),
        lambda r: [r.image_tokenizer_config(), r.image_tokenizer_training, *r.sources],
        lambda r: [r.image_tokenizer_loop, *r.heldout],
        ("image_tokenizer",),
        _image_tokenizer,
    ),
    Stage(
        "prepare",
        "data prepare",
        ("text_tokenizer", "image_tokenizer"),
        lambda r: [r.prepare, *r.sources, *r.heldout],
        lambda r: [],
        ("shards",),
        _prepare,
    ),
    Stage(
        "train",
        "train",
        ("prepare",),
        lambda r: [r.model, r.training, *r.sources],
        lambda r: [r.training_loop, r.heldout_rows, *r.heldout],
        ("training", "bundle"),
        _training,
    ),
    Stage(
        "answer", "answer", ("train",), lambda r: [r.answer], lambda r: [], ("answers",), _answer
    ),
    Stage(
        "report",
        "report",
        ("answer",),
        lambda r: [r.name],
        lambda r: [],
        ("report.json", "report.html"),
        _report,
    ),
)


def stages_of(recipe: Recipe) -> list[Stage]:
    """Return the stages that a recipe has: without a demo corpus there is none to build."""
    return [stage for stage in STAGES if stage.name != "corpus" or recipe.corpus is not None]
