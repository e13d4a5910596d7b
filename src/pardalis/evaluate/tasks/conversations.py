"""The layout of conversations: each a request of the user with the answer of the assistant.

An item has the fields ``request`` and ``answer``, each the texts and images of a turn in their
order, and ``name``. A task with ``chat = true`` asks it as the model was taught.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Literal

from pardalis.documents import Document
from pardalis.errors import DataError
from pardalis.evaluate.tasks.documents import documents_in
from pardalis.evaluate.tasks.items import Item

_TURNS = ["user", "assistant"]


@dataclass(frozen=True, kw_only=True)
class ConversationsConfig:
    """Documents of two turns (:mod:`pardalis.documents.readers.jsonl`)."""

    kind: Literal["conversations"] = "conversations"
    path: Path  # .jsonl, relative to the folder of data; paths of images begin beside it

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def items(self, folder: Path) -> Iterator[Item]:
        for found in documents_in(folder / self.path):
            turns = [
                (role, Document(tuple(replace(each, role=None) for each in segments)))
                for role, segments in groupby(found.segments, lambda segment: segment.role)
            ]
            if (roles := [role for role, _ in turns]) != _TURNS:
                raise DataError(
                    f"{folder / self.path}: the conversation {found.name!r} has the turns "
                    f"{', '.join(str(role) for role in roles)}; one of the user and one of the "
                    "assistant are expected."
                )
            request, answer = (turn for _, turn in turns)
            yield Item(found.name, {"request": request, "answer": answer, "name": found.name})
