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
from pathlib import Path, PurePath
from typing import Annotated, Any

from pardalis import config as configs
from pardalis.adapters import ADAPTERS, AdapterConfig
from pardalis.config import not_deciding, shown
from pardalis.corpora import CORPORA, CorpusConfig
from pardalis.data import (
    WHOLE,
    Curriculum,
    CurriculumStage,
    PrepareConfig,
    SourceConfig,
    special_of,
)
from pardalis.errors import ConfigError
from pardalis.inference import SamplingConfig
from pardalis.model import ModelShape, shape_of
from pardalis.model.config import RENAMED as MODEL_RENAMED
from pardalis.parallel import ParallelConfig
from pardalis.pipeline.evaluation import EvaluationConfig
from pardalis.pipeline.paths import is_in_run
from pardalis.pipeline.retrieval import RetrievalConfig, transforms_of
from pardalis.pipeline.shipped import find_recipe
from pardalis.pipeline.variants import StabilityConfig, VariantConfig
from pardalis.train import DecoderTrainConfig, ImageTokenizerTrainConfig, LoopConfig, MuonConfig
from pardalis.train.qk_clip import check_has_no_qk_norm
from pardalis.vq import PRESETS as IMAGE_TOKENIZER_PRESETS
from pardalis.vq import ImageFit, ImageTokenizerConfig

# Fields that training an image tokenizer needs, and those that training a model needs.
_IMAGE_TOKENIZER = ("image_tokenizer", "image_tokenizer_training", "image_tokenizer_loop")
_DECODER = ("prepare", "training", "training_loop")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTokenizerConfig:
    """How the text tokenizer is trained."""

    vocab_size: int = 2048  # number of text tokens, including the 256 bytes
    freeze: bool = not_deciding(False)  # once trained, keep it when the sources change


