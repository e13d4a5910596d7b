"""Conversations as OpenAI's messages, one conversation a line.

    {"messages": [{"role": "user", "content": "What is it?"},
                  {"role": "assistant", "content": "An owl."}]}

A content is a text or a list of parts, as :mod:`pardalis.documents.chat` describes. Here an image
may also be named by its path: ``{"type": "image_url", "image_url": {"url": "owl.png"}}`` or
``{"type": "image", "image": "owl.png"}``. A part ``{"type": "image"}`` stands for the next one of
the list ``"images"`` of the record, as TRL has it; so does ``<image>`` in a text if the record has
images and no such parts, as in LLaMA-Factory. A message may have a ``"weight"``, as in
OpenAI's fine-tuning, which is 0 for an answer that is not to be learnt.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from pardalis.documents.chat import messages_to_document
from pardalis.documents.document import ROLES, Document, Rejection, Role, Segment
from pardalis.documents.readers._columns import Place, find_image
from pardalis.documents.readers._conversation import (
    check_images,
    check_media,
    check_order,
    conversation,
    list_of,
    name_of,
)
from pardalis.documents.readers._lines import BadRecordError
from pardalis.documents.readers._records import read_records
from pardalis.documents.readers.jsonl import weight_of
from pardalis.errors import RequestError

_PLACE = "<image>"  # in texts of records with images
_TOOLS = ("tools", "functions")


def read_chat(path: Path) -> Iterator[Document | Rejection]:
    """Yield the conversations of a file, or of the files below a folder.

    Raises:
        DataError: there is nothing at the path.
    """
    return read_records(path, _conversation, "chat")


def _conversation(record: dict[str, Any], place: Place) -> Document:
    for key in _TOOLS:
        if record.get(key):
            reason = f'The record has "{key}", whose calls are not read.'
            raise BadRecordError("unknown-key", reason)
    check_media(record)
    messages = list_of(record, "messages")
    if not messages:
        raise BadRecordError("bad-record", 'The record needs a list of messages under "messages".')
    roles = [_role(message, number) for number, message in enumerate(messages)]
    check_order(roles)
    given = iter(images := list_of(record, "images"))
    if images:
        messages = _with_places(messages)
    places = [part for message in messages for part in _parts(message) if _is_place(part)]
    check_images(len(places), len(images), 'parts {"type": "image"}')
    turns: list[tuple[Role, list[Segment]]] = []
    for number, (role, message) in enumerate(zip(roles, messages, strict=True)):
        where, rest = f"messages[{number}]", dict(message)
        weight = weight_of(rest, where)
        rest.pop("weight", None)
        rest.pop("name", None)  # of a participant
        rest["role"] = role
        turns.append((role, []))
        if not rest.get("content"):
            continue  # an empty turn
        if isinstance(rest["content"], list):
            rest["content"] = [
                _with_image(part, given, place, f"{where}, part {n}")
                for n, part in enumerate(rest["content"])
            ]
        try:
            segments = messages_to_document([rest]).segments
        except RequestError as error:
            reason = str(error).replace("messages[0]", where, 1)
            raise BadRecordError("bad-record", reason) from error
        turns[-1][1].extend(replace(segment, weight=weight) for segment in segments)
    return conversation(turns, name_of(record, place))


def _role(message: Any, number: int) -> Role:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str):
        reason = f'messages[{number}] must be an object with "role" and "content".'
        raise BadRecordError("bad-record", reason)
    role = "system" if role == "developer" else role  # as OpenAI's newer models call it
    if role not in ROLES:
        raise BadRecordError(
            "unknown-role",
            f"messages[{number}] has the role {role[:60]!r}; it must be one of {', '.join(ROLES)}.",
        )
    return cast(Role, role)


def _parts(message: dict[str, Any]) -> list[Any]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _with_places(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages in which each ``<image>`` of a text is a part, as LLaMA-Factory has them."""
    if any(_is_place(part) for message in messages for part in _parts(message)):
        return messages
    return [
        {**message, "content": _split(message["content"])}
        if isinstance(message.get("content"), str) and _PLACE in message["content"]
        else message
        for message in messages
    ]


def _split(text: str) -> list[dict[str, str]]:
    parts: list[dict[str, str]] = []
    for number, each in enumerate(re.split(rf"\n?{_PLACE}\n?", text)):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": each}] if each else []
    return parts


def _is_place(part: Any) -> bool:
    """Whether a part stands for the next image of the record; tables fill rows with nulls."""
    is_image = isinstance(part, dict) and part.get("type") == "image"
    return is_image and all(value is None for key, value in part.items() if key != "type")


def _with_image(part: Any, given: Iterator[Any], place: Place, where: str) -> Any:
    """Return a part with its image, as :func:`messages_to_document` takes it; others as it is."""
    match part:
        case _ if _is_place(part):
            name = next(given)
        case (
            {"type": "image_url", "image_url": {"url": name} | str(name)}
            | {"type": "input_image", "image_url": str(name)}
            | {"type": "image", "image": name}
            | {"type": "image", "path": name}
            | {"type": "image", "url": name}
        ):
            pass
        case _:
            return part
    return {"type": "image", "image": find_image(name, place, where)}
