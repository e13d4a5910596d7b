"""Lazy tensors: reading and writing files of weights with little memory.

A state dict here is a mapping from names to :class:`LazyTensor`, which knows shape and dtype from
the file's header and reads its values on demand. A conversion renames and transforms such a mapping
without reading values, checks compare shapes before anything is written, and a writer reads one
tensor at a time. No file stays memory-mapped, so the memory of a tensor is freed with it.
"""

import io
import json
import math
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import skip_data

from pardalis.config import shown
from pardalis.errors import BundleError
from pardalis.files import reserve
from pardalis.progress import bar
from pardalis.weights import check_finite, check_permission

SHARD_BYTES = 5_000_000_000  # largest safetensors shard, as transformers writes them

# Names of dtypes in the safetensors format.
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# PyTorch's names of typed storages.
_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
}  # fmt: skip


# With strides of 0 a few bytes are a tensor of any size, which would be written as such.
_MOST_REPEATED = 1 << 30  # bytes
_REPEATED = f"its tensors repeat values to be larger than {_MOST_REPEATED >> 30} GiB"


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor whose values are read on demand."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        return self.n_elements * self.dtype.itemsize

    def map(self, function: Callable[[Tensor], Tensor], shape: Sequence[int]) -> "LazyTensor":
        """Apply a function lazily; ``shape`` is the shape of its result."""
        return LazyTensor(tuple(shape), self.dtype, lambda: function(self.read()))

    def to(self, dtype: torch.dtype | None) -> "LazyTensor":
        """Return the tensor in another dtype; None keeps its own."""
        if dtype is None or dtype == self.dtype:
            return self
        return LazyTensor(self.shape, dtype, lambda: self.read().to(dtype))

    def split(self, n: int, dim: int) -> list["LazyTensor"]:
        """Split into n equal parts; if they are read in order, the values are read only once."""
        shape = list(self.shape)
        shape[dim] //= n
        kept: list[Tensor] = []

        def part(i: int) -> Tensor:
            if not kept:
                kept.append(self.read())
            whole = kept[0]
            if i == n - 1:
                kept.clear()
            return whole.narrow(dim, i * shape[dim], shape[dim])

        return [LazyTensor(tuple(shape), self.dtype, lambda i=i: part(i)) for i in range(n)]


Tensors = Mapping[str, LazyTensor]


def lazy(tensor: Tensor) -> LazyTensor:
    """Wrap a tensor in memory."""
    return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def join(parts: Sequence[LazyTensor], dim: int) -> LazyTensor:
    """Concatenate along a dimension, in the promoted dtype of all parts."""
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    dtype = reduce(torch.promote_types, (part.dtype for part in parts))
    return LazyTensor(
        tuple(shape), dtype, lambda: torch.cat([part.to(dtype).read() for part in parts], dim)
    )


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def open_tensors(path: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a ``.safetensors`` file or of a PyTorch checkpoint.

    If a checkpoint holds more than tensors, its ``state_dict`` is taken, or ``ema`` (the averaged
    weights, which inference uses), or ``model``.

    Raises:
        BundleError: the file is missing, truncated, or of neither format.
    """
    if not path.is_file():
        found = "is not a file" if path.exists() else "is missing"
        raise BundleError(f"{path} {found}; copy the whole folder again.")
    check_permission(path)
    try:
        if path.suffix == ".safetensors":
            return _open_safetensors(path)
        return _open_checkpoint(path)
    except (SafetensorError, ValueError) as error:
        raise BundleError(
            f"{path} cannot be read ({error}): it is truncated or not a file of weights; copy it "
            "again."
        ) from error


def _open_safetensors(path: Path) -> dict[str, LazyTensor]:
    def read(name: str) -> Tensor:
        # Opened for each tensor, so that its pages are freed with it.
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    with safe_open(path, framework="pt") as file:
        headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        if others := {header.get_dtype() for header in headers.values()} - _DTYPES.keys():
            raise ValueError(f"it has tensors of the unknown type {min(others)}")
        return {
            name: LazyTensor(
                tuple(header.get_shape()),
                _DTYPES[header.get_dtype()],
                lambda name=name: read(name),
            )
            for name, header in headers.items()
        }


def _open_checkpoint(path: Path) -> dict[str, LazyTensor]:
    is_archive = zipfile.is_zipfile(path)  # before PyTorch 1.6: one pickle, to be read whole
    try:
        if is_archive:
            content: Any = _Unpickler(path).load()
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken archive or pickle may raise anything
        # PyTorch's message is a page long and advises to run the code in the file.
        other = f": {error!r}" if is_archive else ", and no pickle of tensors alone"
        raise ValueError(f"no archive of PyTorch's{other}") from error
    for key in ("state_dict", "ema", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise ValueError("it holds no tensors by name")
    if wrong := [name for name in content if not isinstance(name, str)]:
        raise ValueError(f"{shown(wrong[0])} in it is not a name")
    repeated = sum(
        t.nbytes
        for t in content.values()
        if isinstance(t, Tensor) and t.nbytes > t.untyped_storage().nbytes()
    )
    if repeated > _MOST_REPEATED:
        raise ValueError(_REPEATED)
    tensors = {name: lazy(t) if isinstance(t, Tensor) else t for name, t in content.items()}
    if others := [name for name, value in tensors.items() if not isinstance(value, LazyTensor)]:
        raise ValueError(f"{shown(others[0])} in it is not a tensor of a known type")
    return tensors


def _records(path: Path) -> dict[str, tuple[int, int]]:
    """Return first byte and length of each record of a checkpoint's archive."""
    records = {}
    end = path.stat().st_size
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} in it is compressed")
            file.seek(entry.header_offset + 26)  # lengths of name and extra field
            first = entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
            if first + entry.file_size > end:
                raise ValueError(f"{entry.filename} in it ends after the file")
            records[entry.filename.partition("/")[2]] = (first, entry.file_size)
    return records


