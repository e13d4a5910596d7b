"""The items of a task: a name and fields, read from files by a layout.

A layout is a config of the table :data:`pardalis.evaluate.tasks.LAYOUTS`: it names files under a
folder of data and yields their items. Images are fields whose values are
:class:`pardalis.documents.Image`, with the path of a file or its bytes; they are opened when the
item is evaluated.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pardalis.documents import Document, Image, Text, to_png
from pardalis.documents.document import is_unicode
from pardalis.errors import DataError
from pardalis.files import found_at

_SHOWN = 60  # characters of an id in a message


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a task.

    Attributes:
        id: unique in the task, and the same in every run.
        fields: texts, numbers, images, documents, and lists and tables of these, by name.
    """

    id: str
    fields: Mapping[str, Any]

    @property
    def images(self) -> list[Image]:
        """All images in its fields."""
        return list(_images(self.fields))

    def digest(self) -> str:
        """Return a hash of its fields, with the content of its images.

        Raises:
            OSError: an image cannot be read.
        """
        text = json.dumps(_plain(self.fields), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@runtime_checkable
class Layout(Protocol):
    """How items are stored: a frozen config with ``kind``, a name of the table of layouts."""

    @property
    def files(self) -> Sequence[Path]:
        """The files that decide the items, relative to the folder of data; images are not."""

    def items(self, folder: Path) -> Iterator[Item]:
        """Yield the items in their order.

        Raises:
            DataError: a file is missing or has another form.
        """


def load_items(layout: Layout, folder: Path) -> list[Item]:
    """Return all items of a layout.

    Raises:
        DataError: a file is missing or has another form, there are no items, or two have one id.
    """
    for path in layout.files:
        if not (folder / path).is_file():
            raise DataError(
                f"{folder / path} {found_at(folder / path)}; a file of the task's items was "
                "expected there, so put it there or give another folder of `data`."
            )
    items = list(layout.items(folder))
    for item in items:
        _require_unicode(item, folder)
    shown = " and ".join(str(folder / path) for path in layout.files)
    if not items:
        raise DataError(f"{shown} has no items; is it the right file?")
    seen: dict[str, int] = {}
    for number, item in enumerate(items):
        if (before := seen.setdefault(item.id, number)) != number:
            raise DataError(
                f"{shown} has two items with the id {item.id[:_SHOWN]!r}, number {before + 1} and "
                f"{number + 1}; ids must differ."
            )
    return items


def _require_unicode(item: Item, folder: Path) -> None:
    """Raise DataError if a text has half of a surrogate pair, which JSON can spell."""
    text = json.dumps([item.id, item.fields], default=lambda value: "", ensure_ascii=False)
    if not is_unicode(text):
        raise DataError(
            f"The item {item.id[:_SHOWN]!r} of {folder} holds broken Unicode: half of a surrogate "
            "pair; is the text UTF-8?"
        )


def require_images(items: Sequence[Item]) -> None:
    """Raise DataError if files of images are missing; names the first and counts the others."""
    missing = [
        (item.id, image.source)
        for item in items
        for image in item.images
        if isinstance(image.source, Path) and not os.path.isfile(image.source)
    ]
    if missing:
        name, path = missing[0]
        others = f", and so are {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise DataError(
            f"The image {path} of the item {name[:_SHOWN]!r} is missing{others}; copy all images "
            "there, or give another folder of `data`."
        )


def _images(value: Any) -> Iterator[Image]:
    if isinstance(value, Image):
        yield value
    elif isinstance(value, Document):
        yield from value.images
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _images(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _images(each)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, with hashes of images in their places."""
    if isinstance(value, Image):
        return {"image": image_digest(value)}
    if isinstance(value, Text):
        return {"text": value.text}
    if isinstance(value, Document):
        return [_plain(segment) for segment in value.segments]
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def image_digest(image: Image) -> str:
    """Return the SHA-256 of an image: of its file, or of a PNG if it is decoded; raises OSError."""
    source = image.source
    if isinstance(source, Path):
        with open(source, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(source if isinstance(source, bytes) else to_png(source)).hexdigest()
