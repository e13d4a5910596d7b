"""Which columns of a table hold texts and images: by an option, or by the names in use."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pardalis.documents.document import Document, Image, Omission, Segment, Text, is_unicode
from pardalis.documents.images import from_base64, from_data_uri
from pardalis.documents.readers._lines import BadRecordError, is_inside, outside
from pardalis.documents.readers._walk import find_below
from pardalis.errors import DataError

# The first that a table has is taken. Names are compared without regard to case.
TEXT_NAMES = (
    "text", "caption", "captions", "description", "alt_text", "alt", "sentence", "label_text",
    "utterance", "sentences", "content", "txt", "title", "prompt",
)  # fmt: skip
IMAGE_NAMES = (
    "image", "images", "file_name", "file_names", "filename", "image_path", "image_file",
    "filepath", "file_path", "path", "file", "img", "photo", "picture", "jpg", "jpeg", "png",
    "webp", "img_path", "image_bytes", "image_url", "url",
)  # fmt: skip
_NAMES = ("name", "id", "key", "__key__")
_REMOTE = ("http", "https", "ftp", "s3", "gs", "hf")
_IN_BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")  # how PNG, JPEG, GIF and WebP begin
_LEAST_BASE64 = 64
_LICENCES = ("licence", "license")


@dataclass(frozen=True, kw_only=True, slots=True)
class TableOptions:
    """Which columns of a table hold what; (): the first of a name in use that has something."""

    text: tuple[str, ...] = ()  # several are joined by line feeds
    image: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands."""

    folder: Path  # of its file
    root: Path  # of the source: no image may lie outside
    name: str  # of its document, if the record has none
    where: str = ""  # the place of its rejections


def filled(value: object) -> str:
    """Return a text without white space around it; "" for what is none."""
    return value.strip() if isinstance(value, str) and is_unicode(value) else ""


def first_of(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    """Return the first value under one of these names, in any case, that is there."""
    lower = {key.casefold(): value for key, value in record.items() if isinstance(key, str)}
    return next((lower[name] for name in names if lower.get(name) not in (None, "", [])), None)


def licence_of(record: Mapping[str, Any]) -> str:
    """Return the licence that a record states; "" for none."""
    return filled(first_of(record, _LICENCES))


def texts_of(value: Any, where: str) -> list[str]:
    """Return the texts of a cell: one, a list of them, or none."""
    values = value if isinstance(value, list) else [value]
    for each in values:
        if isinstance(each, str) and not is_unicode(each):
            raise BadRecordError("bad-record", f"{where} is broken Unicode; it must be text.")
        if not isinstance(each, str | None):
            found = type(each).__name__
            raise BadRecordError("bad-record", f"{where} is of type {found}; it must be text.")
    return [each.strip() for each in values if each and each.strip()]


def row_document(record: Mapping[str, Any], place: Place, options: TableOptions) -> Document:
    """Return the document of a row of a table: its texts, then its images.

    Raises:
        BadRecordError: it has no such column, nothing in them, or an image that is not there.
    """
    texts = _cells(record, options.text, TEXT_NAMES)
    images = _cells(record, options.image, IMAGE_NAMES)
    if not texts and not images:
        shown = ", ".join(map(str, [*record][:20]))
        raise BadRecordError(
            "no-column",
            f"The table has the columns {shown[:200]}, and none of a name that is known to hold "
            'texts or images; name them by options = {text = ["..."], image = ["..."]}.',
        )
    words = [line for key, value in texts.items() for line in texts_of(value, repr(key))]
    segments: list[Segment] = [Text("\n".join(words))] if words else []
    for key, value in images.items():
        for each in value if isinstance(value, list) else [value]:
            if each is not None and each != "":
                source = find_image(each, place, f"the image under {key!r}")
                segments.append(Image(source, "\n".join(words)))
    if not segments:
        raise BadRecordError("empty-document", "The row has neither text nor images.")
    name = first_of(record, _NAMES)
    is_name = isinstance(name, str | int) and not isinstance(name, bool) and is_unicode(str(name))
    return Document(tuple(segments), str(name) if is_name else place.name, licence_of(record))


def unread_columns(
    record: Mapping[str, Any], options: TableOptions, where: str
) -> Iterator[Omission]:
    """Yield what tells of texts that are not read, since no column of a known name has any."""
    known = (*TEXT_NAMES, *IMAGE_NAMES, *_NAMES, *_LICENCES)
    columns = {name: name.casefold() for name in record if isinstance(name, str)}
    if options.text or any(name in TEXT_NAMES for name in columns.values()):
        return
    names = [name for name, low in columns.items() if low not in known and filled(record[name])]
    if names:
        shown = ", ".join(names)[:200]
        reason = f"The columns {shown} are not read; name those that hold texts by options.text."
        yield Omission(where, "unread-column", reason, len(names))


def _cells(
    record: Mapping[str, Any], chosen: tuple[str, ...], known: tuple[str, ...]
) -> dict[str, Any]:
    """Return the cells of the chosen columns, or of the first known one that has something."""
    if chosen:
        if missing := [name for name in chosen if name not in record]:
            shown = ", ".join(map(str, record))
            raise BadRecordError(
                "no-column", f"There is no column {missing[0]!r} among {shown[:200]}."
            )
        return {name: record[name] for name in chosen}
    lower = {key.casefold(): key for key in record if isinstance(key, str)}
    found = [lower[name] for name in known if name in lower]
    best = next((key for key in found if record[key] not in (None, "", [])), None)
    return {key: record[key] for key in ([best] if best else found[:1])}


def find_image(value: Any, place: Place, where: str) -> Path | bytes:
    """Return the image that a record has: bytes, a path, a ``data:`` URI, or a table of these.

    The table is the image of Hugging Face's datasets, ``{"bytes": ..., "path": ...}``.

    Raises:
        BadRecordError: there is none inside the folder of the source.
    """
    if isinstance(value, Mapping):
        content = value.get("bytes")
        if isinstance(content, str) and content:
            return _decoded(lambda: from_base64(content), where)
        value = content if content else value.get("path") or value.get("url")
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value or not is_unicode(value):
        raise BadRecordError(
            "bad-record", f"{where} must be the path or the data: URI of an image."
        )
    if value[:5].lower() == "data:":
        return _decoded(lambda: from_data_uri(value), where)
    if value.startswith(_IN_BASE64) and len(value) > _LEAST_BASE64:
        return _decoded(lambda: from_base64(value), where)
    if value.partition("://")[0].lower() in _REMOTE:
        raise BadRecordError("remote-image", f"{where} is not on this machine: {value[:200]!r}.")
    if value[:7].lower() == "file://":
        value = unquote(urlsplit(value).path) or value
    return find_named(value, place, where)


def find_named(name: str, place: Place, where: str) -> Path:
    """Return the file that a record names by a path; raises BadRecordError if there is none."""
    file = find_below(place.folder, name) or find_below(place.folder, name.strip())
    if file is None:
        written = Path(os.path.abspath(place.folder / name))
        if written.is_relative_to(os.path.abspath(place.root)):
            reason = f"{where} is {name[:200]!r}, which is not a file in {place.folder}."
            raise BadRecordError("missing-image", reason)
    if file is None or not is_inside(file, place.root):
        raise BadRecordError("outside-image", f"{where} is {name[:200]!r}, {outside(place.root)}.")
    return file


def _decoded(decode: Callable[[], bytes], where: str) -> bytes:
    try:
        return decode()
    except DataError as error:
        raise BadRecordError("bad-base64", f"{where}: {error}") from error
