"""Reading documents from folders, files and datasets of all layouts, one at a time.

None is held in memory with the others, but for those of a JSON file that is one list.

A reader yields a :class:`~pardalis.documents.document.Document` for each good item and a
:class:`~pardalis.documents.document.Rejection` for each bad one. A root path that does not exist
raises :class:`~pardalis.errors.DataError` at the call. Images are not decoded here; that happens
once, when they are encoded.
"""

import typing
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from pardalis.config import from_dict
from pardalis.documents.document import Document, Rejection
from pardalis.documents.readers._page import PageOptions
from pardalis.documents.readers._walk import is_clutter
from pardalis.documents.readers.cauldron import read_cauldron
from pardalis.documents.readers.chat import read_chat
from pardalis.documents.readers.csv import read_csv
from pardalis.documents.readers.epub import read_epub
from pardalis.documents.readers.folder import read_folder
from pardalis.documents.readers.html import read_html
from pardalis.documents.readers.jsonl import read_jsonl, read_pairs
from pardalis.documents.readers.markdown import read_markdown
from pardalis.documents.readers.mhtml import read_mhtml
from pardalis.documents.readers.mmc4 import read_mmc4
from pardalis.documents.readers.obelics import read_obelics
from pardalis.documents.readers.parquet import read_parquet
from pardalis.documents.readers.pdf import read_pdf
from pardalis.documents.readers.recognise import hint_at, reader_of
from pardalis.documents.readers.sharegpt import read_sharegpt
from pardalis.documents.readers.text import read_texts
from pardalis.documents.readers.webdataset import read_webdataset
from pardalis.errors import ConfigError

Reader: TypeAlias = Callable[[Path], Iterator[Document | Rejection]]

READERS: dict[str, Reader] = {
    "folder": read_folder,
    "jsonl": read_jsonl,
    "html": read_html,
    "mhtml": read_mhtml,
    "epub": read_epub,
    "pairs": read_pairs,
    "chat": read_chat,
    "sharegpt": read_sharegpt,
    "cauldron": read_cauldron,
    "obelics": read_obelics,
    "mmc4": read_mmc4,
    "webdataset": read_webdataset,
    "parquet": read_parquet,
    "csv": read_csv,
    "text": read_texts,
    "markdown": read_markdown,
    "pdf": read_pdf,
}


def _options_of(reader: Reader) -> type[Any] | None:
    """Return the config that a reader takes as ``options``, if it takes one."""
    found = typing.get_args(typing.get_type_hints(reader).get("options"))
    return next((each for each in found if each is not type(None)), None)


# The config of a reader's options: its argument ``options``. A reader that is not here has none.
OPTIONS: dict[str, type[Any]] = {
    name: config for name, reader in READERS.items() if (config := _options_of(reader)) is not None
}


def reader_with(name: str, options: Mapping[str, Any]) -> Reader:
    """Return a reader that has the options, given as plain values.

    Raises:
        ConfigError: the reader has no such option, or not with that value.
    """
    if not options:
        return READERS[name]
    if name not in OPTIONS:
        readers = ", ".join(map(repr, OPTIONS))
        raise ConfigError(f"options must be empty for reader {name!r}; {readers} have some.")
    configured: Reader = partial(
        READERS[name],
        options=from_dict(OPTIONS[name], options, "options."),  # type: ignore[call-arg]
    )
    return configured
