"""Conversations as documents: the OpenAI chat shape to :class:`Document` and back.

A message's content is text, or a list of parts: ``{"type": "text", "text": ...}`` and
``{"type": "image_url", "image_url": {"url": "data:..."}}``. Each part becomes one segment with the
message's role, so the way back gives the same messages; consecutive messages of one role become
one. Images stay encoded as they came. Nothing is ever fetched from a network.

The parts of OpenAI's newer API are read too (``input_text``, ``output_text``, ``input_image``), and
so is ``{"type": "image", "image": ...}`` with a path, bytes or a PIL image, as transformers has it.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import PIL.Image

from pardalis.documents.document import (
    ROLES,
    Document,
    Image,
    Role,
    Segment,
    Text,
    is_unicode,
)
from pardalis.documents.images import from_data_uri, media_type, read_source, to_data_uri, to_png
from pardalis.errors import DataError, RequestError


def messages_to_document(messages: Sequence[Any], name: str = "") -> Document:
    """Return the conversation as one document, each part of a message a segment with its role.

    Raises:
        RequestError: the messages do not have the shape above, or name an image by a remote URL.
    """
    if not messages:
        raise RequestError("There are no messages; at least one is needed.")
    segments: list[Segment] = []
    for number, message in enumerate(messages):
        segments += _segments(message, f"messages[{number}]")
    return Document(tuple(segments), name)


def learning_only(document: Document, roles: Collection[str] = ("assistant",)) -> Document:
    """Return a conversation of which only the turns of some roles are learnt, with their ends.

    The segments of other roles have the weight 0, and so has what a chat template adds.
    """
    segments = (s if s.role in roles else replace(s, weight=0.0) for s in document.segments)
    return replace(document, segments=tuple(segments))


def document_to_messages(document: Document) -> list[dict[str, Any]]:
    """Return the document as messages; segments without a role are the user's.

    Raises:
        DataError: an image cannot be read.
    """
    messages: list[dict[str, Any]] = []
    for role, group in groupby(document.segments, key=lambda segment: segment.role or "user"):
        segments = list(group)
        content: str | list[dict[str, Any]]
        if len(segments) == 1 and isinstance(segments[0], Text):
            content = segments[0].text
        else:
            content = [_part(segment) for segment in segments]
        messages.append({"role": role, "content": content})
    return messages


def _segments(message: Any, where: str) -> list[Segment]:
    if not isinstance(message, dict):
        raise RequestError(f'{where} must be an object with "role" and "content".')
    role = message.get("role")
    if not isinstance(role, str | None):
        raise RequestError(f"{where} has a role of type {type(role).__name__}; it must be a text.")
    if role not in ROLES:
        raise RequestError(f"{where} has the role {role!r}; it must be one of {', '.join(ROLES)}.")
    # Clients send an assistant's message back with empty fields, such as "refusal": null.
    extra = sorted(
        str(key)
        for key, value in message.items()
        if key not in ("role", "content") and not _is_empty(value)
    )
    if extra:
        raise RequestError(
            f"{where} has {', '.join(extra)}, which this model does not know; drop it."
        )
    content = message.get("content")
    if isinstance(content, str):
        return [Text(_unicode(content, where), cast(Role, role))]
    if not isinstance(content, list) or not content:
        raise RequestError(
            f'{where} needs "content": a text, or a list of parts with at least one.'
        )
    return [
        part_to_segment(part, cast(Role, role), f"{where}.content[{number}]")
        for number, part in enumerate(content)
    ]


def _is_empty(value: Any) -> bool:
    return isinstance(value, bool | int | str | list | dict | None) and not value


def part_to_segment(part: Any, role: Role | None, where: str) -> Segment:
    """Return a part of a message's content as a segment; ``where`` names it in errors.

    Raises:
        RequestError: the part has not a shape above, or names an image by a remote URL.
    """
    kind = part.get("type") if isinstance(part, dict) else None
    match part if isinstance(kind, str) else None:
        case {"type": "text" | "input_text" | "output_text", "text": str(text)}:
            return Text(_unicode(text, where), role)
        case {"type": "image_url", "image_url": {"url": str(url)}} | {
            "type": "input_image",
            "image_url": str(url),
        }:
            return Image(_image(url, where), role=role)
        case {"type": "image", "image": Path() | bytes() | PIL.Image.Image() as source}:
            return Image(source, role=role)
    raise RequestError(
        f'{where} must be {{"type": "text", "text": ...}} or '
        '{"type": "image_url", "image_url": {"url": "data:..."}}.'
    )


def _image(url: str, where: str) -> bytes:
    if url[:5].lower() != "data:":
        raise RequestError(
            f"{where} names its image by the URL {url[:60]!r}, and images are not fetched from "
            "a network; send it as a data:image/png;base64,... URL."
        )
    try:
        return from_data_uri(url)
    except DataError as error:
        raise RequestError(f"{where}: {error}") from error


def _unicode(text: str, where: str) -> str:
    if not is_unicode(text):
        raise RequestError(f"{where} holds broken Unicode: half of a surrogate pair.")
    return text


def _part(segment: Segment) -> dict[str, Any]:
    if isinstance(segment, Text):
        return {"type": "text", "text": segment.text}
    source = segment.source
    content = read_source(source) if isinstance(source, Path | bytes) else b""
    kind = media_type(content)
    uri = to_data_uri(content, kind) if kind else to_data_uri(to_png(source))
    return {"type": "image_url", "image_url": {"url": uri}}
