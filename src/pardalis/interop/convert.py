"""Import and export of checkpoints; the layout of a source is detected from its files."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from pardalis import bundle as bundles
from pardalis.config import shown
from pardalis.errors import BundleError, ConfigError
from pardalis.files import read_text
from pardalis.interop.gguf import open_gguf
from pardalis.interop.gguf_export import Quantization, write_gguf
from pardalis.interop.gguf_file import is_gguf
from pardalis.interop.huggingface import read_chameleon, write_chameleon
from pardalis.interop.llama import (
    NewRows,
    TextSource,
    add_images,
    open_text_folder,
    write_text_model,
)
from pardalis.interop.meta import is_meta, read_meta, write_meta
from pardalis.interop.model import (
    ForeignModel,
    read_bundle,
    read_json,
    without_embedding_norm,
    write_bundle,
)
from pardalis.interop.tensors import LazyTensor, open_tensors
from pardalis.interop.text_configs import TEXT_ARCHITECTURES
from pardalis.interop.vqgan import read_vqgan
from pardalis.model import QKLayerNormConfig
from pardalis.tokens import with_template_end
from pardalis.vq import ImageTokenizer, ImageTokenizerConfig

logger = logging.getLogger(__name__)

Target = Literal["hf", "meta", "gguf"]


def import_model(
    source: Path | str,
    folder: Path | str,
    *,
    dtype: torch.dtype | None = None,
    image_tokenizer: Path | str | None = None,
    new_rows: NewRows | None = None,
    chat_template: Path | str | None = None,
) -> ForeignModel:
    """Convert a foreign checkpoint to a bundle, which is written atomically.

    Args:
        source: a Hugging Face folder of a Chameleon or of a text-only Llama, Mistral or Qwen,
            the original release of a Chameleon, or a GGUF file of such a text-only model.
        folder: folder of the bundle; new or empty.
        dtype: dtype of the decoder's weights (default: as in the source).
        image_tokenizer: for a text-only model, the image tokenizer to add; for a Hugging Face
            Chameleon, the image tokenizer of its release, which replaces the folder's own. A
            Pardalis folder (an image tokenizer or a bundle) or the original ``vqgan.ckpt`` with
            ``vqgan.yaml`` beside it.
        new_rows: for a text-only model, how the embedding and head rows of new tokens are
            initialised.
        chat_template: a file with the Jinja template of conversations, which replaces the source's
            own.

    Returns:
        The imported model; its weights are lazy.

    Raises:
        BundleError: something in the source is missing or does not fit; nothing is written.
        ConfigError: an argument does not apply to the source, or the folder is not empty.
        DataError: the given template does not take a conversation.
    """
    source, folder = Path(source), _target(folder)
    _check_target(folder, source)
    model = read_model(source, image_tokenizer=image_tokenizer, new_rows=new_rows)
    if chat_template is not None:
        model = replace(model, chat_template=_read_template(Path(chat_template)))
        with_template_end(model.vocabulary, model.text_tokenizer, model.chat_template)  # a check
    write_bundle(model, folder, dtype)
    return model


def read_model(
    source: Path | str,
    *,
    image_tokenizer: Path | str | None = None,
    new_rows: NewRows | None = None,
) -> ForeignModel:
    """Read a checkpoint of any layout; arguments and errors as in :func:`import_model`."""
    source = Path(source)
    if is_gguf(source):
        return _with_images(open_gguf(source), image_tokenizer, new_rows)
    if not source.is_dir():
        raise BundleError(
            f"No folder and no GGUF file at {source}; give the folder or the file of a checkpoint."
        )
    if (source / bundles.DESCRIPTION).is_file():
        raise BundleError(f"{source} is a bundle already and needs no import.")
    if is_meta(source):
        _refuse(image_tokenizer is not None, "image_tokenizer", "the release has its own")
        _refuse(new_rows is not None, "new_rows", "the release has image tokens")
        return read_meta(source)
    where = source / "config.json"
    if not where.is_file():
        raise BundleError(
            f"{source} holds no checkpoint that can be imported: neither config.json (Hugging "
            "Face) nor params.json or models/*/params.json (the original release) is there."
        )
    kind = read_json(where).get("model_type")
    if kind == "chameleon":
        _refuse(new_rows is not None, "new_rows", "a Chameleon has image tokens")
        beside = source / bundles.IMAGE_TOKENIZER  # of an export of ours
        given = image_tokenizer or (beside if beside.is_dir() else None)
        return read_chameleon(source, open_image_tokenizer(given) if given else None)
    if isinstance(kind, str) and kind in TEXT_ARCHITECTURES:
        return _with_images(open_text_folder(source), image_tokenizer, new_rows)
    *others, last = TEXT_ARCHITECTURES
    raise BundleError(
        f"{where} describes a model of type {shown(kind)}; chameleon, {', '.join(others)} and "
        f"{last} can be imported."
    )


def _with_images(
    source: TextSource, image_tokenizer: Path | str | None, new_rows: NewRows | None
) -> ForeignModel:
    if image_tokenizer is None:
        raise ConfigError(
            f"{source.where} is a text-only model ({source.config['model_type']}); name the image "
            "tokenizer to add to it with `image_tokenizer`."
        )
    return add_images(source, *open_image_tokenizer(image_tokenizer), new_rows)


def export_model(
    source: Path | str,
    folder: Path | str,
    to: Target,
    *,
    dtype: torch.dtype | None = None,
    n_ranks: int | None = None,
    quantization: Quantization | None = None,
    card: str = "",
) -> None:
    """Write a bundle in a foreign layout.

    Args:
        source: the bundle, or the run that has trained it.
        folder: new or empty; another folder is never overwritten. For ``gguf``, the file.
        to: ``hf``, which Hugging Face's classes load unchanged: those of Chameleon if queries and
            keys have a LayerNorm, otherwise those of Llama, Qwen2 or Qwen3, without the image
            tokenizer. ``meta``, the layout of the original release. Or ``gguf``, one file with
            the decoder and the text tokenizer alone.
        dtype: dtype of the weights (default: as in the bundle).
        n_ranks: for ``meta``, the number of files to split the decoder into.
        quantization: for ``gguf``, how the matrices are rounded.
        card: the model card, as Markdown; for ``gguf`` none is written.

    Raises:
        BundleError: the bundle is broken, the layout cannot hold its model, or the folder cannot be
            written.
        ConfigError: an argument does not apply to the layout, or the folder is not empty.
    """
    source, folder = bundles.bundle_folder(source), _target(folder)
    _refuse(
        to != "meta" and n_ranks is not None,
        "n_ranks",
        "only the original release's layout has ranks",
    )
    _refuse(to != "gguf" and quantization is not None, "quantization", "only GGUF has it")
    if to == "gguf":
        write_gguf(without_embedding_norm(read_bundle(source)), folder, dtype, quantization)
        return
    _check_target(folder, source)
    model = replace(without_embedding_norm(read_bundle(source)), card=card)
    if bundles.describe(source).get("image_fit", "crop") != "crop":
        logger.warning(
            "%s pads images of prompts with white borders, which no foreign layout can express; "
            "make images square before giving them to the exported model.",
            source,
        )
    if to == "hf":
        is_chameleon = isinstance(model.config.attention.qk_norm, QKLayerNormConfig)
        (write_chameleon if is_chameleon else write_text_model)(model, folder, dtype)
    else:
        write_meta(model, folder, dtype, n_ranks)


def open_image_tokenizer(path: Path | str) -> tuple[ImageTokenizerConfig, dict[str, LazyTensor]]:
    """Open an image tokenizer of Pardalis or of the original layout.

    Args:
        path: the folder of an image tokenizer, of a bundle or of the run that has trained it, or a
            ``.ckpt`` with the ``.yaml`` of the same name beside it.

    Raises:
        BundleError: the path does not exist, or is no image tokenizer that can be read.
    """
    path = Path(path)
    if not path.exists():
        raise BundleError(
            f"No image tokenizer at {path}; give a bundle, a folder of an image tokenizer, or a "
            "vqgan.ckpt with its vqgan.yaml beside it."
        )
    if path.is_file():
        return read_vqgan(path)
    folder = bundles.bundle_folder(path)
    if (folder / bundles.DESCRIPTION).is_file():
        folder = folder / bundles.IMAGE_TOKENIZER
    return ImageTokenizer.load_config(folder), open_tensors(folder / "model.safetensors")


def _read_template(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"`chat_template` names {path}, which cannot be read: {error}."
        ) from error


def _target(folder: Path | str) -> Path:
    """Return the place to write to; a link stays one, as the folder that it leads to is empty."""
    path = Path(folder)
    return path.resolve() if path.is_symlink() else path


def _check_target(folder: Path, source: Path) -> None:
    """Refuse a target that overlaps the source or is not empty."""
    there, here = folder.resolve(), source.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise ConfigError(f"{folder} is, holds or lies in the source {source}; choose another.")
    bundles.require_new(folder)


def _refuse(given: bool, argument: str, because: str) -> None:
    if given:
        raise ConfigError(f"`{argument}` does not apply: {because}. Leave it out.")
