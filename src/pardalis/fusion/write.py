"""Writing the bundle of a merge, tensor by tensor."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from pardalis import bundle as bundles
from pardalis import config as configs
from pardalis.errors import ConfigError
from pardalis.files import write_text
from pardalis.fusion.kinds import MergeConfig
from pardalis.fusion.parents import (
    Merged,
    Parent,
    check_fit,
    check_same_vocabulary,
    open_parent,
)
from pardalis.fusion.vocabulary import united, united_apart
from pardalis.interop.model import ForeignModel, check_tensors, decoder_shapes
from pardalis.interop.tensors import write_safetensors
from pardalis.vq import ImageFit, ImageTokenizer


def merge(
    parents: Sequence[Path | str],
    folder: Path | str,
    how: MergeConfig,
    *,
    unite: bool = False,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Any:
    """Merge bundles into a new one, which is written atomically; return the config of its model.

    Only a few tensors are in memory at a time. Text tokenizer and chat template are those of the
    first bundle, the image tokenizer and how images are made square those of the second.

    Args:
        parents: bundles, or runs that have one: the text parent, the image parent, others.
        folder: folder of the bundle; new or empty.
        unite: whether two parents may have different tokens: rows of text tokens are taken from the
            text parent, those of image tokens from the image parent. For ``width``, each half
            keeps the rows of its parent, and has the other's of tokens that its parent lacks.
        dtype: dtype of the weights (default: the smallest that holds those of all parents).
        seed: of what is drawn, in ``cross``.

    Raises:
        BundleError: a parent cannot be read, the parents do not fit each other (the message names
            what differs), or the folder cannot be written. Nothing is written.
        ConfigError: the kind cannot merge such parents or as many, or the folder is not empty.
    """
    folder = Path(folder)
    folder = folder.resolve() if folder.is_symlink() else folder
    if len(parents) < 2:
        raise ConfigError(f"`parents` must be at least two models, got {len(parents)}.")
    opened = [open_parent(parent) for parent in parents]
    base = getattr(how, "base", None)
    bases = [open_parent(base)] if base is not None else []
    sources = opened + bases
    _check_target(folder, sources)
    check_fit(sources)
    if unite:
        sources = _united(opened, sources, how)
    else:
        check_same_vocabulary(sources)
    made = how.merged(sources, seed)
    check_tensors("The parents", decoder_shapes(made.config), made.tensors)
    _write(folder, made, opened, bases, sources[0].model, how, dtype)
    return made.config


def _check_target(folder: Path, parents: Sequence[Parent]) -> None:
    """Refuse a folder that overlaps a parent's or is not empty."""
    there = folder.resolve()
    for parent in parents:
        here = parent.folder.resolve()
        if here.is_relative_to(there) or there.is_relative_to(here):
            raise ConfigError(
                f"{folder} is, holds or lies in the model {parent.folder}; choose another folder."
            )
    bundles.require_new(folder)


def _united(opened: Sequence[Parent], sources: Sequence[Parent], how: MergeConfig) -> list[Parent]:
    if len(opened) != 2:
        raise ConfigError(
            f"`unite` takes text from one model and images from another, got {len(opened)} models; "
            "merge them two by two."
        )
    text, image = opened
    if how.kind == "width":
        return united_apart(text, image)
    return united(text, image, sources[2:])


def _write(
    folder: Path,
    made: Merged,
    parents: Sequence[Parent],
    bases: Sequence[Parent],
    text: ForeignModel,
    how: MergeConfig,
    dtype: torch.dtype | None,
) -> None:
    image = parents[1]
    with bundles.new_folder(folder) as partial:
        text.text_tokenizer.save(partial / bundles.TEXT_TOKENIZER)
        _copy_image_tokenizer(image, partial / bundles.IMAGE_TOKENIZER)
        tensors = {name: tensor.to(dtype) for name, tensor in made.tensors.items()}
        write_safetensors(partial / bundles.MODEL, tensors, "Merging")
        licences = dict.fromkeys(parent.model.licences for parent in (*parents, *bases))
        if written := "\n".join(filter(None, licences)):
            write_text(partial / bundles.LICENCES, written)
        if text.chat_template is not None:
            write_text(partial / bundles.CHAT_TEMPLATE, text.chat_template)
        bundles.write_description(
            partial,
            made.config,
            text.vocabulary,
            _made_by(parents, bases, how),
            cast(ImageFit, image.image_fit),
            adds_bos=text.adds_bos,
        )


def _copy_image_tokenizer(parent: Parent, folder: Path) -> None:
    ImageTokenizer.save_config(folder, parent.model.image_tokenizer)
    name = "model.safetensors"
    shutil.copyfile(parent.folder / bundles.IMAGE_TOKENIZER / name, folder / name)


def _made_by(
    parents: Sequence[Parent], bases: Sequence[Parent], how: MergeConfig
) -> dict[str, Any]:
    options = {name: value for name, value in configs.to_dict(how).items() if name != "base"}
    names = ["text_parent", "image_parent", *(f"parent_{n + 1}" for n in range(2, len(parents)))]
    made = [*zip(names, parents, strict=True), *(("base", base) for base in bases)]
    return {"merged": options.pop("kind"), **options} | {
        name: dict(parent.made_by) for name, parent in made
    }