def bytes_of(path: Path, first: int, length: int) -> Tensor:
    """Return bytes of a file, (length,); raises BundleError if it has fewer."""
    found = torch.empty(length, dtype=torch.uint8)
    with open(path, "rb") as file:
        file.seek(first)
        if file.readinto(found.numpy().data) != length:
            raise BundleError(f"{path} ends before its last tensor; copy it again.")
    return found


class _Inert:
    """Placeholder for an object that is not unpickled; accepts and ignores everything."""

    def __new__(cls, *_: object, **__: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None: ...

    def __call__(self, *_: object, **__: object) -> "_Inert":
        return self

    def _take(self, *_: object) -> None: ...

    __setitem__ = append = extend = add = _take


class _Unpickler(pickle._Unpickler):
    """Unpickles a checkpoint: lazy tensors, and an inert placeholder for every other object.

    Training frameworks pickle their own objects (callbacks, configs) beside the weights. They are
    not needed, and no foreign code may run to build them: :meth:`find_class` resolves only the few
    names that tensors need.

    The C unpickler allocates a memo as large as a number in the file says. The Python unpickler
    keeps the memo in a dict.
    """

    dispatch: ClassVar[dict[int, Callable[[pickle.Unpickler], None]]] = {
        **pickle._Unpickler.dispatch,
        # An object's state is ignored: placeholders have none, and it could move a lazy tensor.
        pickle.BUILD[0]: lambda unpickler: unpickler.stack.pop(),  # type: ignore[attr-defined]
    }

    def __init__(self, path: Path) -> None:
        self._path, self._records, self._repeated = path, _records(path), 0
        structure = bytes_of(path, *self._records["data.pkl"])
        super().__init__(io.BytesIO(structure.numpy().tobytes()))

    def find_class(self, module: str, name: str) -> Any:
        known = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            **{f"torch.{kind}Storage": dtype for kind, dtype in _STORAGES.items()},
        }
        return known.get(f"{module}.{name}") or type(name, (_Inert,), {})

    def persistent_load(self, pid: Any) -> tuple[Any, int, int]:
        """Return a storage: dtype, first byte and length."""
        _, dtype, key, *_ = pid
        return dtype, *self._records[f"data/{key}"]

    def _tensor(self, storage: tuple[Any, int, int], start: int, shape: tuple[int, ...],
                stride: tuple[int, ...], *_: object) -> LazyTensor | _Inert:  # fmt: skip
        dtype, first, length = storage
        if not isinstance(dtype, torch.dtype):
            return _Inert()
        if not all(isinstance(n, int) and n >= 0 for n in (start, *shape, *stride)):
            raise ValueError("a tensor's offset, shape or stride is not a whole number from 0 on")
        # Only the bytes from the first element to the last: the storage may be far larger.
        last = sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        extent = 0 if 0 in shape else (last + 1) * dtype.itemsize
        first += start * dtype.itemsize
        if start * dtype.itemsize + extent > length:
            raise ValueError("a tensor reaches beyond its storage")
        if (n_bytes := math.prod(shape) * dtype.itemsize) > extent:
            self._repeated += n_bytes
            if self._repeated > _MOST_REPEATED:
                raise ValueError(_REPEATED)
        return LazyTensor(
            tuple(shape),
            dtype,
            lambda: bytes_of(self._path, first, extent).view(dtype).as_strided(shape, stride),
        )


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def write_safetensors(path: Path, tensors: Tensors, description: str = "Writing") -> None:
    """Write one ``.safetensors`` file, tensor by tensor."""
    write_shards(path.parent, {path.name: tensors}, description)


