"""The GGUF container: named values, and tensors that are dequantised when they are read.

    magic, version, number of tensors, number of values
    values      key, type, value; an array has the type and the number of its items
    tensors     name, dimensions (the fastest first), type, offset
    data        from the next multiple of general.alignment on

The layout is that of llama.cpp's specification, versions 2 and 3, little-endian. The package
``gguf`` knows the types and dequantises them. Its reader trusts the counts of a file, so the header
is read here: every count and length is compared with the bytes that are left before anything is
allocated, so a file from elsewhere takes bounded time and memory.
"""

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pardalis.config import shown
from pardalis.errors import BundleError, ConfigError
from pardalis.files import require_file
from pardalis.interop.tensors import LazyTensor, bytes_of

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_HEADER = 1 << 26  # bytes; the largest vocabularies take some 20 MB
_MOST_DIMENSIONS = 4
_MOST_ALIGNMENT = 1 << 20
_ALIGNMENT = 32  # if the file names none

# Numbers of the types of values, and what struct and numpy call them.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
_FLOAT32, _BOOL, _STRING, _ARRAY = 6, 7, 8, 9
# The types that are stored as they are; all others are dequantised to 32 bits.
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def library(what: str) -> ModuleType:
    """Return the package ``gguf``; raises ConfigError, which says ``what`` needs it."""
    try:
        import gguf
    except ImportError:
        raise ConfigError(
            f"{what} needs the package gguf, which is not installed; run pip install "
            "'pardalis[gguf]'."
        ) from None
    return gguf


@dataclass(frozen=True, kw_only=True, slots=True)
class GGUFFile:
    """The content of a GGUF file."""

    path: Path
    values: dict[str, Any]
    tensors: dict[str, LazyTensor]

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number from 0 on; raises BundleError if it is none, or is missing."""
        value = self._value(key, default, "a whole number from 0 on")
        if type(value) is not int or value < 0:
            self._refuse(key, value, "a whole number from 0 on")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number; raises as :meth:`integer`."""
        value = self._value(key, default, "a number")
        if type(value) not in (int, float) or not abs(value) < float("inf"):
            self._refuse(key, value, "a finite number")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text; raises as :meth:`integer`."""
        value = self._value(key, default, "a text")
        if type(value) is not str:
            self._refuse(key, value, "a text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false; raises as :meth:`integer`."""
        value = self.values.get(key, default)
        if type(value) is not bool:
            self._refuse(key, value, "true or false")
        return value

    def items(self, key: str, kind: type, n: int | None = None) -> list[Any]:
        """Return an array of n values of a type; raises as :meth:`integer`."""
        value = self._value(key, None, "an array")
        if type(value) is not list or not all(type(item) is kind for item in value):
            self._refuse(key, value, f"an array of {kind.__name__}")
        if n is not None and len(value) != n:
            raise BundleError(
                f"{self.path} has {len(value)} values in {key}, but {n} tokens; copy it again."
            )
        return value

    def _value(self, key: str, default: Any, needed: str) -> Any:
        if key not in self.values and default is None:
            raise BundleError(
                f"{self.path} has no {key}, which must be {needed}; convert the model again."
            )
        return self.values.get(key, default)

    def _refuse(self, key: str, value: Any, needed: str) -> None:
        raise BundleError(
            f"{self.path} has {shown(value)} as {key}, which must be {needed}; convert the model "
            "again."
        )


def is_gguf(path: Path) -> bool:
    """Return whether a file is named as GGUF files are, or begins as they do."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return path.suffix == ".gguf" or file.read(4) == MAGIC


def read_gguf(path: Path) -> GGUFFile:
    """Read the header of a GGUF file; its tensors are lazy.

    Raises:
        BundleError: the file is missing, truncated or malformed, or a tensor has a type that cannot
            be dequantised.
        ConfigError: the package gguf is not installed.
    """
    gguf = library("A GGUF file")
    try:
        require_file(path)
        with open(path, "rb") as file:
            size = path.stat().st_size
            if size < 24 or file.read(4) != MAGIC:
                raise ValueError("it does not begin as one")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parsed(path, _Cursor(data, size), size, gguf)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BundleError(
            f"{path} is not a GGUF file that can be read: {reason}; copy it again."
        ) from error


class _Cursor:
    """A place in the header, which moves on as values are read."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data, self.place, self.end = data, 4, min(size, _MOST_HEADER)
        self._cut = size > self.end

    def require(self, n: int, each: int = 1) -> None:
        """Raise ValueError unless n items of at least so many bytes each are left."""
        if n * each > self.end - self.place:
            limit = f"is longer than {_MOST_HEADER >> 20} MiB" if self._cut else "is truncated"
            raise ValueError(f"its header {limit}, or claims more than the file holds")

    def unpack(self, form: str) -> tuple[Any, ...]:
        form = "<" + form
        self.require(struct.calcsize(form))
        found = struct.unpack_from(form, self.data, self.place)
        self.place += struct.calcsize(form)
        return found

    def text(self) -> str:
        (length,) = self.unpack("Q")
        self.require(length)
        self.place += length
        return self.data[self.place - length : self.place].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise ValueError(f"a value in it is of the unknown type {kind}")
        (found,) = self.unpack(_SCALARS[kind])
        # The shortest decimal: 1e-5 and not 9.999999747378752e-06.
        return float(str(np.float32(found))) if kind == _FLOAT32 else found

    def _array(self) -> list[Any]:
        kind, n = self.unpack("IQ")
        if kind == _STRING:
            return self._texts(n)
        if kind not in _SCALARS:
            raise ValueError(f"an array in it has items of the type {kind}")
        dtype = np.dtype(_SCALARS[kind]).newbyteorder("<")
        self.require(n, each=dtype.itemsize)
        found = np.frombuffer(self.data, dtype, n, self.place).tolist()
        self.place += n * dtype.itemsize
        return found

    def _texts(self, n: int) -> list[str]:
        """Return n texts; :meth:`text` in a loop without calls, for hundreds of thousands."""
        self.require(n, each=8)
        found, length_at, data, place = [], struct.Struct("<Q").unpack_from, self.data, self.place
        for left in range(n, 0, -1):
            (length,) = length_at(data, place)
            first, place = place + 8, place + 8 + length
            if place + 8 * (left - 1) > self.end:
                self.require(self.end)  # which raises
            found.append(data[first:place].decode("utf-8"))
        self.place = place
        return found


