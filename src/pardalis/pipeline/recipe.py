"""A recipe: one TOML file that describes a run from raw documents to a report.

Every table is the config of the part that it is named after, and its keys are documented there. Two
tables start from a preset: ``[image_tokenizer]`` and ``[model]``.

A recipe with ``start_from`` trains an existing model further. It has no tables for the tokenizers
and the shape of the model, which come from the bundle. A recipe without ``[model]`` trains
tokenizers only.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pardalis import config as configs
from pardalis.corpora.drawings import DrawingsConfig
from pardalis.corpora.encyclopedia import EncyclopediaConfig
from pardalis.data import Curriculum, CurriculumStage, PrepareConfig, SourceConfig
from pardalis.errors import ConfigError
from pardalis.feature_nets import FeatureNetConfig
from pardalis.inference import SamplingConfig
from pardalis.model import PRESETS as MODEL_PRESETS
from pardalis.model import ModelConfig
from pardalis.parallel import ParallelConfig
from pardalis.pipeline.variants import StabilityConfig, VariantConfig
from pardalis.train import ImageTokenizerTrainConfig, LoopConfig, PretrainConfig
from pardalis.train.qk_clip import check_has_no_qk_norm
from pardalis.vq import PRESETS as IMAGE_TOKENIZER_PRESETS
from pardalis.vq import ImageFit, ImageTokenizerConfig

RUN = "{run}"  # stands for the run folder in the path of a source

_IMAGE_TOKENIZER = (  # fields about an image tokenizer that is trained
    "image_tokenizer",
    "image_tokenizer_training",
    "image_tokenizer_loop",
    "image_tokenizer_images",
)
_DECODER = ("prepare", "training", "training_loop")  # fields that training a model needs


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTokenizerConfig:
    """How the text tokenizer is trained."""

    vocab_size: int = 2048  # number of text tokens, including the 256 bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """What the trained model generates for the report. All numbers are per split, at most."""

    images: int = 100  # images generated from captions
    captions: int = 40  # captions generated from images
    pages: int = 6  # interleaved documents generated from their first line
    caption_tokens: int = 24  # token budget of a caption, its eos included
    # Corpus images that generated ones are ranked among. The originals of generated images, and
    # captioned images, are always included.
    gallery: int = 2000
    image: SamplingConfig = field(default_factory=SamplingConfig)  # sampling of image tokens
    text: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0))
    guidance: float = 1.0  # scale of classifier-free guidance of images; 1: none
    batch: int = 64  # prompts per engine
    seed: int = 0  # selects the prompts and seeds the samples

    def __post_init__(self) -> None:
        for name, least in (
            ("images", 0),
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
    sources: tuple[SourceConfig, ...]  # training documents
    start_from: str | None = None  # bundle to train further: a folder, relative to the recipe
    # A corpus to build into {run}/corpus first: an encyclopedia, or drawings in five styles.
    corpus: EncyclopediaConfig | None = None
    drawings: DrawingsConfig | None = None
    # The tokenizers. A recipe with start_from has none of these fields.
    text_tokenizer: TextTokenizerConfig | None = None  # default with a model: TextTokenizerConfig()
    # A trained image tokenizer: its folder, a bundle or a run. Replaces the next four fields.
    image_tokenizer_from: str | None = None
    image_tokenizer: dict[str, Any] | None = None  # "preset", and ImageTokenizerConfig's fields
    image_tokenizer_training: ImageTokenizerTrainConfig | None = None
    image_tokenizer_loop: LoopConfig | None = None
    image_tokenizer_images: int | None = None  # largest number of training images
    variants: tuple[VariantConfig, ...] = ()  # image tokenizers that a study compares
    # How images of user and system turns are made square. Chameleon pads them in alignment, and
    # crops the images that a model learns to generate (arXiv 2405.09818).
    image_fit: ImageFit = "crop"
    # The model: "preset", and fields of ModelConfig that differ. With start_from only "dropout".
    model: dict[str, Any] | None = None
    prepare: PrepareConfig | None = None
    training: PretrainConfig | None = None
    training_loop: LoopConfig | None = None
    # Consecutive mixtures of the sources, in place of the weights of the sources.
    curriculum: tuple[CurriculumStage, ...] = ()
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    stability: StabilityConfig | None = None  # learning rates and variants of a stability study
    heldout: tuple[SourceConfig, ...] = ()  # held-out documents
    heldout_rows: int = 256  # largest number of rows in an evaluation, each once
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("sources is empty; name at least one source of documents to learn.")
        for what, items in (
            ("sources", self.all_sources),
            ("variants", self.variants),
        ):
            names = [item.name for item in items]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ConfigError(f"Two {what} are called {twice[0]!r}; their names must differ.")
        if self.curriculum:
            self._check_curriculum()
        if self.corpus is not None and self.drawings is not None:
            raise ConfigError("corpus and drawings both build {run}/corpus; leave one of them out.")
        if self.variants and not self.trains_image_tokenizer:
            raise ConfigError(
                "variants are of an image tokenizer that is trained, but one is given; leave out "
                "variants, or start_from and image_tokenizer_from."
            )
        if self.image_tokenizer_images is not None and self.image_tokenizer_images < 1:
            raise ConfigError(
                f"image_tokenizer_images must be at least 1, got {self.image_tokenizer_images}."
            )
        if self.start_from is not None:
            self._refuse_what_the_bundle_decides()
        elif self.image_tokenizer_from is not None:
            self._refuse(_IMAGE_TOKENIZER, "image_tokenizer_from, which is trained already")
        else:
            self._require(_IMAGE_TOKENIZER[:-1], "or name a trained bundle by start_from")
            self.image_tokenizer_config()  # so that a mistake is found before anything runs
        if self.has_decoder:
            self._complete_decoder()
        elif found := [name for name in _DECODER if getattr(self, name) is not None]:
            raise ConfigError(
                f"model is missing; set it, or leave out {found[0]} to train tokenizers only."
            )

    @property
    def has_decoder(self) -> bool:
        """Whether a model is trained, and not tokenizers only."""
        return self.model is not None or self.start_from is not None

    @property
    def all_sources(self) -> tuple[SourceConfig, ...]:
        """Training sources, then held-out sources."""
        return (*self.sources, *self.heldout)

    @property
    def trains_image_tokenizer(self) -> bool:
        return self.start_from is None and self.image_tokenizer_from is None

    def _check_curriculum(self) -> None:
        if any(source.weight != 1.0 for source in self.sources):
            raise ConfigError(
                "The weight of a source cannot stand beside curriculum, which has its own; "
                "leave it out."
            )
        Curriculum(self.curriculum, [source.name for source in self.sources], batch_rows=1)

    def _complete_decoder(self) -> None:
        self._require(_DECODER, "or leave out model to train tokenizers only")
        if self.start_from is None:
            if self.text_tokenizer is None:  # it is frozen only from here on
                object.__setattr__(self, "text_tokenizer", TextTokenizerConfig())
            config = self.model_config(vocab_size=1)
            if self.training is not None and self.training.qk_clip is not None:
                check_has_no_qk_norm(config)

    def _require(self, names: Sequence[str], otherwise: str) -> None:
        for name in names:
            if getattr(self, name) is None:
                raise ConfigError(f"{name} is missing; set it, {otherwise}.")

    def _refuse(self, names: Sequence[str], beside: str) -> None:
        for name in names:
            if getattr(self, name) is not None:
                raise ConfigError(f"{name} cannot stand beside {beside}; leave one of the two out.")

    def _refuse_what_the_bundle_decides(self) -> None:
        tokenizers = ("text_tokenizer", "image_tokenizer_from", *_IMAGE_TOKENIZER)
        self._refuse(tokenizers, "start_from, whose bundle has trained tokenizers")
        if others := sorted(set(self.model or {}) - {"dropout"}):
            raise ConfigError(
                f"model.{others[0]} cannot stand beside start_from, whose bundle decides the "
                "model; only model.dropout can be set, so leave it out."
            )

    def image_tokenizer_config(self) -> ImageTokenizerConfig:
        """Return the shape of the image tokenizer that this recipe trains."""
        assert self.image_tokenizer is not None, "only where one is trained"
        preset, changes = _preset(self.image_tokenizer, IMAGE_TOKENIZER_PRESETS, "image_tokenizer")
        values = configs.to_dict(preset()) | changes
        return configs.from_dict(ImageTokenizerConfig, values, "image_tokenizer.")

    def model_config(self, vocab_size: int) -> ModelConfig:
        """Return the shape of a new decoder, whose vocabulary the tokenizers decide."""
        assert self.model is not None, "only without start_from"
        preset, changes = _preset(self.model, MODEL_PRESETS, "model")
        for name in ("vocab_size", "context"):
            if name in changes:
                raise ConfigError(
                    f"model.{name} follows from tokenizers and prepare.row_tokens; leave it out."
                )
        assert self.prepare is not None, "a recipe with a model has it"
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
    """Read a recipe; its paths become absolute, but for those of sources in ``{run}``.

    Raises:
        ConfigError: as :func:`pardalis.config.load`.
    """
    loaded = configs.load(Recipe, path, overrides, _RENAMED)
    recipe: Recipe = _located(loaded, path.resolve().parent)
    return recipe


# Keys of earlier versions. What a table held is renamed before the table itself.
_RENAMED = {
    "prompt_pictures": "image_fit",
    "image_tokenizer_pictures": "image_tokenizer_images",
    "image_tokenizer_training.batch_pictures": "image_tokenizer_training.batch_images",
    "image_tokenizer_training.heldout_pictures": "image_tokenizer_training.heldout_images",
    "text_tokenizer.n_pieces": "text_tokenizer.vocab_size",
    "corpus.picture_side": "corpus.image_side",
    "drawings.picture_side": "drawings.image_side",
    "parallel.patience_minutes": "parallel.timeout_minutes",
    "training_loop.most_rollbacks": "training_loop.max_rollbacks",
    "image_tokenizer_loop.most_rollbacks": "image_tokenizer_loop.max_rollbacks",
    "answer.drawings": "sample.images",
    "answer.picture": "sample.image",
    "answer": "sample",
}

# Which fields of which configs are paths.
_PATHS: dict[type[Any], tuple[str, ...]] = {
    Recipe: ("start_from", "image_tokenizer_from"),
    SourceConfig: ("path",),
    DrawingsConfig: ("packages",),
    FeatureNetConfig: ("weights", "heads"),
}


def _located(value: Any, folder: Path) -> Any:
    """Return a config whose relative paths, at any depth, begin at a folder."""
    if isinstance(value, tuple):
        return tuple(_located(item, folder) for item in value)
    if not dataclasses.is_dataclass(value):
        return value
    changes = {
        field.name: _located(getattr(value, field.name), folder)
        for field in dataclasses.fields(value)
    }
    for name in _PATHS.get(type(value), ()):
        path = changes[name]
        if path is not None and not path.startswith(RUN):
            changes[name] = str(folder / path)
    return dataclasses.replace(value, **changes)  # type: ignore[type-var]
