"""Shards: encoded documents on disk, in plain files that other tools can open.

    index.json                 format version, dtype, codec fingerprint, the files and their sizes;
                               the source and its licence, and what documents of each licence hold
    ids-00000.npy ...          token ids of the documents, concatenated (uint16 where they fit)
    weights-00000.npy ...      weight of each of these ids as a target (float16); left out where all
                               are 1
    documents.npy              int64 [documents, 3]: shard, start in it, length
    names.jsonl                the name of each document, one JSON string a line
    rows-<T>-offsets.npy       the packing into rows of T tokens: row r holds the documents
    rows-<T>-members.npy       members[offsets[r]:offsets[r + 1]]

Shards of pairs hold two documents in the place of a row, each of which has at most T tokens: row r
has the documents 2r and 2r + 1, chosen and rejected.

All arrays are memory-mapped. A folder is written atomically, in
:func:`pardalis.files.atomic_folder`.
"""

import copy
import json
from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from pardalis.config import shown
from pardalis.data.arrays import ArrayFile, open_array
from pardalis.data.packing import Packing, best_fit, two_by_two
from pardalis.errors import DataError
from pardalis.files import (
    is_bare_name,
    parse_json,
    read_json,
    read_lines,
    write_json,
)
from pardalis.tokens import Encoded

FORMAT = "pardalis-shards"
VERSION = 2  # 1: without weights and pairs; shards that have neither are still written as such
INDEX = "index.json"
_INT64 = np.dtype(np.int64)
WEIGHT = np.dtype(np.float16)
_DOCUMENTS = "documents.npy"
_NAMES = "names.jsonl"
_WAITING_TOKENS = 1 << 20  # that wait in memory for being written