def write_shards(folder: Path, files: Mapping[str, Tensors], description: str) -> None:
    """Write several ``.safetensors`` files under one progress bar."""
    with bar(description, sum(map(len, files.values())), "tensors") as advance:
        for name, tensors in files.items():
            header = _safetensors_header(tensors)
            with open(folder / name, "wb") as file:
                n_bytes = len(header) + sum(tensor.n_bytes for tensor in tensors.values())
                reserve(file.fileno(), n_bytes)
                file.write(header)
                for values in _ahead(tensors):
                    file.write(values)
                    advance()


def _ahead(tensors: Tensors) -> Iterator[memoryview]:
    """Yield the bytes of tensors; the next one is read and computed while one is written."""

    @torch.no_grad()  # which is of a thread
    def values_of(key: str, tensor: LazyTensor) -> memoryview:
        return _bytes(_finite(key, tensor))

    with ThreadPoolExecutor(1) as thread:
        before: Future[memoryview] | None = None
        for key, tensor in tensors.items():
            next_one = thread.submit(values_of, key, tensor)
            if before is not None:
                yield before.result()
            before = next_one
        if before is not None:
            yield before.result()


def shards_of(tensors: Tensors, shard_bytes: int = SHARD_BYTES) -> dict[str, dict[str, LazyTensor]]:
    """Divide tensors among files of at most ``shard_bytes``, with Hugging Face's file names.

    A single file is ``model.safetensors``; the names of several have their number and the total.
    """
    groups: list[dict[str, LazyTensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.n_bytes > shard_bytes:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.n_bytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    n = len(groups)
    return {f"model-{i:05}-of-{n:05}.safetensors": group for i, group in enumerate(groups, 1)}


def shard_index(files: Mapping[str, Tensors]) -> dict[str, Any]:
    """Return the content of ``model.safetensors.index.json``."""
    total = sum(t.n_bytes for tensors in files.values() for t in tensors.values())
    places = {name: file for file, tensors in files.items() for name in tensors}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}


def write_checkpoints(
    files: Mapping[Path, Tensors], description: str, under: str | None = None
) -> None:
    """Write PyTorch checkpoints with the same tensor names together, one name after the other.

    So a tensor that is split among the files is read once.

    Args:
        under: key of the checkpoint that holds the tensors (default: the top level).
    """
    with (
        bar(description, sum(map(len, files.values())), "tensors") as advance,
        ExitStack() as stack,
    ):
        places = {path: _lay_out(path, tensors, under) for path, tensors in files.items()}
        opened = {path: stack.enter_context(open(path, "r+b")) for path in files}
        checksums: dict[Path, list[int]] = {path: [] for path in files}
        for i, name in enumerate(next(iter(files.values()))):
            for path, tensors in files.items():
                values = _bytes(_finite(name, tensors[name]))
                opened[path].seek(places[path][i])
                opened[path].write(values)
                checksums[path].append(zlib.crc32(values))
                advance()
    for path in files:
        _note_checksums(path, checksums[path])


def _lay_out(path: Path, tensors: Tensors, under: str | None) -> list[int]:
    """Write a checkpoint without values; return the first byte of each tensor in the file."""
    empty = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in tensors.items()}
    with skip_data():
        torch.save(empty if under is None else {under: empty}, path)
    records = _records(path)
    return [records[f"data/{i}"][0] for i in range(len(tensors))]


def _note_checksums(path: Path, checksums: Sequence[int]) -> None:
    """Write the checksums of the values to an archive's directory; PyTorch could not know them."""
    with zipfile.ZipFile(path, "a") as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        for i, checksum in enumerate(checksums):
            entries[f"data/{i}"].CRC = checksum
        archive.comment = b""  # marks the directory as changed, so that it is written


def _safetensors_header(tensors: Tensors) -> bytes:
    """Return length and JSON of the header; ``format`` is what transformers looks for."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.n_bytes
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _finite(name: str, tensor: LazyTensor) -> LazyTensor:
    """Return a tensor whose values are checked when they are read."""

    def read() -> Tensor:
        values = tensor.read()
        check_finite("The source", [(name, values)])
        return values

    return LazyTensor(tensor.shape, tensor.dtype, read)


def _bytes(tensor: LazyTensor) -> memoryview:
    values = tensor.read().contiguous()
    # Otherwise the offsets in the file's header would be wrong.
    assert (tuple(values.shape), values.dtype) == (tensor.shape, tensor.dtype)
    return values.reshape(-1).view(torch.uint8).numpy().data
