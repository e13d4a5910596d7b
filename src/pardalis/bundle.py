"""The bundle: a portable model as one folder.

    bundle.json                 format version, model config, vocabulary, how the model was made,
                                and how images of prompts are made square, unless they are cropped
    chat_template.jinja         how conversations are written, if the model came with a template
    model.safetensors           the model
    text_tokenizer.json         in the format of the ``tokenizers`` library
    image_tokenizer/            config.json and model.safetensors
    LICENCES.md                 licences of the training data and of imported weights, if known
    foreign.safetensors         tensors of an imported model that our decoder does not have, if any

A bundle is written atomically. A checkpoint, which resumes one training run, is something else
(:mod:`pardalis.train.checkpoint`).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, cast, get_args

import safetensors.torch
import torch
from safetensors import SafetensorError

from pardalis import config as configs
from pardalis.codec import Codec
from pardalis.devices import find_device
from pardalis.documents.notebook import escaped
from pardalis.errors import BundleError, ConfigError
from pardalis.files import (
    atomic_folder,
    existing_folder,
    read_json,
    read_text,
    why_unwritten,
    write_json,
    write_text,
)
from pardalis.model import LanguageModel, build, config_of
from pardalis.tokens import TextTokenizer, Vocabulary
from pardalis.tokens.vocabulary import by_name
from pardalis.vq import ImageFit, ImageTokenizer
from pardalis.weights import load_module, stored_dtype_of

# 2: ``vocabulary`` may have foreign_ids, the ids of the imported vocabulary
# 3: ``prompt_pictures`` says that images of prompts are padded
# 4: ``model`` may have embedding_norm
# 5: ``prompt_pictures`` is called ``image_fit``
# 6: ``model`` has a kind, and a table for each of its parts; ``vocabulary`` has tables of special
#    ids and of modalities
# 7: there may be a chat template, and ``adds_bos`` says that documents begin without bos
# 8: norms of ``model`` may have groups, and its kind may be ``cross``
FORMAT_VERSION = 8

_SHOWN = 200  # characters of a fact in a notebook

DESCRIPTION = "bundle.json"
MODEL = "model.safetensors"
TEXT_TOKENIZER = "text_tokenizer.json"
IMAGE_TOKENIZER = "image_tokenizer"
CHAT_TEMPLATE = "chat_template.jinja"
LICENCES = "LICENCES.md"
CARD = "README.md"  # the model card
_RECIPE, _OF_RUN = "recipe.toml", "bundle"  # in the folder of a run
FOREIGN = "foreign.safetensors"


@dataclass(frozen=True, slots=True, repr=False)
class Bundle:
    """A model with its codec: everything that inference needs."""

    model: LanguageModel
    codec: Codec
    made_by: dict[str, Any]  # free-form facts about the run: recipe name, steps, held-out losses
    licences: str = ""  # Markdown; licences of the training data and of imported weights

    def save(self, folder: Path) -> None:
        """Write the bundle atomically; an earlier bundle in the folder is replaced only at the end.

        Raises:
            BundleError: the disk is full or the folder cannot be written; the earlier content is
                untouched.
        """
        weights = {name: t.contiguous().cpu() for name, t in self.model.state_dict().items()}
        config, codec = self.model.config, self.codec
        with new_folder(folder) as partial:
            safetensors.torch.save_file(weights, partial / MODEL)
            codec.text_tokenizer.save(partial / TEXT_TOKENIZER)
            codec.image_tokenizer.save(partial / IMAGE_TOKENIZER)
            if self.licences:
                write_text(partial / LICENCES, self.licences)
            if codec.chat_template is not None:
                write_text(partial / CHAT_TEMPLATE, codec.chat_template.source)
            write_description(
                partial,
                config,
                codec.vocabulary,
                self.made_by,
                codec.image_fit,
                adds_bos=codec.adds_bos,
            )

    def __repr__(self) -> str:
        return f"<Bundle {', '.join(f'{name}: {value}' for name, value in self.facts().items())}>"

    def _repr_html_(self) -> str:
        facts = self.facts() | {name: str(value) for name, value in self.made_by.items()}
        cells = (
            f"<tr><th>{escaped(name)}</th><td>{escaped(value[:_SHOWN])}</td></tr>"
            for name, value in facts.items()
        )
        return f"<table>{''.join(cells)}</table>"

    def facts(self) -> dict[str, str]:
        """Return sizes of the model as texts, by name."""
        images, vocabulary = self.codec.image_tokenizer.config, self.codec.vocabulary
        return {
            "parameters": f"{sum(p.numel() for p in self.model.parameters()):,}",
            "context": f"{self.model.context:,} tokens",
            "vocabulary": f"{len(vocabulary.text):,} text tokens and {vocabulary.n_codes:,} codes",
            "images": f"{images.resolution} pixels, {images.codes_per_image:,} codes",
        }


def require_new(folder: Path) -> None:
    """Raise ConfigError if a folder exists and is not empty."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(
            f"{folder} exists and is not empty; choose another folder, or remove it first."
        )


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, which gets its name only if no error was raised.

    Raises:
        BundleError: the disk is full or the folder cannot be written; the earlier content is
            untouched.
    """
    try:
        # "." has no name for a sibling folder; another link is replaced, and not what it leads to.
        with atomic_folder(
            folder if folder.name not in ("", "..") else folder.resolve()
        ) as partial:
            yield partial
    except (OSError, SafetensorError) as error:
        if (why := why_unwritten(error)) is None and isinstance(error, SafetensorError):
            raise
        why = why or f"{getattr(error, 'strerror', None) or error}; correct that"
        raise BundleError(
            f"{folder} could not be written: {why}, or choose another folder. Nothing there was "
            "changed."
        ) from error


def write_description(
    folder: Path,
    model: Any,
    vocabulary: Vocabulary,
    made_by: dict[str, Any],
    image_fit: ImageFit = "crop",
    *,
    adds_bos: bool = True,
) -> None:
    """Write ``bundle.json``."""
    description: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "model": configs.to_dict(model),
        "vocabulary": vocabulary.to_dict(),
        "made_by": made_by,
    }
    if image_fit != "crop":
        description["image_fit"] = image_fit
    if not adds_bos:
        description["adds_bos"] = False
    write_json(folder / DESCRIPTION, description)


def load(
    folder: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Bundle:
    """Load a bundle, ready for inference.

    Args:
        folder: the bundle, or the run that has trained it.
        dtype: dtype of the decoder's weights (default: as stored). The image tokenizer always
            computes in 32 bits.

    Raises:
        BundleError: the folder is missing, incomplete, from a newer version, or its parts do not
            fit each other; the message names the file.
        ConfigError: the device does not exist.
    """
    folder = bundle_folder(folder)
    device = find_device(device)
    description = describe(folder)
    config = model_config(folder, description)
    codec = load_codec(folder, device)
    layers = getattr(config, "n_layers", 0)  # of a kind that has them
    model = load_module(lambda: build(config), folder / MODEL, layers)
    return Bundle(
        model.to(device, dtype or _common_dtype(model)).eval(),
        codec,
        description["made_by"],
        read_licences(folder),
    )


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype in which :func:`load` gives the weights of a bundle; reads no weights.

    Raises:
        BundleError: as :func:`load`.
    """
    return stored_dtype_of(existing_folder(folder) / MODEL)


