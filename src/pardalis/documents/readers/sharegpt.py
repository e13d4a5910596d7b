"""Conversations in the layouts of ShareGPT and LLaVA: turns with ``from`` and ``value``.

    {"id": "1", "image": "owls/1.png", "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "An owl."}]}

``<image>`` stands for the next image of ``"image"`` or ``"images"``, one or a list; a line feed
beside it belongs to it. Turns may also have ``role`` and ``content``. A text under ``"system"`` is
the system's turn.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pardalis.documents.document import Document, Image, Rejection, Role, Segment, Text
from pardalis.documents.readers._columns import Place, find_image
from pardalis.documents.readers._conversation import (
    check_images,
    check_media,
    check_order,
    conversation,
    list_of,
    name_of,
    text_of,
)
from pardalis.documents.readers._lines import BadRecordError
from pardalis.documents.readers._records import read_records

_ROLES: dict[str, Role] = {
    "human": "user", "user": "user",
    "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "system": "system",
}  # fmt: skip
_IMAGE = re.compile(r"\n?<image>\n?")


def read_sharegpt(path: Path) -> Iterator[Document | Rejection]:
    """Yield the conversations of a file, or of the files below a folder.

    Raises:
        DataError: there is nothing at the path.
    """
    return read_records(path, _conversation, "sharegpt")


def _conversation(record: dict[str, Any], place: Place) -> Document:
    check_media(record)
    turns = [_turn(turn, number) for number, turn in enumerate(list_of(record, "conversations"))]
    if not turns:
        reason = 'The record needs a list of turns under "conversations".'
        raise BadRecordError("bad-record", reason)
    if record.get("system"):
        turns.insert(0, ("system", text_of(record["system"], "system")))
    check_order([role for role, _ in turns])
    images = _images(record)
    parts = [(role, _IMAGE.split(text)) for role, text in turns]
    check_images(sum(len(texts) - 1 for _, texts in parts), len(images), "places <image>")
    given = (find_image(each, place, f"image {n}") for n, each in enumerate(images))
    return conversation(
        [(role, _segments(texts, role, given)) for role, texts in parts], name_of(record, place)
    )


def _turn(turn: Any, number: int) -> tuple[Role, str]:
    keys = ("from", "value") if isinstance(turn, dict) and "from" in turn else ("role", "content")
    speaker = turn.get(keys[0]) if isinstance(turn, dict) else None
    if not isinstance(speaker, str):
        reason = f'conversations[{number}] must be an object with "from" and "value".'
        raise BadRecordError("bad-record", reason)
    if speaker not in _ROLES:
        raise BadRecordError(
            "unknown-role",
            f"conversations[{number}] is from {speaker[:60]!r}; it must be one of "
            f"{', '.join(_ROLES)}.",
        )
    return _ROLES[speaker], text_of(turn.get(keys[1]), f"conversations[{number}].{keys[1]}")


def _images(record: dict[str, Any]) -> list[Any]:
    """Return what the record has under ``image`` and ``images``."""
    one = record.get("image")
    first = one if isinstance(one, list) else [] if one is None else [one]
    return [each for each in (*first, *list_of(record, "images")) if each not in ("", None)]


def _segments(texts: list[str], role: Role, images: Iterator[Path | bytes]) -> list[Segment]:
    """Return texts with an image between each two; empty texts are left out."""
    segments: list[Segment] = []
    for number, text in enumerate(texts):
        if number:
            segments.append(Image(next(images), role=role))
        if text:
            segments.append(Text(text, role))
    return segments
