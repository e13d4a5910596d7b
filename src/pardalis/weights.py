"""Weights from a safetensors file into a module: all of them or none.

What a config claims is compared with the file's header before anything is built or allocated, and
every value that is read is checked: one NaN would turn all output into noise.
"""

import io
import math
import os
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pardalis.errors import BundleError

_SHOWN, _LONGEST_SHOWN = 6, 200  # names of each kind in a message, and characters of a name

Shapes = Mapping[str, Sequence[int]]
Module = TypeVar("Module", bound=nn.Module)


def load_module(build: Callable[[], Module], path: Path, n_layers: int) -> Module:
    """Build a module and give it the weights of a file, on the CPU; raises as :func:`load_weights`.

    Args:
        n_layers: layers of the module, each of which has a tensor or more. If the file has fewer
            tensors, nothing is built.
    """
    with _open(path) as file:
        check_layers(path, n_layers, len(file.keys()))
    with torch.device("meta"):
        module = build()
    load_weights(module, path)
    return module


def load_weights(module: nn.Module, path: Path) -> None:
    """Give a module the weights of a file, on the CPU. The module may be on the meta device.

    Raises:
        BundleError: the file is missing, truncated or not safetensors, or does not hold exactly
            the module's tensors in the module's shapes. Or a value is NaN or infinite. The module
            is then unchanged.
    """
    with _open(path) as file:
        _check_file(module.state_dict(), path, file)
        weights = load_file(path)
    check_finite(path, weights.items())
    module.load_state_dict(weights, assign=True)


def check_archive(path: Path, first: int = 0, length: int | None = None) -> None:
    """Raise ValueError if an archive of PyTorch's would fill more memory than it has bytes.

    PyTorch never compresses what it writes, but its reader decompresses: a thousand times the size
    of the file. What is no archive is left to its reader.

    Args:
        first: where the archive begins in the file.
        length: its bytes; None: to the end.
    """
    with open(path, "rb", buffering=0) as file:
        part = _Part(file, first, file.seek(0, io.SEEK_END) - first if length is None else length)
        if not zipfile.is_zipfile(part):
            return
        with zipfile.ZipFile(part) as archive:
            entries = archive.infolist()
        size = part.seek(0, io.SEEK_END)
    if compressed := [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED]:
        raise ValueError(f"{compressed[0]} in it is compressed")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("its entries overlap")


class _Part(io.RawIOBase):
    """Some bytes of a file, read like a file of their own."""

    def __init__(self, file: io.FileIO, first: int, length: int) -> None:
        self._file, self._first, self._length, self._at = file, first, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._length)[whence]
        if self._at < 0:
            raise OSError("before the first byte")
        return self._at

    def readinto(self, buffer: Any) -> int:
        n = min(len(buffer), max(0, self._length - self._at))
        content = os.pread(self._file.fileno(), n, self._first + self._at)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def stream_weights(
    module: nn.Module,
    path: Path,
    assign: Callable[[Tensor, Any], None],
    others: Collection[str] = (),
) -> None:
    """Copy the weights of a file into a module, one tensor at a time.

    Args:
        assign: copies a stored tensor, or the part that this process holds, into a tensor of the
            module. The stored tensor is indexed like a ``Tensor`` and reads only what is indexed.
        others: tensors of the module that the file does not hold, by name; they are left alone.

    Raises:
        BundleError: as :func:`load_weights`.
    """
    needed = {name: t for name, t in module.state_dict().items() if name not in others}
    with _open(path) as file:
        _check_file(needed, path, file)
    for name, tensor in needed.items():
        with _open(path) as file:  # opened for each tensor, so that its mapped pages are released
            assign(tensor, file.get_slice(name))
        check_finite(path, [(name, getattr(tensor, "_local_tensor", tensor))])


def check_finite(source: Path | str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Check the values of tensors, by name.

    The smallest and largest value tell, in one pass without a temporary tensor, which also brings a
    mapped file into memory, as the first use would do otherwise.

    Raises:
        BundleError: a value is NaN or infinite.
    """
    for name, tensor in tensors:
        if not is_finite(tensor):
            raise BundleError(
                f"{source} cannot be used: {name} holds NaN or infinite values. Copy it again, or "
                "take an earlier checkpoint of its training."
            )


def is_finite(tensor: Tensor) -> bool:
    """Return whether all values of a tensor are finite."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(math.isfinite(end.item()) for end in torch.aminmax(tensor.detach()))


def check_layers(source: Path | str, n_layers: int, n_tensors: int) -> None:
    """Raise BundleError if a config has more layers than there are tensors."""
    if n_layers > n_tensors:
        raise BundleError(
            f"The config of {source} describes {n_layers} layers, but only {n_tensors} tensors are "
            "there. Do not mix files of different models."
        )


def check_weights(module: nn.Module, path: Path) -> None:
    """Check a file as :func:`load_weights` does, without reading a tensor."""
    with _open(path) as file:
        _check_file(module.state_dict(), path, file)


def stored_dtype_of(path: Path) -> torch.dtype:
    """Return the smallest dtype that holds all weights of a file; raises as load_weights."""
    with _open(path) as file:
        names = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    if unknown := sorted(names - _FLOATS.keys()):
        raise BundleError(
            f"{path} holds tensors of the type {unknown[0]}; they must be of {', '.join(_FLOATS)}. "
            "Convert the weights first."
        )
    dtypes = [_FLOATS[name] for name in sorted(names)]
    return reduce(torch.promote_types, dtypes) if dtypes else torch.float32


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


def check_permission(path: Path) -> None:
    """Raise BundleError if a file may not be read, which safetensors calls "No such file"."""
    if path.is_file() and not os.access(path, os.R_OK):
        raise BundleError(f"{path} may not be read by this user; give it the permission to read.")


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    check_permission(path)
    if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
        raise BundleError(
            f"{path} cannot be read: it is not a regular file; copy the whole folder again."
        )
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


def _check_file(needed: Mapping[str, Tensor], path: Path, file: Any) -> None:
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    check_shapes(
        path,
        {name: tensor.shape for name, tensor in needed.items()},
        {name: stored.get_shape() for name, stored in slices.items()},
    )
    for name, tensor in needed.items():
        known = _FLOATS if tensor.is_floating_point() else _INTEGERS
        if (dtype := slices[name].get_dtype()) not in known:
            raise BundleError(
                f"{name} in {path} is of type {dtype}; it must be one of {', '.join(known)}. "
                "Convert the weights first."
            )


# Names of dtypes in the safetensors format.
_FLOATS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16
}  # fmt: skip
_INTEGERS = ("I64", "I32", "I16", "I8", "U8", "BOOL")


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:_LONGEST_SHOWN] for name in names[:_SHOWN]) + more
