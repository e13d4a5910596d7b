"""Blocks: what of a source is encoded so far, in files that any of many processes may have made.

A source is divided into blocks of as many documents in succession. A block is encoded by one
process, from nothing but its documents, and the shards are joined from all blocks in order. So they
are the same whichever processes made the blocks, on how many machines and in which order.

    blocks.json                      what decides the blocks
    part-00001-of-00004/             a part: what one process at a time makes
        block-00000000.safetensors   ids, weights and lengths of documents, their names, the counts

Files appear whole or not at all, so what exists is finished, and an interrupted part goes on where
it was.
"""

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pardalis.config import fingerprint, shown
from pardalis.data.report import PrepareReport
from pardalis.data.shards import WEIGHT
from pardalis.errors import BusyError, ConfigError, DataError
from pardalis.files import (
    LOCK,
    exclusive,
    is_own_file,
    output_folder,
    parse_json,
    plain,
    read_json,
    remove,
    write_bytes,
    write_once,
)
from pardalis.tokens import Encoded

FORMAT = "pardalis-blocks"
VERSION = 1
SETTINGS = "blocks.json"
_MOST_PARTS = 99_999
_PART = re.compile(r"part-(\d{5})-of-(\d{5})")
_BLOCK = re.compile(r"block-(\d{8})\.safetensors")


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a preparation that one of ``of`` processes makes, numbered from 1."""

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of <= _MOST_PARTS:
            raise ConfigError(
                f"part must be a number from 1 to the number of parts, which is at most "
                f"{_MOST_PARTS}; got {self}."
            )

    def __str__(self) -> str:
        return f"{self.number} of {self.of}"

    @property
    def folder(self) -> str:
        return f"part-{self.number:05d}-of-{self.of:05d}"

    def among(self, n: int) -> range:
        """Return which of n blocks belong to the part; those of all parts follow each other."""
        return range((self.number - 1) * n // self.of, self.number * n // self.of)


WHOLE_SHARE = Share()


class DamagedBlockError(DataError):
    """The file of a block cannot be used; ``path`` is to be deleted and made anew."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be used ({reason}); delete it and prepare its part again.")
        self.path = path


# ── a block ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Block:
    """What the shards get of some documents, with the counts of all that were read."""

    report: PrepareReport
    names: list[str] = field(default_factory=list)
    documents: list[Encoded] = field(default_factory=list)

    def to_bytes(self, dtype: np.dtype, made_from: str, number: int) -> bytes:
        """Return the content of a file.

        Args:
            dtype: of token ids on disk.
            made_from: fingerprint of everything that decides the block.
            number: which block of the source it is.
        """
        about = {
            "made_from": made_from,
            "number": number,
            "names": self.names,
            "report": self.report.to_dict(),
        }
        content: dict[str, np.ndarray] = {
            # In ASCII, since the name of a file may be invalid Unicode.
            "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
            "lengths": np.array([len(each) for each in self.documents], np.int64),
            "ids": _joined([each.ids for each in self.documents], dtype),
        }
        weights = _joined([each.weights for each in self.documents], WEIGHT)
        if (weights != 1).any():
            content["weights"] = weights
        return save(content)

    @classmethod
    def read(cls, path: Path, dtype: np.dtype, made_from: str, number: int) -> "Block":
        """Read what :meth:`to_bytes` returned, given the same arguments.

        Raises:
            DamagedBlockError: the file is damaged, or it is another block, or of other settings.
        """
        try:
            if not is_own_file(path):
                raise ValueError("it is not a regular file")
            with safe_open(path, "numpy") as file:
                content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = parse_json(content["about"].tobytes())
            if (about["made_from"], about["number"]) != (made_from, number):
                raise ValueError("it is another block, or it was made from something else")
            documents = _documents(content, dtype)
            names = about["names"]
            if len(names) != len(documents) or not all(isinstance(name, str) for name in names):
                raise ValueError("its names do not fit its documents")
            return cls(PrepareReport.from_dict(about["report"]), names, documents)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise DamagedBlockError(path, str(error)) from error


def _joined(parts: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *(part.astype(dtype) for part in parts)])


