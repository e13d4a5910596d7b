"""Weights from a safetensors file into a module: all of them or none."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pardalis.errors import BundleError

_SHOWN = 6  # names of each kind in a message

Shapes = Mapping[str, Sequence[int]]


def load_weights(module: nn.Module, path: Path) -> None:
    """Give a module the weights of a file, on the CPU. The module may be on the meta device.

    Raises:
        BundleError: the file is missing, truncated or not safetensors, or does not hold exactly
            the module's tensors in the module's shapes. The module is then unchanged.
    """
    with _open(path) as file:
        _check_file(module, path, file)
        weights = load_file(path)
    module.load_state_dict(weights, assign=True)


def stream_weights(module: nn.Module, path: Path, assign: Callable[[Tensor, Any], None]) -> None:
    """Copy the weights of a file into a module, one tensor at a time.

    Args:
        assign: copies a stored tensor, or the part that this process holds, into a tensor of the
            module. The stored tensor is indexed like a ``Tensor`` and reads only what is indexed.

    Raises:
        BundleError: as :func:`load_weights`.
    """
    with _open(path) as file:
        _check_file(module, path, file)
    for name, tensor in module.state_dict().items():
        with _open(path) as file:  # opened for each tensor, so that its mapped pages are released
            assign(tensor, file.get_slice(name))


def check_weights(module: nn.Module, path: Path) -> None:
    """Check a file as :func:`load_weights` does, without reading a tensor."""
    with _open(path) as file:
        _check_file(module, path, file)


def check_shapes(
    source: Path | str,
    needed: Shapes,
    found: Shapes,
    target: str = "their config",
    advice: str = "Do not mix files of different models.",
) -> None:
    """Compare the names and shapes of stored tensors with those that a network needs.

    Raises:
        BundleError: a tensor is missing, unexpected or of another shape.
    """
    misshapen = [
        f"{name} ({_text(found[name])} instead of {_text(shape)})"
        for name, shape in needed.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    differences = {
        "missing": [name for name in needed if name not in found],
        "unexpected": [name for name in found if name not in needed],
        "of another shape": misshapen,
    }
    texts = [f"{kind} {_listed(names)}" for kind, names in differences.items() if names]
    if texts:
        raise BundleError(
            f"The weights in {source} do not fit {target}: {'; '.join(texts)}. {advice}"
        )


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing; copy the whole folder again.") from error
    except (SafetensorError, OSError) as error:
        raise BundleError(
            f"{path} cannot be read ({error}): it is truncated or not safetensors; copy the whole "
            "folder again."
        ) from error


def _check_file(module: nn.Module, path: Path, file: Any) -> None:
    needed = {name: tensor.shape for name, tensor in module.state_dict().items()}
    found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    check_shapes(path, needed, found)


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