@dataclass(frozen=True, kw_only=True, slots=True)
class VocabularyConfig:
    """What a new vocabulary has besides the ids of images and text."""

    special: tuple[str, ...] = ()  # names of further special ids
    writable: tuple[str, ...] = ()  # those of them that the model may generate


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
class ImageTokenizerRun:
    """The training of an image tokenizer, as a recipe describes it."""

    model: ImageTokenizerConfig
    training: ImageTokenizerTrainConfig
    loop: LoopConfig
    images: int | None  # largest number of training images
    freeze: bool = False  # once trained, keep it when the sources change


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenModel:
    """A model that is trained further."""

    bundle: Path
    dropout: float | None  # None: as it was


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRun:
    """The training of a model, as a recipe describes it."""

    model: ModelShape | GivenModel  # a new model, or one to train further
    prepare: PrepareConfig
    training: DecoderTrainConfig
    loop: LoopConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A whole run."""

    name: str
    sources: tuple[SourceConfig, ...]  # training documents
    start_from: Path | None = None  # bundle to train further: a folder, relative to the recipe
    # A corpus to build into {run}/corpus first: an encyclopedia, or drawings in five styles.
    corpus: Annotated[CorpusConfig, CORPORA] | None = None
    # A bundle, or a run that has one, whose tokenizers and vocabulary a new model has; replaces the
    # next fields, down to vocabulary. Models of one vocabulary can be merged.
    tokenizers_from: Path | None = None
    # The tokenizers. A recipe with start_from has none of these fields.
    text_tokenizer: TextTokenizerConfig | None = None  # default with a model: TextTokenizerConfig()
    # A trained image tokenizer: its folder, a bundle or a run. Replaces the next four fields.
    image_tokenizer_from: Path | None = None
    # "preset", "freeze" (once trained, keep it when the sources change), and the fields of
    # ImageTokenizerConfig.
    image_tokenizer: dict[str, Any] | None = None
    image_tokenizer_training: ImageTokenizerTrainConfig | None = None
    image_tokenizer_loop: LoopConfig | None = None
    image_tokenizer_images: int | None = None  # largest number of training images
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)  # of a new model
    variants: tuple[VariantConfig, ...] = ()  # image tokenizers that a study compares
    # How images of user and system turns are made square. Chameleon pads them in alignment, and
    # crops the images that a model learns to generate (arXiv 2405.09818).
    image_fit: ImageFit = "crop"
    # The model: "kind", "preset", and fields of its shape that differ. With start_from only
    # "dropout".
    model: dict[str, Any] | None = None
    # What is trained beside the model of start_from, which is frozen then.
    adapter: Annotated[AdapterConfig, ADAPTERS] | None = None
    prepare: PrepareConfig | None = None
    training: DecoderTrainConfig | None = None
    training_loop: LoopConfig | None = None
    # The index that the transform "retrieval" takes documents from; also without that, for prompts.
    retrieval: RetrievalConfig | None = None
    # Consecutive mixtures of the sources, in place of the weights of the sources.
    curriculum: tuple[CurriculumStage, ...] = ()
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    stability: StabilityConfig | None = None  # learning rates and variants of a stability study
    heldout: tuple[SourceConfig, ...] = ()  # held-out documents
    # In place of heldout: the share of every source's documents that is held out, chosen by a hash
    # of their content. The resolved recipe names both parts of each source, and not this share.
    heldout_fraction: float | None = None
    heldout_rows: int = 256  # largest number of rows in an evaluation, each once
    sample: SampleConfig = field(default_factory=SampleConfig)
    # Tasks that measure the trained model, and the one in training. They decide nothing of it.
    evaluation: EvaluationConfig | None = None
    # Tables of stages that are added from outside, by the names of the stages.
    extra: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        place = PurePath(self.name)
        if place.is_absolute() or ".." in place.parts or "\0" in self.name:
            raise ConfigError(
                f"name is {shown(self.name)}, but the run is written to a folder of this name in "
                "'runs'; choose a name that is no absolute path and has no '..'."
            )
        if self.heldout_fraction is not None:
            self._divide_sources(self.heldout_fraction)
        self._check_sources()
        if self.variants and not self.trains_image_tokenizer:
            raise ConfigError(
                "variants are of an image tokenizer that is trained, but one is given; leave out "
                "variants, or start_from and image_tokenizer_from."
            )
        if self.image_tokenizer_images is not None and self.image_tokenizer_images < 1:
            raise ConfigError(
                f"image_tokenizer_images must be at least 1, got {self.image_tokenizer_images}."
            )
        trained = (*_IMAGE_TOKENIZER, "image_tokenizer_images")
        tokenizers: tuple[str, ...] = ("text_tokenizer", "image_tokenizer_from", *trained)
        if given := next((n for n in ("start_from", "tokenizers_from") if getattr(self, n)), None):
            if given == "start_from":
                tokenizers = ("tokenizers_from", *tokenizers)
            self._refuse(tokenizers, f"{given}, whose bundle has trained tokenizers")
            if self.vocabulary != VocabularyConfig():
                raise ConfigError(
                    f"vocabulary cannot stand beside {given}, whose bundle has one; leave one of "
                    "the two out."
                )
        elif self.image_tokenizer_from is not None:
            self._refuse(trained, "image_tokenizer_from, which is trained already")
        else:
            _ = self.image_tokenizer_run  # so that a mistake is found before anything runs
        self._check_adapter()
        self._check_evaluation()
        if self.has_model:
            run = self.model_run
            if run.training.qk_clip is not None and not isinstance(run.model, GivenModel):
                check_has_no_qk_norm(run.model)
        elif found := [name for name in _DECODER if getattr(self, name) is not None]:
            raise ConfigError(
                f"model is missing; set it, or leave out {found[0]} to train tokenizers only."
            )

    @property
    def has_model(self) -> bool:
        """Whether a model is trained, and not tokenizers only."""
        return self.model is not None or self.start_from is not None

    @property
    def all_sources(self) -> tuple[SourceConfig, ...]:
        """Training sources, then held-out sources."""
        return (*self.sources, *self.heldout)

    @property
    def new_vocabulary(self) -> VocabularyConfig:
        """``vocabulary``, with the special ids that transforms and ``retrieval`` need."""
        listed = (transform for source in self.all_sources for transform in source.transforms)
        special, writable = special_of(listed)
        separator = filter(None, [self.retrieval_config.separator])
        return VocabularyConfig(
            special=tuple(dict.fromkeys((*self.vocabulary.special, *special, *separator))),
            writable=tuple(dict.fromkeys((*self.vocabulary.writable, *writable))),
        )

    @property
    def retrieves(self) -> bool:
        """Whether documents are retrieved, or an index of them is built."""
        return self.retrieval is not None or bool(transforms_of(self.all_sources))

    @property
    def retrieval_config(self) -> RetrievalConfig:
        return self.retrieval or RetrievalConfig()

    @property
    def trains_image_tokenizer(self) -> bool:
        return not (self.start_from or self.tokenizers_from or self.image_tokenizer_from)

    @property
    def trained_text_tokenizer(self) -> TextTokenizerConfig | None:
        """The text tokenizer that the run trains; None: it trains none."""
        is_given = self.start_from is not None or self.tokenizers_from is not None
        if self.text_tokenizer is None and self.model is not None and not is_given:
            return TextTokenizerConfig()
        return self.text_tokenizer

    @property
    def image_tokenizer_run(self) -> ImageTokenizerRun:
        """The training of the image tokenizer; raises ConfigError if there is none."""
        table, training, loop = (
            self.image_tokenizer, self.image_tokenizer_training, self.image_tokenizer_loop
        )  # fmt: skip
        if table is None or training is None or loop is None:
            raise self._missing(_IMAGE_TOKENIZER, "or name a trained bundle by start_from")
        preset, changes = _preset(table, IMAGE_TOKENIZER_PRESETS, "image_tokenizer")
        freeze = changes.pop("freeze", False)
        if not isinstance(freeze, bool):
            raise ConfigError(f"image_tokenizer.freeze must be true or false, got {freeze!r}.")
        values = configs.merged(configs.to_dict(preset()), changes)
        model = configs.from_dict(ImageTokenizerConfig, values, "image_tokenizer.")
        return ImageTokenizerRun(
            model=model,
            training=training,
            loop=loop,
            images=self.image_tokenizer_images,
            freeze=freeze,
        )

    @property
    def model_run(self) -> ModelRun:
        """The training of the model; raises ConfigError if there is none."""
        prepare, training, loop = self.prepare, self.training, self.training_loop
        if not self.has_model:
            raise ConfigError(f"Recipe {self.name!r} trains no model.")
        if prepare is None or training is None or loop is None:
            raise self._missing(_DECODER, "or leave out model to train tokenizers only")
        return ModelRun(model=self._model(), prepare=prepare, training=training, loop=loop)

    def _model(self) -> ModelShape | GivenModel:
        table = self.model or {}
        if self.start_from is None:
            for name in ("vocab_size", "context"):
                if name in table:
                    raise ConfigError(
                        f"model.{name} follows from tokenizers and prepare.row_tokens; leave it "
                        "out."
                    )
            shape: ModelShape = shape_of(table)
            return shape
        if others := sorted(set(table) - {"dropout"}):
            raise ConfigError(
                f"model.{others[0]} cannot stand beside start_from, whose bundle decides the "
                "model; only model.dropout can be set, so leave it out."
            )
        return GivenModel(bundle=self.start_from, dropout=table.get("dropout"))

    @property
    def expanded(self) -> "Recipe":
        """The same recipe with presets and defaults of tables written out."""
        changes: dict[str, Any] = {"text_tokenizer": self.trained_text_tokenizer}
        if self.trains_image_tokenizer:
            changes["image_tokenizer"] = configs.to_dict(self.image_tokenizer_run.model)
        if self.has_model and not isinstance(model := self.model_run.model, GivenModel):
            changes["model"] = configs.to_dict(model)
        return dataclasses.replace(self, **changes)

    def _divide_sources(self, fraction: float) -> None:
        """Replace each source by its training part, and add its held-out part to ``heldout``.

        Whatever reads ``sources`` later, a stage from outside included, thus reads no held-out
        document.
        """
        if not 0 < fraction < 1:
            raise ConfigError(
                f"heldout_fraction must lie between 0 and 1, got {fraction}; leave it out to hold "
                "out nothing."
            )
        if self.heldout:
            raise ConfigError(
                "heldout_fraction cannot stand beside heldout, which names the held-out "
                "documents; leave one of the two out."
            )
        if divided := [source.name for source in self.sources if source.part != WHOLE]:
            raise ConfigError(
                f"heldout_fraction cannot stand beside part, which source {divided[0]!r} has; "
                "leave one of the two out."
            )
        training = [dataclasses.replace(source, part=(fraction, 1.0)) for source in self.sources]
        heldout = [
            dataclasses.replace(
                source, name=f"{source.name}.heldout", part=(0.0, fraction), weight=1.0
            )
            for source in self.sources
        ]
        object.__setattr__(self, "sources", tuple(training))
        object.__setattr__(self, "heldout", tuple(heldout))
        object.__setattr__(self, "heldout_fraction", None)

    def _check_sources(self) -> None:
        if not self.sources:
            raise ConfigError("sources is empty; name at least one source of documents to learn.")
        for what, items in (
            ("sources", self.all_sources),
            ("variants", self.variants),
        ):
            names = [item.name for item in items]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ConfigError(f"Two {what} are called {twice[0]!r}; their names must differ.")
        if not self.curriculum:
            return
        if any(source.weight != 1.0 for source in self.sources):
            raise ConfigError(
                "The weight of a source cannot stand beside curriculum, which has its own; "
                "leave it out."
            )
        Curriculum(self.curriculum, [source.name for source in self.sources], batch_rows=1)

    def _check_evaluation(self) -> None:
        if self.evaluation is not None and self.evaluation.is_of_corpus and self.corpus is None:
            raise ConfigError(
                f"evaluation.data is {self.evaluation.data}, but the recipe has no corpus that the "
                "run would build there; set data to another folder, or leave evaluation out."
            )

    def _check_adapter(self) -> None:
        if self.adapter is None:
            return
        if self.start_from is None:
            raise ConfigError(
                "adapter is trained beside a model that has learnt something; name its bundle by "
                "start_from, or leave adapter out."
            )
        training = self.model_run.training
        if training.qk_clip is not None:
            raise ConfigError(
                "training.qk_clip scales matrices that adapter freezes; leave qk_clip out."
            )
        if isinstance(training.optimizer, MuonConfig):
            raise ConfigError(
                "training.optimizer.kind = 'muon' is for matrices between hidden states, which "
                "adapter freezes; use 'adamw'."
            )
        if self.parallel.tensor > 1 and (self.adapter.rows or self.adapter.dropout):
            name = "rows" if self.adapter.rows else "dropout"
            raise ConfigError(
                f"adapter.{name} does not work with parallel.tensor = {self.parallel.tensor}; "
                f"leave {name} out, or set tensor = 1 and raise shard."
            )

    def _missing(self, names: Sequence[str], otherwise: str) -> ConfigError:
        missing = next(name for name in names if getattr(self, name) is None)
        return ConfigError(f"{missing} is missing; set it, {otherwise}.")

    def _refuse(self, names: Sequence[str], beside: str) -> None:
        for name in names:
            if getattr(self, name) is not None:
                raise ConfigError(f"{name} cannot stand beside {beside}; leave one of the two out.")


def _preset(
    table: dict[str, Any], presets: dict[str, Any], where: str
) -> tuple[Any, dict[str, Any]]:
    changes = dict(table)
    name = changes.pop("preset", "tiny")
    if name not in presets:
        known = ", ".join(map(repr, presets))
        raise ConfigError(f"{where}.preset must be one of {known}, got {name!r}.")
    return presets[name], changes


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; its paths become absolute, but for those in ``{run}``.

    Args:
        path: a TOML file, the name of a recipe of Pardalis, such as ``quickstart``, or the folder
            of a run, which holds its recipe.

    Raises:
        ConfigError: as :func:`pardalis.config.load` and :func:`.shipped.find_recipe`.
    """
    path = find_recipe(path)
    path = path / "recipe.toml" if path.is_dir() else path
    loaded = configs.load(Recipe, path, overrides, _RENAMED, _upgrade)
    recipe: Recipe = configs.located(loaded, path.resolve().parent, stays=is_in_run)
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
    "drawings": "corpus",
    "parallel.patience_minutes": "parallel.timeout_minutes",
    "training_loop.most_rollbacks": "training_loop.max_rollbacks",
    "image_tokenizer_loop.most_rollbacks": "image_tokenizer_loop.max_rollbacks",
    "training.objective.image_weight": "training.objective.modality_weights.image",
    "answer.drawings": "sample.images",
    "answer.picture": "sample.image",
    "answer": "sample",
    **{f"model.{old}": f"model.{new}" for old, new in MODEL_RENAMED.items()},
}

