"""What the readers of conversations share: records of files, images, and the order of turns.

A source is a file of records, or a folder that is searched for such files: JSONL, or one list in
JSON. Images of a record are paths relative to its file, inside the source's folder, or ``data:``
URIs.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pardalis.documents.document import Document, Image, Rejection, Role, Segment, is_unicode
from pardalis.documents.images import from_base64, from_data_uri
from pardalis.documents.readers._lines import BadRecordError, read_lines
from pardalis.documents.readers._lines import find_image as find_file
from pardalis.errors import DataError
from pardalis.files import found_at, read_json

_SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands."""

    folder: Path  # of its file
    root: Path  # of the source: no image may lie outside
    name: str  # of its document, if the record has none


Parse = Callable[[dict[str, Any], Place], Document]


def read_records(path: Path, parse: Parse) -> Iterator[Document | Rejection]:
    """Yield the documents of a file, or of all files below a folder, sorted.

    Raises:
        DataError: there is nothing at the path.
    """
    if path.is_dir():
        return _of_folder(path, parse)
    if not path.is_file():
        raise DataError(
            f"{path} {found_at(path)}; a file of conversations, or a folder of such files, was "
            "expected there."
        )
    return _of_file(path, path.parent, parse)


def _of_folder(root: Path, parse: Parse) -> Iterator[Document | Rejection]:
    for folder, below, names in os.walk(root):
        below.sort()
        for name in sorted(names):
            file = Path(folder, name)
            if file.suffix.lower() in _SUFFIXES and file.is_file():
                yield from _of_file(file, root, parse)


def _of_file(path: Path, root: Path, parse: Parse) -> Iterator[Document | Rejection]:
    stem = path.relative_to(root).with_suffix("").as_posix()

    def parsed(record: dict[str, Any], number: int) -> Document:
        return parse(record, Place(path.parent, root, f"{stem}:{number}"))

    if path.suffix.lower() != ".json":
        yield from read_lines(path, parsed)
        return
    try:
        records = read_json(path)
    except (OSError, ValueError) as error:
        reason = f"The file is not JSON that can be read ({error}); a large one is read as JSONL."
        yield Rejection(str(path), "bad-json", reason)
        return
    if not isinstance(records, list):
        reason = f"The file holds a JSON {type(records).__name__}; a list was expected."
        yield Rejection(str(path), "bad-record", reason)
        return
    for number, record in enumerate(records, start=1):
        try:
            if not isinstance(record, dict):
                reason = f"The item is a JSON {type(record).__name__}; an object was expected."
                raise BadRecordError("bad-record", reason)
            yield parsed(record, number)
        except BadRecordError as error:
            yield Rejection(f"{path}:{number}", error.kind, str(error))


def find_image(value: Any, place: Place, where: str) -> Path | bytes:
    """Return the image that a record names: by a path, a ``data:`` URI, or ``path`` or ``bytes``.

    Raises:
        BadRecordError: there is none inside the folder of the source.
    """
    if isinstance(value, dict) and isinstance(value.get("bytes"), str):
        return _decoded(lambda: from_base64(value["bytes"]), where)
    name = value.get("path") if isinstance(value, dict) else value
    if not isinstance(name, str) or not name or not is_unicode(name):
        raise BadRecordError(
            "bad-record", f"{where} must be the path or the data: URI of an image."
        )
    if name[:5].lower() == "data:":
        return _decoded(lambda: from_data_uri(name), where)
    if name.partition("://")[0].lower() in ("http", "https"):
        raise BadRecordError("remote-image", f"{where} is not on this machine: {name[:60]!r}.")
    return find_file(name, place.folder, f"{where} is", place.root)


def _decoded(decode: Callable[[], bytes], where: str) -> bytes:
    try:
        return decode()
    except DataError as error:
        raise BadRecordError("bad-base64", f"{where}: {error}") from error


def check_order(roles: Sequence[str]) -> None:
    """Raise BadRecordError unless turns are the user's and the assistant's in turn.

    The system's may stand before them, and one of the assistant's is needed.
    """
    first = int(roles[:1] == ["system"])
    for number, found in enumerate(roles[first:]):
        expected = ("user", "assistant")[number % 2]
        if found != expected:
            raise BadRecordError(
                "role-order",
                f"Turn {first + number} is the {found}'s where the {expected}'s was expected; "
                "turns alternate and begin with the user's, after one of the system's at most.",
            )
    if "assistant" not in roles:
        reason = "The conversation has no turn of the assistant, so there is nothing to learn."
        raise BadRecordError("no-answer", reason)


def conversation(
    turns: Sequence[tuple[Role, Sequence[Segment]]], name: str, licence: str = ""
) -> Document:
    """Return a conversation of turns whose order has been checked; an empty system turn is dropped.

    Raises:
        BadRecordError: another turn is empty.
    """
    segments: list[Segment] = []
    for number, (role, turn) in enumerate(turns):
        if any(isinstance(each, Image) or each.text.strip() for each in turn):
            segments += turn
        elif role != "system":
            kind = "empty-answer" if role == "assistant" else "empty-turn"
            raise BadRecordError(kind, f"Turn {number}, the {role}'s, has neither text nor images.")
    return Document(tuple(segments), name, licence)


def name_of(record: dict[str, Any], place: Place) -> str:
    """Return the name of a record's document: its ``name`` or ``id``, or where it stands."""
    for key in ("name", "id"):
        value = record.get(key)
        if isinstance(value, str) and value and is_unicode(value):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
    return place.name


def text_of(value: Any, where: str) -> str:
    """Return a text of a record; raises BadRecordError for anything else."""
    if not isinstance(value, str) or not is_unicode(value):
        found = "broken Unicode" if isinstance(value, str) else f"of type {type(value).__name__}"
        raise BadRecordError("bad-record", f"{where} is {found}; it must be text.")
    return value


def list_of(record: dict[str, Any], key: str) -> list[Any]:
    """Return a list of a record, [] if it has none; raises BadRecordError for anything else."""
    value = record.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        reason = f'"{key}" of the record is of type {type(value).__name__}; it must be a list.'
        raise BadRecordError("bad-record", reason)
    return value


def check_images(n_places: int, n_images: int, places: str) -> None:
    """Raise BadRecordError unless a record has as many images as places for them."""
    if n_places != n_images:
        raise BadRecordError(
            "image-count",
            f"The conversation has {n_places} {places} and {n_images} images; each image needs "
            "one place.",
        )
