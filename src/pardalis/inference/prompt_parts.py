"""What a prompt may be in Python, and how it becomes a document."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

import numpy as np
import PIL.Image
import torch

from pardalis.documents import Document, Image, Role, Segment, Text, messages_to_document
from pardalis.documents.chat import part_to_segment
from pardalis.documents.document import ROLES, is_unicode
from pardalis.documents.images import from_array
from pardalis.documents.readers.folder import image_suffixes
from pardalis.errors import RequestError

if TYPE_CHECKING:
    ImagePart: TypeAlias = (
        Path | bytes | BinaryIO | PIL.Image.Image | np.ndarray[Any, Any] | torch.Tensor
    )
    Part: TypeAlias = str | ImagePart | Segment | Document | Mapping[str, Any]
    Prompt: TypeAlias = Part | Sequence[Part]
else:  # to_document checks what comes, and says in its own words what is wrong
    Part = Prompt = Any

ACCEPTED = (
    "a text, an image (a Path, bytes, a binary file, a PIL image, an array or a tensor), a chat "
    "message, a document, or a list of these"
)

_PARTS = (  # what is one part, though some look like a list
    str, bytes, bytearray, memoryview, os.PathLike, PIL.Image.Image, np.ndarray, torch.Tensor,
    Mapping, Text, Image, Document,
)  # fmt: skip


def to_document(prompt: Prompt, role: Role | None = None) -> Document:
    """Convert a prompt to a document.

    A part is a text (``str``); an image (a ``Path``, ``bytes``, an open binary file, a PIL image,
    or an array or tensor as :func:`pardalis.documents.from_array` takes it); a part of a chat
    message, such as ``{"type": "text", "text": ...}``; or a ``Text``, ``Image`` or ``Document``.

    A prompt is one part, a list of parts, a chat message (``{"role": ..., "content": ...}``) or a
    list of messages.

    Args:
        role: role of every segment; messages, documents and segments keep their own.

    Raises:
        RequestError: the prompt is something else, its text is no Unicode, or a string is the path
            of an image file, which must be a ``Path``.
        DataError: an array is no image.
    """
    if isinstance(prompt, Document):
        return _checked(prompt)
    is_list = isinstance(prompt, Sequence) and not is_part(prompt)
    parts: list[Any] = list(cast(Sequence[Any], prompt)) if is_list else [prompt]
    if any(isinstance(part, Mapping) and "role" in part for part in parts):
        return messages_to_document([dict(p) if isinstance(p, Mapping) else p for p in parts])
    segments: list[Segment] = []
    for number, part in enumerate(parts):
        if isinstance(part, Document):
            segments += _checked(part).segments
        else:
            where = f"prompt[{number}]" if is_list else "The prompt"
            segment = _segment(part, where)
            segments.append(segment if segment.role else replace(segment, role=role))
    return _checked(Document(tuple(segments)))


def is_part(prompt: object) -> bool:
    """Whether a prompt is one part, which may look like a list of them."""
    return isinstance(prompt, _PARTS) or _is_file(prompt)


def _is_file(part: object) -> bool:
    return callable(getattr(part, "read", None)) and not isinstance(part, type)


def _segment(part: Any, where: str) -> Segment:
    match part:
        case Text() | Image():
            return part
        case str():
            _require_no_image_path(part, where)
            return Text(part)
        case bytes() | bytearray() | memoryview():
            return Image(bytes(part))
        case os.PathLike():
            return Image(Path(os.fsdecode(part)))
        case PIL.Image.Image():
            return Image(part)
        case np.ndarray():
            return Image(from_array(part))
        case torch.Tensor():
            return Image(from_array(_to_array(part, where)))
        case Mapping():
            return part_to_segment(dict(part), None, where)
    if _is_file(part):
        return Image(_read(part, where))
    raise RequestError(f"{where} is of type {type(part).__name__}; it must be {ACCEPTED}.")


def _require_no_image_path(text: str, where: str) -> None:
    if text.lower().endswith(tuple(image_suffixes())) and os.path.isfile(text):
        raise RequestError(
            f"{where} is a text that names the image file {text!r}; give Path({text!r}) for the "
            f"image, or Text({text!r}) if the text is meant."
        )


def _read(file: Any, where: str) -> bytes:
    try:
        content = file.read()
    except Exception as error:  # as many classes as there are kinds of files
        raise RequestError(f"{where} is a file that cannot be read: {_line(error)}.") from error
    if not isinstance(content, bytes):
        raise RequestError(
            f"{where} is a file that gives {type(content).__name__}; open images in mode 'rb'."
        )
    return content


def _to_array(tensor: torch.Tensor, where: str) -> np.ndarray:
    try:
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except Exception as error:  # sparse, quantised and meta tensors
        raise RequestError(f"{where} is a tensor without an array: {_line(error)}.") from error


def _line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".!")


def _checked(document: Document) -> Document:
    """Return a document if its segments are what they claim to be."""
    for number, segment in enumerate(document.segments):
        where = f"Segment {number} of the prompt"
        if not isinstance(segment, Text | Image):
            raise RequestError(
                f"{where} is of type {type(segment).__name__}; it must be a Text or an Image."
            )
        if segment.role is not None and segment.role not in ROLES:
            raise RequestError(
                f"{where} has the role {segment.role!r}; it must be one of {', '.join(ROLES)}."
            )
        if isinstance(segment, Text):
            if not isinstance(segment.text, str):
                raise RequestError(
                    f"{where} has a text of type {type(segment.text).__name__}; it must be a str."
                )
            if not is_unicode(segment.text):
                raise RequestError(
                    f"{where} holds broken Unicode: half of a surrogate pair; is the text UTF-8?"
                )
    return document
