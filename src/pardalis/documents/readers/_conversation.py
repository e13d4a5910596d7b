"""What the readers of conversations share: the order of turns, and names, lists and texts."""

from collections.abc import Sequence
from typing import Any

from pardalis.documents.document import Document, Image, Role, Segment, is_unicode
from pardalis.documents.readers._columns import Place
from pardalis.documents.readers._lines import BadRecordError


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


def check_media(record: dict[str, Any]) -> None:
    """Raise BadRecordError for films and sound, without which a conversation has no sense."""
    for key in ("video", "videos", "audio", "audios"):
        if record.get(key):
            raise BadRecordError("unread-format", f'The record has "{key}", which is not read.')


def check_images(n_places: int, n_images: int, places: str) -> None:
    """Raise BadRecordError unless a record has as many images as places for them."""
    if n_places != n_images:
        raise BadRecordError(
            "image-count",
            f"The conversation has {n_places} {places} and {n_images} images; each image needs "
            "one place.",
        )
