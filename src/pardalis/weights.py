"""Weights from a safetensors file into a module, all of them or none."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pardalis.errors import BundleError


def load_weights(module: nn.Module, path: Path) -> None:
    """Give a module the weights of a file, on the CPU; it may have been built on the meta device.

    Raises:
        BundleError: the file is missing, truncated or not safetensors, or does not hold exactly
            the module's tensors in the module's shapes. The module is then as it was.
    """
    try:
        weights = load_file(path)
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing; copy the whole folder again.") from error
    except (SafetensorError, OSError) as error:
        raise BundleError(
            f"{path} cannot be read ({error}): it is truncated or not safetensors; copy the whole "
            "folder again."
        ) from error
    needed = {name: tensor.shape for name, tensor in module.state_dict().items()}
    found = {name: tensor.shape for name, tensor in weights.items()}
    wrong = sorted(n for n in needed.keys() | found.keys() if needed.get(n) != found.get(n))
    if wrong:
        first = wrong[0]
        raise BundleError(
            f"{path} does not fit its config in {len(wrong)} tensors, first {first}: found "
            f"{_text(found.get(first))}, needed {_text(needed.get(first))}. Do not mix files of "
            "different models."
        )
    module.load_state_dict(weights, assign=True)


def _text(shape: torch.Size | None) -> str:
    if shape is None:
        return "nothing"
    return "x".join(map(str, shape)) or "a single number"