def ids_dtype(vocab_size: int) -> np.dtype:
    """Return the type of token ids on disk."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


class ShardWriter:
    """Writes documents to a folder one by one; :meth:`finish` writes the packing and the index.

    Of the token ids only the last few are in memory, whatever the size of a shard; of each document
    its name is written at once, and 24 bytes are kept for the packing.

    Args:
        folder: exists and is empty.
        vocab_size: decides the width of an id on disk.
        tokens_per_shard: a file is closed when it has at least this many tokens.
    """

    def __init__(self, folder: Path, vocab_size: int, tokens_per_shard: int) -> None:
        self._folder = folder
        self._tokens_per_shard = tokens_per_shard
        self._dtype = ids_dtype(vocab_size)
        self._waiting: list[Encoded] = []  # documents that are in no file yet
        self._waiting_tokens = 0
        self._open: _OpenShard | None = None
        self._shards: list[dict[str, Any]] = []
        self._documents = array("q")
        self._names: list[str] = []  # that are in no file yet

    def add(self, name: str, document: Encoded) -> None:
        """Append a document; raises OSError if the disk is full."""
        shard = self._open or _OpenShard(self._folder, len(self._shards), self._dtype)
        self._open = shard
        self._documents.extend((shard.number, shard.tokens + self._waiting_tokens, len(document)))
        self._names.append(json.dumps(name) + "\n")
        weights = document.weights.astype(WEIGHT)
        self._waiting.append(Encoded(document.ids.astype(self._dtype), weights))
        self._waiting_tokens += len(document)
        is_full = shard.tokens + self._waiting_tokens >= self._tokens_per_shard
        if is_full or self._waiting_tokens >= _WAITING_TOKENS:
            self._write_waiting(shard)
        if is_full:
            self._shards.append(shard.closed())
            self._open = None

    def _write_waiting(self, shard: "_OpenShard") -> None:
        if self._waiting:
            shard.write(Encoded.joined(*self._waiting))
            with (self._folder / _NAMES).open("ab") as file:
                file.write("".join(self._names).encode())
        self._waiting, self._waiting_tokens, self._names = [], 0, []

    def finish(
        self,
        row_tokens: int,
        codec: str,
        prepared: str = "",
        *,
        rooms: Integer[np.ndarray, " lengths"] | None = None,
        pairs: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> Packing:
        """Write the last shard, the packing and the index.

        Args:
            row_tokens: tokens of a row.
            codec: fingerprint of the codec that encoded the documents.
            prepared: fingerprint of everything that the folder depends on, stored for comparison.
            rooms: the tokens that a document of each length from 0 on may take in its row, where
                transforms lengthen it; default: its length.
            pairs: each two documents that follow each other are a pair.
            about: what else the index says of the documents, as plain values.

        Raises:
            ValueError: no document was added, or one of a pair is missing.
            OSError: the disk is full.
        """
        if not self._documents:
            raise ValueError("shards need at least one document")
        if self._open is not None:
            self._write_waiting(self._open)
            self._shards.append(self._open.closed())
            self._open = None
        documents = np.array(self._documents, dtype=np.int64).reshape(-1, 3)
        lengths = documents[:, 2]
        if pairs:
            packing = two_by_two(len(lengths))
        else:
            packing = best_fit(lengths if rooms is None else rooms[lengths], row_tokens)
        self._save(_DOCUMENTS, documents)
        self._save(_offsets_file(row_tokens), packing.offsets)
        self._save(_members_file(row_tokens), packing.members)
        is_weighted = any("weights" in shard for shard in self._shards)
        index = {
            "format": FORMAT,
            "version": VERSION if is_weighted or pairs else 1,
            "codec": codec,
            "prepared": prepared,
            "dtype": self._dtype.name,
            "documents": len(documents),
            "tokens": int(documents[:, 2].sum()),
            "row_tokens": row_tokens,
            "rows": packing.n_rows,
            "shards": self._shards,
            **({"pairs": True} if pairs else {}),
            **(about or {}),
        }
        write_json(self._folder / INDEX, index)
        return packing

    def _save(self, name: str, values: np.ndarray) -> None:
        np.save(self._folder / name, values)


class _OpenShard:
    """The files of a shard that grows."""

    def __init__(self, folder: Path, number: int, dtype: np.dtype) -> None:
        self.number, self.tokens = number, 0
        self._ids = ArrayFile(folder / f"ids-{number:05d}.npy", dtype)
        self._weights = ArrayFile(folder / f"weights-{number:05d}.npy", WEIGHT)
        self._is_weighted = False

    def write(self, content: Encoded) -> None:
        self._ids.append(content.ids)
        if content.is_weighted and not self._is_weighted:
            self._is_weighted = True
            self._append_ones(self.tokens)
        if self._is_weighted:
            self._weights.append(content.weights)
        self.tokens += len(content)

    def _append_ones(self, n: int) -> None:
        for start in range(0, n, _WAITING_TOKENS):
            self._weights.append(np.ones(min(_WAITING_TOKENS, n - start), WEIGHT))

    def closed(self) -> dict[str, Any]:
        """Finish the files; return what the index says of them."""
        self._ids.close()
        shard: dict[str, Any] = {"file": self._ids.path.name, "tokens": self.tokens}
        if self._is_weighted:
            self._weights.close()
            shard["weights"] = self._weights.path.name
        return shard


class Shards:
    """The documents of a source and their rows, memory-mapped. Use :meth:`open`."""

    def __init__(self, folder: Path, index: dict[str, Any], vocab_size: int | None = None) -> None:
        self.folder, self._vocab_size = folder, vocab_size
        _check_index(folder / INDEX, index)
        self.row_tokens: int = index["row_tokens"]
        self.n_documents: int = index["documents"]
        self.n_tokens: int = index["tokens"]
        self.n_rows: int = index["rows"]
        self.has_pairs: bool = index.get("pairs", False)
        dtype = np.dtype(index["dtype"])
        self._ids = [
            _map(folder / shard["file"], (shard["tokens"],), dtype) for shard in index["shards"]
        ]
        self._weights = [
            _map(folder / shard["weights"], (shard["tokens"],), WEIGHT)
            if "weights" in shard
            else None
            for shard in index["shards"]
        ]
        self._documents = _map(folder / _DOCUMENTS, (self.n_documents, 3))
        self._rows = Packing(
            _map(folder / _offsets_file(self.row_tokens), (self.n_rows + 1,)),
            _map(folder / _members_file(self.row_tokens), (self.n_documents,)),
        )
        self._check_places()

    @classmethod
    def open(
        cls, folder: Path, codec: str | None = None, vocab_size: int | None = None
    ) -> "Shards":
        """Open the shards of a folder.

        Args:
            codec: fingerprint of the codec that must have encoded them; None accepts any.
            vocab_size: token ids must lie below it; :meth:`document` checks those that it reads.

        Raises:
            DataError: a file is missing, incomplete, newer than this version, or of another codec.
                Or the files do not fit each other.
        """
        index = read_index(folder)
        if codec is not None and index["codec"] != codec:
            raise DataError(
                f"The shards in {folder} are of codec {index['codec']}, but {codec} is in use; "
                "prepare the source again with the tokenizers of this model."
            )
        return cls(folder, index, vocab_size)

    def below(self, vocab_size: int) -> "Shards":
        """Return the same open files, whose token ids must lie below a number."""
        shards = copy.copy(self)
        shards._vocab_size = vocab_size
        return shards

    def _check_places(self) -> None:
        """Raise DataError unless documents lie in their shards and rows hold each document once."""
        tokens = np.array([len(ids) for ids in self._ids] or [0])
        shards, starts, lengths = self._documents.T
        # In this order, so that no index is out of range and no sum overflows.
        if self.n_documents and not (
            0 <= shards.min() <= shards.max() < len(self._ids)
            and starts.min() >= 0
            and lengths.min() >= 0
            and starts.max() <= self.n_tokens
            and lengths.max() <= self.n_tokens
            and (starts + lengths <= tokens[shards]).all()
        ):
            raise DataError(
                f"{self.folder / _DOCUMENTS} names tokens that no shard has; {_PREPARE_AGAIN}"
            )
        offsets, members = self._rows.offsets, self._rows.members
        if (
            offsets[0] != 0
            or offsets[-1] != self.n_documents
            or (offsets[1:] < offsets[:-1]).any()
            or not _is_permutation(members)
        ):
            raise DataError(
                f"The rows in {self.folder} do not hold each of its {self.n_documents} documents "
                f"once; {_PREPARE_AGAIN}"
            )

    def document(self, document: int) -> Encoded:
        """Return the ids and weights of a document, views of its shard where these are stored.

        Raises:
            DataError: an id or a weight is none that the codec writes.
        """
        shard, start, length = self._documents[document].tolist()
        part, stored = slice(start, start + length), self._weights[shard]
        ids = self._ids[shard][part]
        weights = np.ones(length, dtype=np.float32) if stored is None else stored[part]
        if self._vocab_size is not None and length and ids.max() >= self._vocab_size:
            raise DataError(
                f"Document {document} of {self.folder} has the token id {ids.max()}, but the "
                f"vocabulary has {self._vocab_size} ids; {_PREPARE_AGAIN}"
            )
        if stored is not None and not np.isfinite(weights).all():
            raise DataError(
                f"Document {document} of {self.folder} has a weight that is no finite number; "
                f"{_PREPARE_AGAIN}"
            )
        return Encoded(ids, weights)

    @property
    def lengths(self) -> Integer[np.ndarray, " documents"]:
        """The tokens of each document."""
        return self._documents[:, 2]

    def row(self, row: int) -> Sequence[int]:
        """Return the documents of a row."""
        documents: list[int] = self._rows.row(row).tolist()
        return documents

    @cached_property
    def names(self) -> list[str]:
        """The name of each document, read on first use."""
        path = self.folder / _NAMES
        try:
            names = [parse_json(line) for line in read_lines(path)]
            if wrong := [name for name in names if not isinstance(name, str)]:
                raise ValueError(f"{shown(wrong[0])} is not a name")
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}); {_PREPARE_AGAIN}") from error
        if len(names) != self.n_documents:
            raise DataError(
                f"{path} has {len(names)} names for {self.n_documents} documents; {_PREPARE_AGAIN}"
            )
        return names


def _is_permutation(numbers: Integer[np.ndarray, " N"]) -> bool:
    """Whether N numbers are those from 0 to N - 1; without sorting, since every rank asks."""
    found = np.zeros(len(numbers), dtype=bool)
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(numbers):
        return False
    found[numbers] = True
    return bool(found.all())


def read_index(folder: Path) -> dict[str, Any]:
    """Return the index of a shard folder; raises DataError if there is none of a known version."""
    path = folder / INDEX
    try:
        index = read_json(path)
    except FileNotFoundError:
        raise DataError(f"No shards in {folder}: {path} is missing; prepare the source.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); {_PREPARE_AGAIN}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{path} does not describe shards; {_PREPARE_AGAIN}")
    if type(version := index.get("version", 0)) is not int or version > VERSION:
        raise DataError(
            f"{path} has format version {shown(version)}, this version of pardalis reads up to "
            f"{VERSION}; update pardalis or prepare the source with this version."
        )
    if missing := _KEYS - set(index):
        raise DataError(f"{path} lacks {', '.join(sorted(missing))}; {_PREPARE_AGAIN}")
    return index


def _check_index(path: Path, index: dict[str, Any]) -> None:
    """Raise DataError unless the values of an index are numbers and names of files beside it."""
    counts = [index[key] for key in ("documents", "tokens", "row_tokens", "rows")]
    is_list = isinstance(index["shards"], list)
    shards = [each for each in index["shards"] if isinstance(each, dict)] if is_list else []
    counts += [each.get("tokens") for each in shards]
    names = [each.get("file") for each in shards] + [
        each["weights"] for each in shards if "weights" in each
    ]
    wrong = [shown(each) for each in counts if type(each) is not int or not 0 <= each < 2**63]
    wrong += [shown(each) for each in names if not is_bare_name(each)]
    if not is_list or len(shards) < len(index["shards"]):
        wrong.append("shards")
    if index["dtype"] not in ("uint16", "uint32"):
        wrong.append(shown(index["dtype"]))
    if not isinstance(index.get("pairs", False), bool):
        wrong.append(shown(index["pairs"]))
    if wrong:
        raise DataError(
            f"{path} has {wrong[0]} where a number, a type of ids or the name of a file beside it "
            f"is needed; {_PREPARE_AGAIN}"
        )


_KEYS = {
    "codec", "prepared", "dtype", "documents", "tokens", "row_tokens", "rows", "shards",
}  # fmt: skip
_PREPARE_AGAIN = "delete the folder and prepare the source again."


def _offsets_file(row_tokens: int) -> str:
    return f"rows-{row_tokens}-offsets.npy"


def _members_file(row_tokens: int) -> str:
    return f"rows-{row_tokens}-members.npy"


def _map(path: Path, shape: tuple[int, ...], dtype: np.dtype = _INT64) -> np.ndarray:
    """Memory-map a file of a known shape; raises DataError."""
    try:
        values = open_array(path)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {_PREPARE_AGAIN}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is incomplete or damaged ({error}); {_PREPARE_AGAIN}") from error
    if values.shape != shape or values.dtype != dtype:
        raise DataError(
            f"{path} holds {values.dtype}{list(values.shape)} where {INDEX} says "
            f"{dtype}{list(shape)}; {_PREPARE_AGAIN}"
        )
    return values
