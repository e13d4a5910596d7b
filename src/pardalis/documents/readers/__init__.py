"""Reading documents from folders, JSONL, HTML and conversations, one at a time.

None is held in memory with the others, but for those of a JSON file that is one list.

A reader yields a :class:`~pardalis.documents.document.Document` for each good item and a
:class:`~pardalis.documents.document.Rejection` for each bad one. A root path that does not exist
raises :class:`~pardalis.errors.DataError` at the call. Images are not decoded here; that happens
once, when they are encoded.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from pardalis.documents.document import Document, Rejection
from pardalis.documents.readers.cauldron import read_cauldron
from pardalis.documents.readers.chat import read_chat
from pardalis.documents.readers.folder import read_folder
from pardalis.documents.readers.html import read_html
from pardalis.documents.readers.jsonl import read_jsonl, read_pairs
from pardalis.documents.readers.sharegpt import read_sharegpt

Reader: TypeAlias = Callable[[Path], Iterator[Document | Rejection]]

READERS: dict[str, Reader] = {
    "folder": read_folder,
    "jsonl": read_jsonl,
    "html": read_html,
    "pairs": read_pairs,
    "chat": read_chat,
    "sharegpt": read_sharegpt,
    "cauldron": read_cauldron,
}
