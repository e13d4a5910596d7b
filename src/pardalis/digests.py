"""Hashes of the content of files, and a memory of them that spares reading unchanged files.

What a result was made from is identified by content alone: a copy, a fresh clone and a file whose
times have changed are the same. The memory decides only whether a file is read again. It is a JSON
file; one that is damaged, missing or of another machine costs a reading and changes no result.
"""

import hashlib
import logging
import os
import re
import stat
import time
from pathlib import Path
from typing import Any

from pardalis.files import read_json, write_json

logger = logging.getLogger(__name__)

_LARGE = 2**30  # bytes of a file whose reading is announced
_REPORT_EVERY_S = 10.0
_DIGEST = re.compile(r"[0-9a-f]{64}")
# A file that changed this recently may change once more without another time: file systems count
# in steps of up to 2 seconds. Its hash is not remembered.
_SETTLED_NS = 2_000_000_000


def file_digest(path: Path) -> str:
    """Return the SHA-256 of the content of a file.

    Raises:
        OSError: the file cannot be read, or it is not a regular file.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path} is not a regular file")
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a named pipe would wait for a writer


class Digests:
    """Hashes of files, each computed once while the file does not change.

    A file counts as unchanged while its path, inode, size, modification time and change time are
    the same. The change time is set by the system, so that a file with restored times is noticed.

    Args:
        memory: JSON file that keeps the hashes between processes; None: they are not kept.
    """

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._known: dict[str, list[Any]] = _read(memory) if memory is not None else {}
        self._used: dict[str, list[Any]] = {}
        self._news: dict[str, list[Any]] = {}
        self._n_read, self._bytes_read, self._reported = 0, 0, time.monotonic()

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as the memory, which is read there."""
        return Digests, (self._memory and self._memory.absolute(),)

    def news(self) -> dict[str, list[Any]]:
        """Return what was read since the memory was, or since the last call, to add elsewhere."""
        found, self._news = self._news, {}
        return found

    def add(self, news: dict[str, list[Any]]) -> None:
        """Take what another process has read."""
        self._used |= news
        self._news |= news

    def of(self, path: Path) -> str:
        """Return the SHA-256 of a file's content; raises OSError as :func:`file_digest` does."""
        name, status = os.path.abspath(path), path.stat()
        facts = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        for known in (self._used.get(name), self._known.get(name)):
            if known is not None and known[:-1] == facts:
                self._used[name] = known
                return str(known[-1])
        if status.st_size >= _LARGE:
            logger.info("Reading %s once, %.1f GiB.", path, status.st_size / 2**30)
        digest = file_digest(path)
        self._report(status.st_size)
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS:
            self._used[name] = self._news[name] = [*facts, digest]
        return digest

    def _report(self, size: int) -> None:
        self._n_read, self._bytes_read = self._n_read + 1, self._bytes_read + size
        if (now := time.monotonic()) - self._reported > _REPORT_EVERY_S:
            self._reported = now
            logger.info(
                "Read %d files once, %.1f GiB, to notice changes in them.",
                self._n_read,
                self._bytes_read / 2**30,
            )

    def save(self) -> None:
        """Write the hashes to the memory, if there are new ones; without it nothing is lost."""
        if self._memory is None or not self._news:
            return
        self._known |= _read(self._memory) | self._used  # other processes may have added theirs
        self._news = {}
        try:
            write_json(self._memory, self._known)
        except OSError as error:
            logger.warning("%s is not written (%s), so files are read again.", self._memory, error)


def _read(memory: Path) -> dict[str, list[Any]]:
    """Return the entries of a memory that have the form of entries."""
    try:
        if not memory.is_file():
            return {}
        found = read_json(memory)
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: entry for name, entry in found.items() if _is_entry(entry)}


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 5
        and all(type(number) is int for number in entry[:4])
        and isinstance(entry[4], str)
        and _DIGEST.fullmatch(entry[4]) is not None
    )
