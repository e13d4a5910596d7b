"""Folders of nets in Hugging Face's layout: config.json, model.safetensors and tokenizer.json."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from pardalis import config as configs
from pardalis.config import check_above, check_at_most
from pardalis.errors import BundleError, ConfigError
from pardalis.feature_nets.files import fitted, read_tensors
from pardalis.files import parse_json, read_json, read_text
from pardalis.tokens.text import check_steps, refusing

_MOST = 2**20  # of any number of a shape; the largest vocabularies have some 250,000 ids
_MOST_LAYERS = 200


def read_description(folder: Path, model_type: str) -> dict[str, Any]:
    """Return the values of ``config.json``; raises BundleError unless it is of a kind of model."""
    path = folder / "config.json"
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}); give the folder of a net.") from error
    if not isinstance(values, dict) or values.get("model_type") != model_type:
        raise BundleError(f"{path} describes no net of the type {model_type!r}; give one that is.")
    return values


def check_shape(shape: Any) -> None:
    """Raise ConfigError unless the numbers of a shape are those of a net that can be built."""
    numbers = [each.name for each in fields(shape) if isinstance(getattr(shape, each.name), int)]
    check_above(shape, **dict.fromkeys(numbers, 0))
    check_at_most(shape, **dict.fromkeys(numbers, _MOST))
    check_at_most(shape, num_hidden_layers=_MOST_LAYERS)
    if shape.hidden_size % shape.num_attention_heads:
        raise ConfigError("hidden_size must be a multiple of num_attention_heads.")


def shape_from(cls: type[Any], values: dict[str, Any], path: Path) -> Any:
    """Return a shape from the values of a ``config.json``; raises BundleError."""
    known = {each.name for each in fields(cls)}
    try:
        found = {name: value for name, value in values.items() if name in known}
        return configs.from_dict(cls, found)
    except ConfigError as error:
        raise BundleError(f"{path} does not describe the net: {error}") from error


def fill_from(module: nn.Module, folder: Path, ignored: str, extra: Sequence[str] = ()) -> None:
    """Give a module on the meta device the weights of a folder; raises BundleError.

    Args:
        ignored: what the names of tensors begin with that are not needed.
        extra: names of tensors that older files have besides.
    """
    path = folder / "model.safetensors"
    needed = {name: tensor.shape for name, tensor in module.state_dict().items()}
    found = {name: t for name, t in read_tensors(path).items() if name not in extra}
    module.load_state_dict(fitted(found, needed, str(path), ignored), assign=True)


def read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """Return the tokenizer of a folder; raises BundleError if its ids exceed the net's."""
    path = folder / "tokenizer.json"
    try:
        content = read_text(path)
        check_steps(parse_json(content))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BundleError(
            f"{path} cannot be read ({error}); give the tokenizer of the net."
        ) from error
    with refusing(path):
        tokenizer = Tokenizer.from_str(content)
        largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocab_size:
        raise BundleError(f"{path} has the id {largest}, but the net has {vocab_size} ids.")
    return tokenizer


def padded(encoded: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "N T"], Bool[Tensor, "N T"]]:
    """Return sequences as a tensor, filled up with zeros, and which of its ids are theirs."""
    lengths = torch.tensor([len(ids) for ids in encoded])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.long)
    ids[mask] = torch.tensor([i for each in encoded for i in each])
    return ids, mask
