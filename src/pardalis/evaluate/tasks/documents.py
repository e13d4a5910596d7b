"""The layout of documents: a JSONL file as training reads it, each line an item.

An item has the fields ``document``, the texts and images in their order, and ``name``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pardalis.documents import Document, Rejection, read_jsonl
from pardalis.errors import DataError
from pardalis.evaluate.tasks.items import Item


@dataclass(frozen=True, kw_only=True)
class DocumentsConfig:
    """Documents of texts and images (:mod:`pardalis.documents.readers.jsonl`)."""

    kind: Literal["documents"] = "documents"
    path: Path  # .jsonl, relative to the folder of data; paths of images begin beside it

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def items(self, folder: Path) -> Iterator[Item]:
        for found in documents_in(folder / self.path):
            yield Item(found.name, {"document": found, "name": found.name})


def documents_in(path: Path) -> Iterator[Document]:
    """Read all documents of a file; raises DataError at the first that cannot be read."""
    for found in read_jsonl(path):
        if isinstance(found, Rejection):
            raise DataError(f"{found.where}: {found.reason}")
        yield found
