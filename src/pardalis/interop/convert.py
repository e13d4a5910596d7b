"""Foreign checkpoints in and out, whatever their layout."""

import logging
from pathlib import Path
from typing import Literal

import torch

from pardalis import bundle as bundles
from pardalis.errors import BundleError, ConfigError
from pardalis.interop.huggingface import read_chameleon, read_config, write_chameleon
from pardalis.interop.llama import MODEL_TYPES, NewRows, read_llama
from pardalis.interop.meta import is_meta, read_meta, write_meta
from pardalis.interop.model import ForeignModel, read_bundle, without_embedding_norm, write_bundle
from pardalis.interop.tensors import LazyTensor, open_tensors
from pardalis.interop.vqgan import read_vqgan
from pardalis.vq import ImageTokenizer, ImageTokenizerConfig

logger = logging.getLogger(__name__)

Target = Literal["hf", "meta"]


def import_model(
    source: Path | str,
    folder: Path | str,
    *,
    dtype: torch.dtype | None = None,
    image_tokenizer: Path | str | None = None,
    new_rows: NewRows | None = None,
) -> ForeignModel:
    """Turn a foreign checkpoint into a bundle, which appears whole or not at all.

    Args:
        source: a Hugging Face folder of a Chameleon or of a text-only Llama, or the original
            release of a Chameleon.
        folder: of the bundle; new or empty.
        dtype: of the decoder's weights; as they come when left out.
        image_tokenizer: for a text-only model, the image tokenizer that it gets; for a Chameleon of
            Hugging Face's, the one of its release, which takes the place of the folder's own. A
            folder of ours (an image tokenizer or a bundle) or the original ``vqgan.ckpt`` with
            ``vqgan.yaml`` beside it.
        new_rows: for a text-only model, how the rows of the new ids begin.

    Returns:
        What was imported, with its weights still to be read.

    Raises:
        BundleError: something in the source is missing or does not fit; nothing is written.
        ConfigError: an argument does not suit the source, or the folder is not empty.
    """
    source, folder = Path(source), Path(folder)
    _check_target(folder, source)
    model = read_model(source, image_tokenizer=image_tokenizer, new_rows=new_rows)
    write_bundle(model, folder, dtype)
    return model


def read_model(
    source: Path | str,
    *,
    image_tokenizer: Path | str | None = None,
    new_rows: NewRows | None = None,
) -> ForeignModel:
    """Read whatever layout lies in a folder; arguments and errors as of :func:`import_model`."""
    source = Path(source)
    if not source.is_dir():
        raise BundleError(f"No folder at {source}; give that of a checkpoint.")
    if (source / bundles.DESCRIPTION).is_file():
        raise BundleError(f"{source} is a bundle already; every command takes it as it is.")
    if is_meta(source):
        _refuse(image_tokenizer is not None, "image_tokenizer", "the release has its own")
        _refuse(new_rows is not None, "new_rows", "the release has image tokens")
        return read_meta(source)
    if not (source / "config.json").is_file():
        raise BundleError(
            f"{source} holds no checkpoint that can be imported: neither config.json (Hugging "
            "Face) nor params.json or models/*/params.json (the original release) is there."
        )
    kind = read_config(source).get("model_type")
    if kind == "chameleon":
        _refuse(new_rows is not None, "new_rows", "a Chameleon has image tokens")
        given = None if image_tokenizer is None else open_image_tokenizer(image_tokenizer)
        return read_chameleon(source, given)
    if kind in MODEL_TYPES:
        if image_tokenizer is None:
            raise ConfigError(
                f"{source} is a text-only model ({kind}); give the image tokenizer to add to it as "
                "`image_tokenizer`."
            )
        return read_llama(source, *open_image_tokenizer(image_tokenizer), new_rows)
    raise BundleError(
        f"{source / 'config.json'} is of a model of type {kind!r}; chameleon, "
        f"{' and '.join(MODEL_TYPES)} can be imported."
    )


def export_model(
    source: Path | str,
    folder: Path | str,
    to: Target,
    *,
    dtype: torch.dtype | None = None,
    n_ranks: int | None = None,
) -> None:
    """Write a bundle in a foreign layout.

    Args:
        folder: new or empty. What stands in another is not ours to replace.
        to: ``hf``, which Hugging Face's classes load as it is, or ``meta``, the original release's.
        dtype: of the weights; as the bundle has them when left out.
        n_ranks: of ``meta``: files to divide the decoder among.

    Raises:
        BundleError: the bundle is broken, the layout cannot hold its model, or the folder cannot be
            written.
        ConfigError: an argument does not suit the layout, or the folder is not empty.
    """
    source, folder = Path(source), Path(folder)
    _check_target(folder, source)
    model = without_embedding_norm(read_bundle(source))
    if bundles.describe(source).get("image_fit", "crop") != "crop":
        logger.warning(
            "%s shows images of prompts with white borders, which no foreign layout can say; "
            "make them square before the exported model gets them.",
            source,
        )
    if to == "hf":
        _refuse(n_ranks is not None, "n_ranks", "only the original release's layout has ranks")
        write_chameleon(model, folder, dtype)
    else:
        write_meta(model, folder, dtype, n_ranks)


def open_image_tokenizer(path: Path | str) -> tuple[ImageTokenizerConfig, dict[str, LazyTensor]]:
    """Open an image tokenizer of ours or of the original layout.

    Args:
        path: a folder of ours, a bundle, or a ``.ckpt`` with a ``.yaml`` of its name beside it.

    Raises:
        BundleError: there is nothing, or no image tokenizer that can be read.
    """
    path = Path(path)
    if not path.exists():
        raise BundleError(
            f"No image tokenizer at {path}; give a bundle, a folder of an image tokenizer, or a "
            "vqgan.ckpt with its vqgan.yaml beside it."
        )
    if path.is_file():
        return read_vqgan(path)
    folder = path / bundles.IMAGE_TOKENIZER if (path / bundles.DESCRIPTION).is_file() else path
    return ImageTokenizer.load_config(folder), open_tensors(folder / "model.safetensors")


def _check_target(folder: Path, source: Path) -> None:
    """Refuse to write where something is: a conversion is repeated sooner than a training."""
    there, here = folder.resolve(), source.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise ConfigError(f"{folder} is, holds or lies in the source {source}; choose another.")
    bundles.require_new(folder)


def _refuse(given: bool, argument: str, because: str) -> None:
    if given:
        raise ConfigError(f"`{argument}` does not apply: {because}. Leave it out.")