def as_bundle(bundle: object) -> Bundle:
    """Return a bundle; one that is given as the path of its folder is loaded, as :func:`load` does.

    Raises:
        BundleError: as :func:`load`, or it is neither a bundle nor a path.
    """
    if isinstance(bundle, Bundle):
        return bundle
    if isinstance(bundle, str | Path):
        return load(bundle)
    raise _not_a_bundle(bundle)


def _not_a_bundle(given: object) -> BundleError:
    return BundleError(
        f"bundle must be a Bundle, or the path of one's folder, got {type(given).__name__}."
    )


def bundle_folder(path: object) -> Path:
    """Return the folder of a bundle, for which the folder of the run that has trained it may stand.

    The folder need not be a whole bundle, or exist: that is for :func:`describe` to say.

    Raises:
        BundleError: the run has not finished its bundle, or it is no path.
    """
    if not isinstance(path, str | Path):
        raise _not_a_bundle(path)
    folder = existing_folder(Path(path))
    if os.path.exists(folder / DESCRIPTION) or not os.path.isfile(folder / _RECIPE):
        return folder
    bundle = existing_folder(folder / _OF_RUN)
    if not os.path.exists(bundle):
        raise BundleError(
            f"The run {folder} has no bundle yet; run its stage `train` to the end, which writes "
            f"{folder / _OF_RUN} if its recipe has a table [model]."
        )
    return bundle


def _common_dtype(model: torch.nn.Module) -> torch.dtype:
    """Return the smallest dtype that holds all weights: products need both sides in one dtype."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in model.parameters()))


def read_licences(folder: Path) -> str:
    """Return the licences in a folder, in Markdown; empty if there are none.

    Raises:
        BundleError: they cannot be read.
    """
    return _read(folder / LICENCES) or ""


def read_chat_template(folder: Path) -> str | None:
    """Return the chat template in a folder; None if there is none.

    Raises:
        BundleError: it cannot be read.
    """
    return _read(folder / CHAT_TEMPLATE)


def _read(path: Path) -> str | None:
    if not path.exists():
        return None
    if not _is_own(path):  # its content is copied into what is made of the bundle
        raise BundleError(
            f"{path} is a link to a file outside its folder, {path.resolve()}; put a copy there."
        )
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}); copy it again.") from error


def _is_own(path: Path) -> bool:
    """Whether a file lies in its folder; the cache of Hugging Face's hub has links to blobs."""
    file, folder = path.resolve(), path.parent.resolve()
    is_cached = folder.parent.name == "snapshots" and folder.parent.parent / "blobs" in file.parents
    return folder in file.parents or is_cached


