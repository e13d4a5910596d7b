"""Files as they are inside, whatever compressed them: gzip, bzip2, xz, Zstandard, or zip.

The first bytes tell what did, and not the name. A small file may unpack to any size, so what comes
out is compared with what went in, all the time.
"""

import bz2
import gzip
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from pardalis.files import MOST_BYTES, read_bytes, require_file
from pardalis.imports import optional_package

PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")  # endings that are added to those of the content

_MOST_RATIO = 200  # of the size of a text to that of its compressed file
_MOST_UNPACKED = 8 << 20  # bytes beside it
_MOST_BLANK = 4 << 20  # bytes of white space in a row
_BLOCK = 1 << 16

_STARTS = {
    b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz", b"\x28\xb5\x2f\xfd": ".zst",
    b"PK\3\4": ".zip", b"PK\5\6": ".zip",
}  # fmt: skip
_LONGEST = max(map(len, _STARTS))
_ERRORS = (
    EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError,
)  # fmt: skip


def packed_as(path: Path) -> str:
    """Return the ending of what compressed a file; "" if nothing did.

    Raises:
        OSError: there is no such file, or it is not a regular file.
    """
    require_file(path)
    with open(path, "rb") as file:
        beginning = file.read(_LONGEST)
    found = (kind for start, kind in _STARTS.items() if beginning.startswith(start))
    suffix = path.suffix.lower()
    return next(found, suffix if suffix in PACKED and beginning else "")


def read_packed(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a file, which may be compressed; raises as :func:`opened`."""
    if not packed_as(path):
        return read_bytes(path, most)
    with opened(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(f"it unpacks to more than {most >> 20} MiB")
    return content


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Yield the content of a file, to be read in order.

    Raises:
        OSError: there is no such file, it is not a regular file, it is truncated, or it unpacks to
            far more than texts do.
        ConfigError: the package that unpacks it is not installed.
    """
    kind = packed_as(path)
    with open(path, "rb") as file:
        if not kind:
            yield file
            return
        try:
            with _unpacker(kind, file) as unpacked:
                yield io.BufferedReader(_Bounded(unpacked, file), _BLOCK)
        except _ERRORS as error:
            raise OSError(f"it is truncated or damaged: {error}") from error


@contextmanager
def _unpacker(kind: str, file: io.BufferedReader) -> Iterator[Any]:
    if kind == ".zip":
        with zipfile.ZipFile(file) as archive, _only_member(archive) as member:
            yield member
    elif kind == ".zst":
        with optional_package("Reading files that Zstandard compressed", "parquet"):
            import pyarrow
        with pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd") as stream:
            yield stream
    else:
        opener: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[kind]
        with opener(file) as stream:
            yield stream


def _only_member(archive: zipfile.ZipFile) -> io.BufferedIOBase:
    found = [each for each in archive.infolist() if _is_content(each.filename)]
    if len(found) != 1:
        raise OSError(f"it holds {len(found)} files, and one is expected in an archive")
    if found[0].flag_bits & 1:
        raise OSError("it is encrypted")
    return cast(io.BufferedIOBase, archive.open(found[0]))


def _is_content(name: str) -> bool:
    parts = name.split("/")
    return parts[-1] != "" and "__MACOSX" not in parts and not parts[-1].startswith(".")


class _Bounded(io.RawIOBase):
    """What comes out of a compressed file, as long as it is in proportion to what goes in."""

    def __init__(self, unpacked: Any, file: io.BufferedReader) -> None:
        self._unpacked, self._file = unpacked, file
        self._size = os.fstat(file.fileno()).st_size
        self._n_read = self._n_blank = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._unpacked.read(len(buffer))
        self._n_read += len(content)
        self._n_blank = 0 if content.strip() else self._n_blank + len(content)
        n_packed = min(self._file.tell(), self._size)
        if self._n_read > _MOST_UNPACKED + _MOST_RATIO * n_packed:
            raise OSError(f"it unpacks to more than {_MOST_RATIO} times its size")
        if self._n_blank > _MOST_BLANK:
            raise OSError(
                f"it unpacks to more than {_MOST_BLANK >> 20} MiB of white space in a row"
            )
        buffer[: len(content)] = content
        return len(content)
