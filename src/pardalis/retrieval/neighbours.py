"""The candidates of every document of a source, found once, so that training searches nothing.

neighbours.json   format version, the index and the rules that they are of
names.jsonl       the name of each document, one JSON string a line
numbers.npy       int64 [documents, candidates]: documents of the index, best first; -1: none
scores.npy        float32 [documents, candidates]
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from pardalis import config as configs
from pardalis.config import shown
from pardalis.data import SourceConfig, read_source
from pardalis.data.arrays import open_array
from pardalis.documents import Document
from pardalis.errors import DataError
from pardalis.files import (
    atomic_folder,
    existing_folder,
    parse_json,
    read_json,
    read_lines,
    write_bytes,
    write_json,
)
from pardalis.progress import bar
from pardalis.retrieval.embedders import Embedder, Queries, embed
from pardalis.retrieval.index import Index, chunked
from pardalis.retrieval.retriever import retrieve
from pardalis.retrieval.rules import Candidate, RuleConfig, drop_words
from pardalis.retrieval.search import Search

FORMAT, VERSION = "pardalis-neighbours", 1
DESCRIPTION = "neighbours.json"
_NAMES, _NUMBERS, _SCORES = "names.jsonl", "numbers.npy", "scores.npy"
_CHUNK = 64
_FIND_AGAIN = "run the stage 'retrieval' again."


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The candidates of the documents of a source."""

    numbers_of: dict[str, int]  # place of each document by name
    candidates: Integer[np.ndarray, "N C"]

    @classmethod
    def open(cls, folder: Path, index: Index) -> "Neighbours":
        """Open what :func:`write_neighbours` wrote.

        Raises:
            DataError: a file is missing or damaged, or the candidates are of another index.
        """
        folder = existing_folder(folder)
        path = folder / DESCRIPTION
        try:
            values = read_json(path)
            is_ours = isinstance(values, dict) and values.get("format") == FORMAT
            if not is_ours or values.get("version") != VERSION:
                raise ValueError("it is not of this format and version")
            names = [parse_json(line) for line in read_lines(folder / _NAMES)]
            if wrong := [name for name in names if not isinstance(name, str)]:
                raise ValueError(f"{shown(wrong[0])} is not a name")
            numbers = open_array(folder / _NUMBERS)
        except (OSError, ValueError) as error:
            raise DataError(
                f"The candidates in {folder} cannot be read ({error}); {_FIND_AGAIN}"
            ) from error
        if values.get("index") != index.identity:
            raise DataError(
                f"The candidates in {folder} are of another index than {index.folder}; "
                f"{_FIND_AGAIN}"
            )
        if (
            numbers.dtype != np.int64
            or numbers.ndim != 2
            or len(numbers) != len(names)
            or (numbers.size and not -1 <= numbers.min() <= numbers.max() < len(index))
        ):
            raise DataError(
                f"{folder / _NUMBERS} does not name documents of the index for each of the "
                f"{len(names)} names; {_FIND_AGAIN}"
            )
        return cls({name: place for place, name in enumerate(names)}, numbers)

    def of(self, name: str) -> list[int]:
        """Return the candidates of a document, best first.

        What was made of a document, such as a part of it, has its name and an ending with ``#``.
        """
        while name not in self.numbers_of:
            name, found, _ = name.rpartition("#")
            if not found:
                return []
        numbers: list[int] = self.candidates[self.numbers_of[name]].tolist()
        return [number for number in numbers if number >= 0]


@dataclass(slots=True)
class NeighbourReport:
    """What was found for a source."""

    documents: int = 0
    candidates: int = 0
    without: int = 0  # documents that got none
    score_sum: float = 0.0

    @property
    def mean_score(self) -> float:
        return self.score_sum / self.candidates if self.candidates else float("nan")


def write_neighbours(
    folder: Path,
    source: SourceConfig,
    index: Index,
    embedder: Embedder,
    search: Search,
    rules: RuleConfig,
    *,
    document_tokens: int,
    n_documents: int,
    seed: int,
) -> NeighbourReport:
    """Find the candidates of all documents of a source and write them, replacing the folder.

    Args:
        document_tokens: longer documents are no candidates.
        n_documents: of the source, for the progress.
        seed: decides which words of the queries are dropped.

    Raises:
        DataError: no document of the source got a candidate; nothing is written then.
    """
    report = NeighbourReport()
    names: list[str] = []
    found: list[list[Candidate]] = []
    own = index.numbers_of(source.name)
    readable = (item for item in read_source(source) if isinstance(item, Document))
    with bar(f"Retrieving for {source.name}", total=n_documents, unit="documents") as advance:
        for chunk in chunked(readable, _CHUNK):
            is_allowed = partial(
                _is_allowed, index, document_tokens, [own.get(d.name) for d in chunk]
            )
            whole = embed(embedder, chunk)
            found += retrieve(
                index,
                search,
                _dropped(embedder, whole, chunk, rules.query_dropout, seed),
                rules.candidates,
                rules,
                wholes=whole.whole,
                is_allowed=is_allowed,
            )
            names += [document.name for document in chunk]
            advance(len(chunk))
    for candidates in found:
        report.documents += 1
        report.candidates += len(candidates)
        report.without += not candidates
        report.score_sum += sum(each.score for each in candidates)
    if not report.candidates:
        raise DataError(
            f"No document of source {source.name!r} may get one of the {len(index)} documents of "
            f"the index {index.folder}: each is the document itself, has more than "
            f"document_tokens ({document_tokens}) tokens, or a score above max_score "
            f"({rules.max_score}); raise these, or put more documents into the index."
        )
    shape = (len(names), rules.candidates)
    numbers, scores = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.float32)
    for place, candidates in enumerate(found):
        numbers[place, : len(candidates)] = [each.number for each in candidates]
        scores[place, : len(candidates)] = [each.score for each in candidates]
    description: dict[str, Any] = {"format": FORMAT, "version": VERSION, "index": index.identity}
    with atomic_folder(folder) as partial_folder:
        np.save(partial_folder / _NUMBERS, numbers)
        np.save(partial_folder / _SCORES, scores)
        lines = "".join(json.dumps(name) + "\n" for name in names)
        write_bytes(partial_folder / _NAMES, lines.encode())
        description |= {"rules": configs.to_dict(rules), "document_tokens": document_tokens}
        write_json(partial_folder / DESCRIPTION, description)
    return report


def _is_allowed(
    index: Index, document_tokens: int, own: Sequence[int | None], query: int, number: int
) -> bool:
    return number != own[query] and bool(index.lengths[number] <= document_tokens)


def _dropped(
    embedder: Embedder, whole: Queries, documents: Sequence[Document], share: float, seed: int
) -> Queries:
    """Return the vectors of queries some of whose words are dropped."""
    if share == 0:
        return whole
    less = [
        drop_words(document.text, share, seed, document.name) if document.text.strip() else ""
        for document in documents
    ]
    filled = [n for n, text in enumerate(less) if text]
    vectors = whole.text.copy()
    if filled:
        vectors[filled] = embedder.texts([less[n] for n in filled])
    return Queries(vectors, whole.image)
