"""Tasks of instruction tuning in CM3Leon's manner: an instruction, and what answers it.

A task is a document without roles, of which all is learnt (arXiv 2309.02591, section 5). The paper
shows the words of ``edit``; the other words are ours.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pardalis.documents.document import Document, Image, ImageSource, Segment, Text
from pardalis.errors import DataError

_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Task:
    """A template; ``{name}`` stands for a field, which is a text or an image.

    Attributes:
        prompt: the instruction.
        answer: the name of the field that answers it.
        images: the names of those fields that are images.
        options: of generation, by the names of :class:`pardalis.GenerationConfig`; the scales of
            guidance are those of the paper.
    """

    prompt: str
    answer: str
    images: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt_fields(self) -> tuple[str, ...]:
        """The fields of the instruction, in their order."""
        return tuple(_FIELD.findall(self.prompt))

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields, the answer last."""
        return (*self.prompt_fields, self.answer)


_TO_IMAGE = {"mode": "image"}
_TO_TEXT = {"mode": "text"}

TASKS = {
    "edit": Task(
        "Edit first image following the instruction {image} {instruction} ",
        "edited",
        ("image", "edited"),
        _TO_IMAGE | {"guidance": 7.5, "image_guidance": 1.5},
    ),
    "structure": Task(  # kind: edges, segmentation, depth, pose, normals, scribble, ...
        "Make an image with the {kind} of the first image {structure} {caption} ",
        "image",
        ("structure", "image"),
        _TO_IMAGE | {"guidance": 3.0},
    ),
    "grounding": Task(  # objects: names with boxes, such as "owl 120 80 430 390"
        "Make an image of {caption} with {objects} ", "image", ("image",), _TO_IMAGE
    ),
    "caption": Task("Describe the image {image} ", "caption", ("image",), _TO_TEXT),
    "vqa": Task("Answer the question {image} {question} ", "answer", ("image",), _TO_TEXT),
}


def task_document(
    task: str, fields: Mapping[str, str | ImageSource | Image], name: str = "", licence: str = ""
) -> Document:
    """Return the document of a task; without its answer among the fields, the prompt of one.

    Raises:
        DataError: there is no such task, or fields are missing or unknown.
    """
    found = task_of(task)
    known, needed = found.fields, found.prompt_fields
    missing = [each for each in needed if each not in fields]
    if missing or (unknown := [each for each in fields if each not in known]):
        wrong = f"has no {missing[0]!r}" if missing else f"has an unknown field {unknown[0]!r}"
        raise DataError(f"A task {task!r} {wrong}; its fields are {', '.join(known)}.")
    texts = _FIELD.split(found.prompt)  # text, field, text, ...
    segments: list[Segment] = []
    for number, part in enumerate([*texts, found.answer] if found.answer in fields else texts):
        is_field = number % 2 == 1 or number == len(texts)
        _add(segments, _segment(found, part, fields[part]) if is_field else Text(part))
    if found.answer not in fields and isinstance(last := segments[-1], Text):
        segments[-1] = Text(last.text.rstrip(" "))  # the space belongs to the answer's first token
    return Document(tuple(segments), name, licence)


def task_of(name: str) -> Task:
    """Return a task of the table; raises DataError if there is none of this name."""
    if name not in TASKS:
        raise DataError(f"There is no task {name!r}; choose one of {', '.join(TASKS)}.")
    return TASKS[name]


def _segment(task: Task, name: str, value: Any) -> Segment:
    if name in task.images:
        if isinstance(value, str):
            raise DataError(f"The field {name!r} of a task is a text; it must be an image.")
        return value if isinstance(value, Image) else Image(value)
    if not isinstance(value, str):
        raise DataError(f"The field {name!r} of a task must be a text.")
    return Text(value)


def _add(segments: list[Segment], segment: Segment) -> None:
    """Append a segment; texts that follow each other are one, and none stands between images."""
    if isinstance(segment, Image):
        if segments and isinstance(last := segments[-1], Text):
            segments[-1:] = [Text(kept)] if (kept := last.text.rstrip(" ")) else []
        segments.append(segment)
        return
    if segments and isinstance(last := segments[-1], Text):
        segments[-1] = Text(last.text + segment.text)
    elif text := segment.text.lstrip(" "):
        segments.append(Text(text))