def load_codec(folder: Path | str, device: torch.device | str = "cpu") -> Codec:
    """Load the codec of a bundle, or of a run's, without its decoder; raises as :func:`load`."""
    folder = bundle_folder(folder)
    description = describe(folder)
    vocabulary = Vocabulary.from_dict(description["vocabulary"])
    vocab_size = model_config(folder, description).vocab_size
    text_tokenizer = TextTokenizer.load(folder / TEXT_TOKENIZER, vocabulary)
    image_tokenizer = ImageTokenizer.load(folder / IMAGE_TOKENIZER)
    for what, found, needed in (
        ("token ids in the model", vocab_size, vocabulary.size),
        ("tokens in the text tokenizer", text_tokenizer.size, len(vocabulary.text)),
        ("codes in the image tokenizer", image_tokenizer.config.n_codes, vocabulary.n_codes),
    ):
        if found != needed:
            raise BundleError(
                f"The parts of the bundle {folder} do not fit: found {found} {what}, the "
                f"vocabulary needs {needed}. Do not mix files of different bundles."
            )
    fit = description.get("image_fit", "crop")
    if fit not in get_args(ImageFit):
        raise BundleError(
            f"{folder / DESCRIPTION} has image_fit {configs.shown(fit)}; it must be one of "
            f"{', '.join(get_args(ImageFit))}."
        )
    adds_bos = description.get("adds_bos", True)
    if not isinstance(adds_bos, bool):
        raise BundleError(
            f"{folder / DESCRIPTION} has adds_bos {configs.shown(adds_bos)}; it must be true or "
            "false."
        )
    image_tokenizer = image_tokenizer.to(find_device(device)).eval()
    return Codec(
        vocabulary,
        text_tokenizer,
        image_tokenizer,
        cast(ImageFit, fit),
        chat_template=read_chat_template(folder),
        adds_bos=adds_bos,
    )


def model_config(folder: Path, description: dict[str, Any]) -> Any:
    """Return the model's config from a description; raises BundleError if it is invalid."""
    try:
        return config_of(description["model"])
    except ConfigError as error:
        raise BundleError(f"{folder / DESCRIPTION}: {error}") from error


def describe(folder: Path) -> dict[str, Any]:
    """Return the content of ``bundle.json`` in the form of the newest version.

    Checks that the folder is complete; reads no weights. The folder is a bundle's, not a run's.

    Raises:
        BundleError: as :func:`load`.
    """
    if os.path.isfile(folder):
        raise BundleError(
            f"{folder} is a file; give the folder of a bundle, or of the run that has trained it."
        )
    if not os.path.isdir(folder):  # unlike Path.is_dir, it takes a name of any length
        raise BundleError(f"No bundle at {folder}; give the path of a bundle's folder.")
    if not any((folder / name).exists() for name in (DESCRIPTION, MODEL, TEXT_TOKENIZER)):
        raise BundleError(
            f"{folder} is no bundle: {DESCRIPTION} is missing; give the folder of a bundle, or of "
            "the run that has trained it."
        )
    for name in (DESCRIPTION, MODEL, TEXT_TOKENIZER, IMAGE_TOKENIZER):
        if not (folder / name).exists():
            raise BundleError(
                f"The bundle {folder} is incomplete: {name} is missing. Copy the whole folder."
            )
    try:
        description: dict[str, Any] = read_json(folder / DESCRIPTION)
        version = description["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{folder / DESCRIPTION} is not a bundle description ({error!r}); copy it again."
        ) from error
    if type(version) is not int or version > FORMAT_VERSION:
        raise BundleError(
            f"The bundle {folder} has format version {configs.shown(version)}; this Pardalis reads "
            f"up to {FORMAT_VERSION}. Upgrade Pardalis."
        )
    if missing := {"model", "vocabulary", "made_by"} - set(description):
        raise BundleError(f"{folder / DESCRIPTION} lacks {', '.join(sorted(missing))}.")
    for name in ("model", "vocabulary", "made_by"):
        if not isinstance(description[name], dict):
            raise BundleError(
                f"{folder / DESCRIPTION} has {configs.shown(description[name])} as {name}; it must "
                "be a table. Copy it again."
            )
    if version < 5 and "prompt_pictures" in description:
        description["image_fit"] = description.pop("prompt_pictures")
    description["vocabulary"] = by_name(description["vocabulary"])
    return description