# Fields that earlier versions wrote for every kind: their defaults, and the kinds that have them.
_OF_SOME_KINDS = (
    ("optimizer", "momentum", 0.95, ("muon",)),
    ("adversarial.optimizer", "momentum", 0.95, ("muon",)),
    ("adversarial.discriminator", "n_layers", 3, ("patch",)),
    ("schedule", "decay_steps", 0, ("constant_then_decay",)),
    (
        "schedule",
        "floor_ratio",
        0.1,
        ("warmup_cosine", "warmup_exponential", "constant_then_decay"),
    ),
)
_FIRST_KIND = {"optimizer": "adamw", "discriminator": "patch", "schedule": "warmup_cosine"}


def _upgrade(values: dict[str, Any]) -> list[str]:
    """Bring the values of a recipe of an earlier version to today's form, in place.

    Returns what the author should write in another way.
    """
    if isinstance(drawings := values.get("drawings"), dict):
        if "corpus" in values:
            raise ConfigError("corpus and drawings both build {run}/corpus; leave one of them out.")
        drawings["kind"] = "drawings"
    for training in ("training", "image_tokenizer_training"):
        for place, name, default, kinds in _OF_SOME_KINDS:
            table = configs.table_at(values, f"{training}.{place}")
            kind = table.get("kind", _FIRST_KIND[place.rpartition(".")[2]])
            if kind not in kinds and table.get(name) == default:
                del table[name]
    lists = {
        key: values[key] for key in ("sources", "heldout") if isinstance(values.get(key), list)
    }
    moved = [
        key
        for key, sources in lists.items()
        for source in sources
        if isinstance(source, dict) and _with_transforms(source)
    ]
    return [f"pair_order of {key} is now a transform" for key in dict.fromkeys(moved)]


def _with_transforms(source: dict[str, Any]) -> bool:
    """Write the order of pairs as a transform; return whether there was one."""
    order = source.pop("pair_order", "as_written")
    if order == "as_written":  # the default, which saved recipes name
        return False
    source["transforms"] = [{"kind": "pair_order", "order": order}, *source.get("transforms", ())]
    return True
