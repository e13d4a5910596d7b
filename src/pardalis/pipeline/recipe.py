"""A recipe: one TOML file that describes a run from raw documents to a report.

Every table is the config of the part it is named after, so what a key means stands beside that
part. Two tables begin with a preset and change it: ``[image_tokenizer]`` and ``[model]``.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pardalis import config as configs
from pardalis.data import PrepareConfig, SourceConfig
from pardalis.documents.encyclopedia import EncyclopediaConfig
from pardalis.errors import ConfigError
from pardalis.inference import SamplingConfig
from pardalis.model import PRESETS as MODEL_PRESETS
from pardalis.model import ModelConfig
from pardalis.train import ImageTokenizerTrainConfig, LoopConfig, PretrainConfig
from pardalis.vq import PRESETS as IMAGE_TOKENIZER_PRESETS
from pardalis.vq import ImageTokenizerConfig

RUN = "{run}"  # in the path of a source: the folder of this run


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTokenizerConfig:
    """How the text tokenizer is trained."""

    n_pieces: int = 2048  # pieces of text, the 256 bytes included


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerConfig:
    """What a trained model is asked, to show and to score what it learnt."""

    drawings: int = 100  # pictures drawn from captions, at most, of each split
    captions: int = 40  # pictures captioned, at most, of each split
    pages: int = 6  # interleaved documents written from their first line, at most, of each split
    caption_tokens: int = 24  # ids that a caption may have, its end included
    # Pictures of the corpus that drawings are compared with, at most, of each split. Those that
    # were drawn or captioned are always among them.
    gallery: int = 2000
    picture: SamplingConfig = field(default_factory=SamplingConfig)  # how codes are sampled
    text: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0))
    guidance: float = 1.0  # classifier-free guidance of pictures; 1 is none
    batch: int = 64  # prompts answered together
    seed: int = 0  # chooses the prompts and the answers

    def __post_init__(self) -> None:
        for name, least in (
            ("drawings", 0),
            ("captions", 0),
            ("pages", 0),
            ("caption_tokens", 1),
            ("gallery", 0),
            ("guidance", 0),
            ("batch", 1),
        ):
            if not getattr(self, name) >= least:  # also refuses NaN
                raise ConfigError(f"{name} must be {least} or more, got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A whole run."""

    name: str
    sources: tuple[SourceConfig, ...]  # what is learnt
    text_tokenizer: TextTokenizerConfig = field(default_factory=TextTokenizerConfig)
    image_tokenizer: dict[str, Any]  # "preset", and fields of ImageTokenizerConfig that differ
    image_tokenizer_training: ImageTokenizerTrainConfig
    image_tokenizer_loop: LoopConfig
    image_tokenizer_pictures: int = 100_000  # it is trained on, at most; they stay in memory
    prepare: PrepareConfig
    model: dict[str, Any]  # "preset", and fields of ModelConfig that differ
    training: PretrainConfig
    training_loop: LoopConfig
    heldout: tuple[SourceConfig, ...] = ()  # what is only evaluated
    heldout_rows: int = 256  # rows of an evaluation, at most, each once
    corpus: EncyclopediaConfig | None = None  # builds the demo corpus into {run}/corpus first
    answer: AnswerConfig = field(default_factory=AnswerConfig)

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("sources is empty; name at least one source of documents to learn.")
        names = [source.name for source in (*self.sources, *self.heldout)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"Two sources are called {twice[0]!r}; their names must differ.")
        self.image_tokenizer_config()  # so that a mistake is found before anything runs
        self.model_config(vocab_size=1)

    def image_tokenizer_config(self) -> ImageTokenizerConfig:
        """Return the shape of the image tokenizer."""
        preset, changes = _preset(self.image_tokenizer, IMAGE_TOKENIZER_PRESETS, "image_tokenizer")
        values = configs.to_dict(preset()) | changes
        return configs.from_dict(ImageTokenizerConfig, values, "image_tokenizer.")

    def model_config(self, vocab_size: int) -> ModelConfig:
        """Return the shape of the decoder, whose vocabulary the tokenizers decide."""
        preset, changes = _preset(self.model, MODEL_PRESETS, "model")
        for name in ("vocab_size", "context"):
            if name in changes:
                raise ConfigError(
                    f"model.{name} follows from tokenizers and prepare.row_tokens; leave it out."
                )
        base = preset(vocab_size=vocab_size, context=self.prepare.row_tokens)
        return configs.from_dict(ModelConfig, configs.to_dict(base) | changes, "model.")


def _preset(
    table: dict[str, Any], presets: dict[str, Any], where: str
) -> tuple[Any, dict[str, Any]]:
    changes = dict(table)
    name = changes.pop("preset", "tiny")
    if name not in presets:
        known = ", ".join(map(repr, presets))
        raise ConfigError(f"{where}.preset must be one of {known}, got {name!r}.")
    return presets[name], changes


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; the paths of its sources become absolute, but for those in ``{run}``.

    Raises:
        ConfigError: as :func:`pardalis.config.load`.
    """
    recipe = configs.load(Recipe, path, overrides)
    folder = path.resolve().parent

    def absolute(source: SourceConfig) -> SourceConfig:
        if source.path.startswith(RUN):
            return source
        return dataclasses.replace(source, path=str(folder / source.path))

    return dataclasses.replace(
        recipe,
        sources=tuple(map(absolute, recipe.sources)),
        heldout=tuple(map(absolute, recipe.heldout)),
    )
