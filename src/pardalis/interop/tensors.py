"""Tensors in files, read when they are needed: what lets a large model pass through a small memory.

A state dict here is a mapping from names to :class:`LazyTensor`, which knows shape and dtype from
a file's header and reads its values when asked. A conversion renames and transforms such a mapping
without reading anything, a check compares shapes before anything is written, and a writer then
reads one tensor at a time. No file stays mapped, so what was read leaves memory with its tensor.
"""

import json
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals, skip_data

from pardalis.errors import BundleError
from pardalis.progress import bar

SHARD_BYTES = 5_000_000_000  # of a sharded safetensors model; what others write

# The names of the safetensors format, both ways.
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor whose values are not read yet."""

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
        """Return what a function makes of it, of a shape that is known beforehand."""
        return LazyTensor(tuple(shape), self.dtype, lambda: function(self.read()))

    def to(self, dtype: torch.dtype | None) -> "LazyTensor":
        """Return it in another dtype; None leaves it as it is."""
        if dtype is None or dtype == self.dtype:
            return self
        return LazyTensor(self.shape, dtype, lambda: self.read().to(dtype))

    def split(self, n: int, dim: int) -> list["LazyTensor"]:
        """Cut into n equal parts; the whole is read once when all are read one after the other."""
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
    """Wrap a tensor that is in memory."""
    return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def join(parts: Sequence[LazyTensor], dim: int) -> LazyTensor:
    """Concatenate along a dimension."""
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return LazyTensor(
        tuple(shape), parts[0].dtype, lambda: torch.cat([part.read() for part in parts], dim)
    )


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def open_tensors(path: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a ``.safetensors`` file or of a PyTorch checkpoint.

    Of a checkpoint that holds more than tensors, the ``state_dict`` (or ``model``) is taken.

    Raises:
        BundleError: the file is missing, truncated, or of neither kind.
    """
    if not path.is_file():
        raise BundleError(f"{path} is missing; copy the whole folder again.")
    try:
        if path.suffix == ".safetensors":
            return _open_safetensors(path)
        return _open_checkpoint(path)
    except (SafetensorError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile,
            pickle.UnpicklingError) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BundleError(
            f"{path} cannot be read ({reason}): it is truncated or not a file of weights; copy it "
            "again."
        ) from error


def _open_safetensors(path: Path) -> dict[str, LazyTensor]:
    def read(name: str) -> Tensor:
        # Opened anew each time: the pages of a tensor leave memory with it.
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    with safe_open(path, framework="pt") as file:
        headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: LazyTensor(
                tuple(header.get_shape()),
                _DTYPES[header.get_dtype()],
                lambda name=name: read(name),
            )
            for name, header in headers.items()
        }


def _open_checkpoint(path: Path) -> dict[str, LazyTensor]:
    """Read a checkpoint's structure without its values, which are read from their places later."""
    if not zipfile.is_zipfile(path):
        return _old_checkpoint(path)
    with safe_globals(_placeholders(path)), FakeTensorMode():
        content = torch.load(path, map_location="cpu", weights_only=True)
    return {
        name: LazyTensor(tuple(t.shape), t.dtype, lambda t=t: _read_from(path, t))
        for name, t in _state_dict(content).items()
    }


def _old_checkpoint(path: Path) -> dict[str, LazyTensor]:
    """Read a checkpoint of PyTorch before 1.6, which is one pickle and must be read whole."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    return {name: lazy(tensor) for name, tensor in _state_dict(content).items()}


def _placeholders(path: Path) -> list[Any]:
    """Return inert classes under the names of those that a checkpoint holds besides tensors.

    Training frameworks pickle their own objects (callbacks, configs) beside the weights. They are
    not wanted, and no foreign code may run to build them.
    """
    names = get_unsafe_globals_in_checkpoint(path)
    return [(type(name.rpartition(".")[2], (_Inert,), {}), name) for name in names]


class _Inert:
    """Stands for an object that is not built; takes whatever its pickle hands it."""

    def __new__(cls, *_: object, **__: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def _state_dict(content: Any) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise ValueError("it holds no tensors by name")
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"{others[0]!r} in it is not a tensor")
    return content


def _offset(fake: Tensor) -> int:
    """Return where in its checkpoint the storage of a tensor loaded without values begins."""
    offset = fake.untyped_storage()._checkpoint_offset
    assert offset is not None, "PyTorch notes the offset of every storage it loads without values"
    return offset


def _read_from(path: Path, like: Tensor) -> Tensor:
    """Read the values of a tensor whose place in the file is known from its storage."""
    storage = like.untyped_storage()
    whole = torch.empty(storage.nbytes(), dtype=torch.uint8)
    with open(path, "rb") as file:
        file.seek(_offset(like))
        if file.readinto(whole.numpy().data) != storage.nbytes():
            raise BundleError(f"{path} ends before its last tensor; copy it again.")
    values = whole.view(like.dtype)
    return values.as_strided(like.shape, like.stride(), like.storage_offset())


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def write_safetensors(path: Path, tensors: Tensors, description: str = "Writing") -> None:
    """Write one ``.safetensors`` file, tensor by tensor."""
    write_shards(path.parent, {path.name: tensors}, description)


def write_shards(folder: Path, files: Mapping[str, Tensors], description: str) -> None:
    """Write several ``.safetensors`` files under one progress bar."""
    with bar(description, sum(map(len, files.values())), "tensors") as advance:
        for name, tensors in files.items():
            with open(folder / name, "wb") as file:
                file.write(_safetensors_header(tensors))
                for tensor in tensors.values():
                    file.write(_bytes(tensor))
                    advance()


def shards_of(tensors: Tensors, shard_bytes: int = SHARD_BYTES) -> dict[str, dict[str, LazyTensor]]:
    """Divide tensors among files of at most so many bytes, as Hugging Face names them.

    One file is ``model.safetensors``; of several each says its number and how many there are.
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
    """Write PyTorch checkpoints of the same names in each, all at once: one name after the other.

    So a tensor that is divided among the files is read once.

    Args:
        under: the key of the checkpoint that holds the tensors; at the top when left out.
    """
    with (
        bar(description, sum(map(len, files.values())), "tensors") as advance,
        ExitStack() as stack,
    ):
        places = {path: _lay_out(path, tensors, under) for path, tensors in files.items()}
        opened = {path: stack.enter_context(open(path, "r+b")) for path in files}
        for name in next(iter(files.values())):
            for path, tensors in files.items():
                opened[path].seek(places[path][name])
                opened[path].write(_bytes(tensors[name]))
                advance()


def _lay_out(path: Path, tensors: Tensors, under: str | None) -> dict[str, int]:
    """Write a checkpoint without values; return where in the file those of each tensor go."""
    empty = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in tensors.items()}
    with skip_data():
        torch.save(empty if under is None else {under: empty}, path)
    with FakeTensorMode():
        laid = _state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return {name: _offset(tensor) for name, tensor in laid.items()}


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


def _bytes(tensor: LazyTensor) -> memoryview:
    values = tensor.read().contiguous()
    return values.reshape(-1).view(torch.uint8).numpy().data
