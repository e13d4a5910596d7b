"""Conversations in the layout of The Cauldron: images, and questions and answers about them.

    {"images": ["owls/1.png"], "texts": [
        {"user": "What is it?", "assistant": "An owl.", "source": "owls"}]}

All images stand before the first question. The dataset comes in Parquet; its rows are read from
JSONL, where an image is a path, a ``data:`` URI or ``{"bytes": "<base64>"}``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pardalis.documents.document import Document, Image, Rejection, Role, Segment, Text
from pardalis.documents.readers._columns import Place, find_image
from pardalis.documents.readers._conversation import (
    conversation,
    list_of,
    name_of,
    text_of,
)
from pardalis.documents.readers._lines import BadRecordError
from pardalis.documents.readers._records import read_records


def read_cauldron(path: Path) -> Iterator[Document | Rejection]:
    """Yield the conversations of a file, or of the files below a folder.

    Raises:
        DataError: there is nothing at the path.
    """
    return read_records(path, _conversation, "cauldron")


def _conversation(record: dict[str, Any], place: Place) -> Document:
    texts = list_of(record, "texts")
    if not texts:
        raise BadRecordError("no-answer", 'The record has no turns under "texts".')
    turns: list[tuple[Role, list[Segment]]] = []
    for number, pair in enumerate(texts):
        if not isinstance(pair, dict):
            reason = f'texts[{number}] must be an object with "user" and "assistant".'
            raise BadRecordError("bad-record", reason)
        for role in ("user", "assistant"):
            text = text_of(pair.get(role), f"texts[{number}].{role}")
            turns.append((role, [Text(text, role)] if text else []))
    images = [
        find_image(image, place, f"image {number}")
        for number, image in enumerate(list_of(record, "images"))
    ]
    turns[0][1][:0] = [Image(image, role="user") for image in images]
    return conversation(turns, name_of(record, place))
