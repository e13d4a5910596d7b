"""The models that are merged: reading them, and whether they fit each other."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pardalis import bundle as bundles
from pardalis import config as configs
from pardalis.errors import BundleError
from pardalis.interop.model import ForeignModel, read_bundle
from pardalis.interop.tensors import LazyTensor, Tensors
from pardalis.model import build
from pardalis.parameters import ParameterSpec, specs_of

# Options of a model that decide nothing of what its weights compute.
_FREE = ("dropout", "init", "vocab_size")
_MOST_SHOWN = 3  # options in a message


@dataclass(frozen=True)
class Parent:
    """A bundle whose weights are read on demand."""

    folder: Path
    model: ForeignModel
    image_fit: str
    made_by: Mapping[str, Any]

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def tensors(self) -> Tensors:
        return self.model.decoder

    def with_tensors(self, config: Any, tensors: Tensors) -> "Parent":
        """Return the parent with another config and weights that fit it."""
        model = dataclasses.replace(self.model, config=config, decoder=tensors)
        return dataclasses.replace(self, model=model)


@dataclass(frozen=True)
class Merged:
    """A model that was made of others: its config and its weights, which are read on demand."""

    config: Any
    tensors: Tensors


def open_parent(path: Path | str) -> Parent:
    """Open a bundle, or that of a run; raises BundleError as :func:`pardalis.load`."""
    folder = bundles.bundle_folder(path)
    described = bundles.describe(folder)
    return Parent(
        folder=folder,
        model=read_bundle(folder),
        image_fit=described.get("image_fit", "crop"),
        made_by={k: v for k, v in described["made_by"].items() if k != "numbers"},
    )


def check_fit(parents: Sequence[Parent]) -> None:
    """Raise BundleError if a parent's architecture differs from that of the first."""
    first = parents[0]
    ours = dict(_options(configs.to_dict(first.config)))
    for other in parents[1:]:
        theirs = dict(_options(configs.to_dict(other.config)))
        differing = [
            f"model.{name} is {configs.shown(ours.get(name))} and {configs.shown(theirs.get(name))}"
            for name in dict.fromkeys((*ours, *theirs))
            if ours.get(name) != theirs.get(name)
        ]
        if differing:
            more = len(differing) - _MOST_SHOWN
            shown = "; ".join(differing[:_MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")
            raise BundleError(
                f"{first.folder} and {other.folder} are of different architectures ({shown}); "
                "merge models of one architecture. Nothing was written."
            )


def check_same_vocabulary(parents: Sequence[Parent]) -> None:
    """Raise BundleError if a parent has other tokens than the first."""
    first = parents[0]
    for other in parents[1:]:
        differing = [
            what
            for what, is_same in (
                ("vocabularies", first.model.vocabulary == other.model.vocabulary),
                ("text tokenizers", same_text(first.model, other.model)),
                ("image tokenizers", same_images(first.model, other.model)),
            )
            if not is_same
        ]
        if differing:
            raise BundleError(
                f"{first.folder} and {other.folder} have different {' and '.join(differing)}; set "
                "`unite`, which takes text from the first and images from the second. Nothing was "
                "written."
            )


def same_text(one: ForeignModel, other: ForeignModel) -> bool:
    """Whether the text tokens of two models mean the same."""
    if len(one.vocabulary.text) != len(other.vocabulary.text):
        return False
    return one.text_tokenizer.to_json() == other.text_tokenizer.to_json()


def same_images(one: ForeignModel, other: ForeignModel) -> bool:
    """Whether the image codes of two models mean the same."""
    if one.image_tokenizer != other.image_tokenizer:
        return False
    if one.image_tensors is other.image_tensors:
        return True
    pairs = zip_longest(one.image_tensors.items(), other.image_tensors.items())
    return all(a[0] == b[0] and torch.equal(a[1].read(), b[1].read()) for a, b in pairs)


def specs_for(config: Any) -> dict[str, ParameterSpec]:
    """Return what each parameter of a model of a config is; nothing is allocated."""
    with torch.device("meta"):
        return specs_of(build(config))


def made_of(
    parts: Sequence[LazyTensor],
    shape: Sequence[int],
    function: Callable[..., Tensor],
) -> LazyTensor:
    """Return a function of lazy tensors, which are read together, in their promoted dtype."""
    dtype = reduce(torch.promote_types, (part.dtype for part in parts))
    return LazyTensor(tuple(shape), dtype, lambda: function(*(p.to(dtype).read() for p in parts)))


def _options(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the plain values of a config by dotted name, without those of ``_FREE``."""
    for name, value in values.items():
        if where + name in _FREE:
            continue
        if isinstance(value, Mapping):
            yield from _options(value, f"{where}{name}.")
        else:
            yield where + name, value
