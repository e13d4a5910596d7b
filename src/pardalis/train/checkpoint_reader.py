"""Reading the files of a checkpoint, which others may have written, without running their code.

PyTorch's reader unpickles the file ``.metadata`` and every entry that is no tensor. A pickle can
name any function and call it. Here an unpickler knows only the classes of that metadata, entries
are read with ``weights_only``, and what the metadata claims is compared with the files before
anything is allocated.
"""

import io
import math
import pickle
import stat
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any, ClassVar

import torch

from pardalis.files import is_bare_name, read_bytes
from pardalis.weights import check_archive

# torch.distributed.checkpoint is imported where it is used: it takes 0.6 s on top of torch.

METADATA = ".metadata"
# Turns off flattening, which turns integer keys of an optimizer's state into strings and drops
# empty dicts.
NO_FLATTENING = {"flatten_state_dict": False, "flatten_sharded_tensors": False}


def read_metadata(folder: Path) -> Any:
    """Return PyTorch's ``Metadata`` of a checkpoint.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it holds anything else, or does not fit the files beside it.
    """
    try:
        metadata = _MetadataUnpickler(io.BytesIO(read_bytes(folder / METADATA))).load()
        _check(folder, metadata)
    except OSError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # a broken pickle may raise anything
        raise ValueError(f"{METADATA} cannot be read: {error}") from error
    return metadata


def read_entries(folder: Path, content: dict[str, Any], safe: type[Any]) -> None:
    """Read the entries of the keys of ``content``: tensors in place, others as values.

    Args:
        safe: the one class that values may contain beside plain ones.

    Raises:
        Exception: whatever PyTorch raises for files that are damaged.
    """
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.planner import ReadItem

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **options: Any) -> Any:
            return read_metadata(folder)

        def read_data(self, plan: Any, planner: Any) -> Any:
            for item in plan.items:  # each is an archive in a file of many
                place = self.storage_data[item.storage_index]
                check_archive(folder / place.relative_path, place.offset, place.length)
            return super().read_data(plan, planner)

    class Planner(DefaultLoadPlanner):
        def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
            with torch.serialization.safe_globals([safe]):
                entry = torch.load(value, weights_only=True)
            self.state_dict[read_item.dest_index.fqn] = entry

    state_dict_loader.load(
        content,
        storage_reader=Reader(folder),
        planner=Planner(**NO_FLATTENING),
        no_dist=True,  # each rank reads its own part
    )


def _load_build(unpickler: Any) -> None:
    # It would set attributes of a class, a function or an enum's member, for all that follows.
    if type(unpickler.stack[-2]).__name__ not in (*_CLASSES, "_StorageInfo"):
        raise pickle.UnpicklingError("it changes an object that is not of the metadata")
    pickle._Unpickler.load_build(unpickler)  # type: ignore[attr-defined]


class _MetadataUnpickler(pickle._Unpickler):
    """Unpickles what PyTorch writes as a checkpoint's metadata, and refuses anything else.

    The C unpickler allocates a memo as large as a number in the file says. The Python unpickler
    keeps the memo in a dict.
    """

    dispatch: ClassVar[dict[int, Callable[[pickle.Unpickler], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: _load_build,
    }

    def find_class(self, module: str, name: str) -> Any:
        from torch.distributed.checkpoint import filesystem, metadata

        known = {
            "torch.Size": torch.Size,
            "torch.serialization._get_layout": torch.serialization._get_layout,
            "pathlib.PosixPath": PosixPath,
            "torch.distributed.checkpoint.filesystem._StorageInfo": filesystem._StorageInfo,
            **{f"torch.distributed.checkpoint.metadata.{each}": getattr(metadata, each)
               for each in (*_CLASSES, "_MEM_FORMAT_ENCODING")},
        }  # fmt: skip
        found = known.get(f"{module}.{name}")
        if found is None and module == "torch" and "." not in name:
            found = getattr(torch, name, None)
            found = found if isinstance(found, torch.dtype) else None
        if found is None:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return found


_CLASSES = (
    "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
    "TensorProperties", "TensorStorageMetadata",
)  # fmt: skip


def _check(folder: Path, metadata: Any) -> None:
    """Raise ValueError unless every entry lies in a file of the folder that is large enough."""
    from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

    if not isinstance(metadata, Metadata):
        raise ValueError("it holds no metadata")
    sizes: dict[str, int] = {}
    stored = 0
    for place in metadata.storage_data.values():
        name = place.relative_path
        if not is_bare_name(name):
            raise ValueError(f"it names the file {name!r}, which is not in the folder")
        if name not in sizes:
            status = (folder / name).stat()
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{name} is not a regular file")
            sizes[name] = status.st_size
        if place.offset < 0 or place.length < 0 or place.offset + place.length > sizes[name]:
            raise ValueError(f"{name} is shorter than it says")
        if place.transform_descriptors:
            raise ValueError(f"{name} is compressed")
        stored += place.length
    claimed = 0
    for key, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            if not all(size >= 0 for size in entry.size):
                raise ValueError(f"{key} has a negative size")
            claimed += math.prod(entry.size) * entry.properties.dtype.itemsize
    if claimed > stored:
        raise ValueError(f"it describes {claimed} bytes of tensors, and the files hold {stored}")