def _parsed(path: Path, cursor: _Cursor, size: int, gguf: ModuleType) -> GGUFFile:
    (version,) = cursor.unpack("I")
    if version & 0xFFFF == 0:
        raise ValueError("it is big-endian, and only little-endian files are read")
    if version not in _VERSIONS:
        raise ValueError(f"it is of version {version}, and versions 2 and 3 are read")
    n_tensors, n_values = cursor.unpack("QQ")
    cursor.require(n_values, each=13)
    cursor.require(n_tensors, each=24)
    values: dict[str, Any] = {}
    for _ in range(n_values):
        key = cursor.text()
        if key in values:
            raise ValueError(f"it has two values {shown(key)}")
        values[key] = cursor.value(*cursor.unpack("I"))
    if values.get("split.count", 0) not in (0, 1):
        raise ValueError("it is one of several parts; merge them with llama-gguf-split first")
    alignment = values.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= _MOST_ALIGNMENT:
        raise ValueError(f"general.alignment is {shown(alignment)}")
    places = [_tensor_info(cursor, gguf) for _ in range(n_tensors)]
    data = -(-cursor.place // alignment) * alignment
    if sum(length for *_, length in places) > max(0, size - data):
        raise ValueError("its tensors take more bytes than the file has")
    tensors: dict[str, LazyTensor] = {}
    for name, shape, kind, offset, length in places:
        if name in tensors:
            raise ValueError(f"it has two tensors {shown(name)}")
        if data + offset + length > size:
            raise ValueError(f"{shown(name)} ends after the file")
        tensors[name] = _lazy(path, shape, kind, data + offset, length, gguf)
    return GGUFFile(path=path, values=values, tensors=tensors)


def _tensor_info(cursor: _Cursor, gguf: ModuleType) -> tuple[str, tuple[int, ...], Any, int, int]:
    """Return name, shape, type, offset and length of a tensor."""
    name = cursor.text()
    (n,) = cursor.unpack("I")
    if not 0 < n <= _MOST_DIMENSIONS:
        raise ValueError(f"{shown(name)} has {n} dimensions")
    *dimensions, number, offset = cursor.unpack(f"{n}QIQ")
    shape = tuple(reversed(dimensions))
    try:
        kind = gguf.GGMLQuantizationType(number)
    except ValueError:
        raise ValueError(f"{shown(name)} is of the unknown type {number}") from None
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if 0 in shape or shape[-1] % block:
        raise ValueError(
            f"{shown(name)} of type {kind.name} has the shape {shown(shape)}, whose last dimension "
            f"is not a multiple of {block}"
        )
    _check_type(kind, block_bytes, gguf)
    return name, shape, kind, offset, prod(shape) // block * block_bytes


@cache
def _check_type(kind: Any, block_bytes: int, gguf: ModuleType) -> None:
    """Raise ValueError unless the package can dequantise a type."""
    if kind.name in _PLAIN:
        return
    try:
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        raise ValueError(f"it has tensors of type {kind.name}, which is not supported") from None


def _lazy(
    path: Path, shape: tuple[int, ...], kind: Any, first: int, length: int, gguf: ModuleType
) -> LazyTensor:
    dtype = _PLAIN.get(kind.name)
    read: Callable[[], Tensor]
    if dtype is not None:
        plain = dtype

        def read() -> Tensor:
            return bytes_of(path, first, length).view(plain).reshape(shape)
    else:

        def read() -> Tensor:
            rows = bytes_of(path, first, length).numpy().reshape(*shape[:-1], -1)
            with np.errstate(all="ignore"):  # a NaN is found when the tensor is written
                return torch.from_numpy(gguf.dequantize(rows, kind)).reshape(shape)

    return LazyTensor(shape, dtype or torch.float32, read)
