"""Web documents in the layout of OBELICS: two lists of one length, with a null in one of them.

    {"images": [null, "1.png", null], "texts": ["An owl sits here.", null, "It is white."]}

An image is bytes, a path relative to its file, or a ``data:`` URI. The published dataset names
images by their URLs: these are not fetched, so their documents are read without them, and each is
counted as a ``remote-image``. Files are Parquet or JSONL.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pardalis.documents.document import Document, Image, Rejection, Segment, Text
from pardalis.documents.readers._columns import Place, find_image, licence_of
from pardalis.documents.readers._conversation import list_of, name_of, text_of
from pardalis.documents.readers._lines import BadRecordError
from pardalis.documents.readers._records import read_records
from pardalis.files import parse_json


def read_obelics(path: Path) -> Iterator[Document | Rejection]:
    """Yield the documents of a file, or of the files below a folder.

    Raises:
        DataError: there is nothing at the path.
    """
    return read_records(path, _document, "obelics", "a file of OBELICS, or a folder of such files,")


def _document(record: dict[str, Any], place: Place) -> Iterator[Document | Rejection]:
    images, texts = list_of(record, "images"), list_of(record, "texts")
    if not texts and not images:
        reason = 'The record needs lists under "images" and "texts".'
        raise BadRecordError("bad-record", reason)
    if len(images) != len(texts):
        raise BadRecordError(
            "bad-record",
            f'The record has {len(images)} "images" and {len(texts)} "texts"; both lists have one '
            "entry for each part of the document, null in one of them.",
        )
    alts = _alts(record.get("metadata"), len(images))
    segments: list[Segment] = []
    rejections: list[Rejection] = []
    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        if text is not None and (words := text_of(text, f"texts[{number}]")).strip():
            segments.append(Text(words))
        if image is None or image == "":
            continue
        try:
            source = find_image(image, place, f"images[{number}]")
            segments.append(Image(source, alts[number]))
        except BadRecordError as error:
            rejections.append(Rejection(place.where, error.kind, str(error)))
    yield from rejections
    document = Document(joined(segments), name_of(record, place), licence_of(record))
    if document.is_empty:
        raise BadRecordError("empty-document", "The document has neither text nor images.")
    yield document


def joined(segments: list[Segment]) -> tuple[Segment, ...]:
    """Return segments whose texts in succession are one, as paragraphs."""
    found: list[Segment] = []
    for segment in segments:
        last = found[-1] if found else None
        if isinstance(segment, Text) and isinstance(last, Text):
            found[-1] = Text(f"{last.text}\n\n{segment.text}")
        else:
            found.append(segment)
    return tuple(found)


def _alts(metadata: Any, n: int) -> list[str]:
    """Return the alternative texts of images, which the metadata of the dataset have as JSON."""
    try:
        values = parse_json(metadata) if isinstance(metadata, str) else metadata
    except ValueError:
        values = None
    if not isinstance(values, list) or len(values) != n:
        return [""] * n
    alts = [each.get("alt_text") if isinstance(each, dict) else None for each in values]
    return [each if isinstance(each, str) and each.isprintable() else "" for each in alts]