def _documents(content: Mapping[str, np.ndarray], dtype: np.dtype) -> list[Encoded]:
    """Return the documents of a file; raises ValueError or KeyError."""
    ids, lengths, weights = content["ids"], content["lengths"], content.get("weights")
    if ids.dtype != dtype or ids.ndim != 1 or lengths.dtype != np.int64 or lengths.ndim != 1:
        raise ValueError("its arrays are of another type")
    if weights is not None and (weights.dtype != WEIGHT or weights.shape != ids.shape):
        raise ValueError("its weights do not fit its ids")
    if (lengths < 0).any() or (lengths > len(ids)).any() or lengths.sum() != len(ids):
        raise ValueError("its lengths do not fit its ids")
    ends = np.cumsum(lengths)
    places = zip((ends - lengths).tolist(), ends.tolist(), strict=True)
    return [
        Encoded.of(ids[start:end])
        if weights is None
        else Encoded(ids[start:end], weights[start:end])
        for start, end in places
    ]


# ── a folder of blocks ───────────────────────────────────────────────────────────────────────────


class Blocks:
    """The folder of a source's blocks.

    Args:
        folder: is made when it is needed, and may have what an earlier process has left.
        settings: plain values that decide what is in the blocks, by name.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, plain(dict(settings))
        self.made_from = fingerprint(self.settings)

    @contextmanager
    def held(self, share: Share | None = None) -> Iterator[None]:
        """Keep other processes away: from all blocks, or from those of a share.

        Raises:
            BusyError: another process makes the same part, or joins the parts.
            ConfigError: something else has the name of the folder.
        """
        for folder in (self.folder, *([self.folder / share.folder] if share else [])):
            if folder.is_symlink():
                raise ConfigError(
                    f"{folder} is a link, where a folder of blocks is made; delete it."
                )
            output_folder(folder)
        try:
            with exclusive(self.folder, shared=share is not None):
                if share is None:
                    yield
                    return
                with exclusive(self.folder / share.folder):
                    yield
        except BusyError as error:
            part = "" if share is None else f"part {share} of "
            raise BusyError(
                f"Another process works on {part}what is prepared in {self.folder}; wait for it."
            ) from error

    def settle(self, *, replace: bool) -> None:
        """Write the settings, or compare them with those that are there.

        Args:
            replace: delete blocks of other settings; else they are an error.

        Raises:
            ConfigError: another process began with other settings or documents.
        """
        text = {"format": FORMAT, "version": VERSION, "settings": self.settings}
        if write_once(self.folder / SETTINGS, json.dumps(text, indent=2) + "\n"):
            return
        found = _settings_in(self.folder)
        if found == self.settings:
            return
        if not replace:
            names = {*found, *self.settings}
            other = min(name for name in names if found.get(name) != self.settings.get(name))
            raise ConfigError(
                f"The blocks in {self.folder} were begun with {other} = {shown(found.get(other))}, "
                f"and now it is {shown(self.settings.get(other))}; every part needs the same "
                "recipe, documents and tokenizers. Correct that, or delete the folder to begin "
                "anew."
            )
        for path in self.folder.iterdir():
            if path.name != LOCK:
                remove(path)
        self.settle(replace=False)

    def found(self) -> dict[int, Path]:
        """Return the files of the blocks that exist, by number.

        Raises:
            ConfigError: a part or a block is a link or no file, and leads to another place maybe.
        """
        blocks = {}
        for folder in self._parts():
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                if match := _BLOCK.fullmatch(entry.name):
                    if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
                        raise ConfigError(f"{entry.path} is not a regular file; delete it.")
                    blocks[int(match[1])] = Path(entry.path)
        return blocks

    def _parts(self) -> Iterator[Path]:
        if not self.folder.is_dir():
            return
        for entry in sorted(os.scandir(self.folder), key=lambda entry: entry.name):
            if _PART.fullmatch(entry.name):
                if not entry.is_dir(follow_symlinks=False):
                    raise ConfigError(
                        f"{entry.path} is no folder of blocks, but a link or a file; delete it."
                    )
                yield Path(entry.path)

    def n_parts(self) -> int:
        """Return into how many parts the blocks are divided; 1 if they were not."""
        found = (_PART.fullmatch(path.name) for path in self._parts())
        return max((int(match[2]) for match in found if match), default=1)

    def write(self, share: Share, number: int, content: bytes) -> None:
        write_bytes(self.folder / share.folder / f"block-{number:08d}.safetensors", content)

    def remove(self) -> None:
        """Delete the folder, while it is held."""
        remove(self.folder)

    def remove_if_empty(self) -> None:
        """Delete the folder, while it is held, if it has no block."""
        with suppress(OSError, ConfigError):
            if not self.found():
                self.remove()


def _settings_in(folder: Path) -> dict[str, Any]:
    """Return what ``blocks.json`` says; nothing if it is not of this version."""
    try:
        found = read_json(folder / SETTINGS)
        if (found["format"], found["version"]) == (FORMAT, VERSION):
            return dict(found["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {}
