"""Reading published weights from files and packages, by tensor name, without running their code."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from pardalis.errors import BundleError
from pardalis.weights import check_archive, check_permission, check_shapes

_ALLOWED_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, or of a PyTorch file with tensors alone.

    Raises:
        BundleError: the file is missing or may not be read, or is neither.
    """
    check_permission(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        check_archive(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing; give a file of the net's weights.") from error
    except Exception as error:
        # A damaged pickle can raise any exception, and torch's own message is a page long.
        raise BundleError(
            f"{path} cannot be read as weights ({type(error).__name__}): it must be a safetensors "
            "file, or a PyTorch file with tensors alone; download it again, or save its state "
            "dict as safetensors."
        ) from error
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise BundleError(f"{path} holds no state dict, which maps names to tensors.")
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def fitted(
    tensors: Mapping[str, Tensor],
    needed: Mapping[str, torch.Size],
    source: str | Path,
    ignored: str | None = None,
) -> dict[str, Tensor]:
    """Return the tensors of the needed names, in float32.

    Other tensors are allowed only if their names begin with ``ignored``.

    Raises:
        BundleError: a tensor is missing, has another shape, or is not needed.
    """
    found = {
        name: tensor
        for name, tensor in tensors.items()
        if ignored is None or not name.startswith(ignored)
    }
    check_shapes(
        source,
        needed,
        {name: tensor.shape for name, tensor in found.items()},
        target="the net",
        advice="Give weights of this net, with torchvision's names.",
    )
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in found.items()
    }


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays in lists and dicts, and refuses anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return _ALLOWED_GLOBALS[module, name]


def read_pickled_arrays(file: IO[bytes]) -> Any:
    """Read pickled NumPy arrays, also in lists and dicts.

    Raises:
        pickle.UnpicklingError: the file holds anything else.
    """
    return _ArraysOnly(file).load()
