"""Documents from a JSONL file: one document a line, its images in files or inside the line.

A line reads ``{"name": "...", "licence": "...", "segments": [...]}``, where a segment is one of

    {"text": "..."}
    {"image": "relative/path.png", "alt": "..."}
    {"image_base64": "...", "alt": "..."}

each with an optional ``"role"`` and an optional ``"weight"`` of its tokens in the loss. Image paths
are relative to the JSONL file. An image may name regions that matter more than the rest of it, in
pixels of the upright image:

    "regions": [{"box": [left, top, right, bottom], "kind": "face", "weight": 2.0}]

Files of earlier versions have ``"picture"`` and ``"picture_base64"`` for the last two.

In place of segments a line may have a task of :data:`pardalis.documents.tasks.TASKS` with its
fields, of which an image is a path:

    {"task": "edit", "image": "day.png", "instruction": "make it night", "edited": "night.png"}

A line without any of these is a row of a table, ``{"text": "An owl.", "image": "owl.png"}``, whose
keys have names in use (:mod:`._columns`); keys of other names are not read.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pardalis.documents.document import (
    MAX_WEIGHT,
    ROLES,
    Box,
    Document,
    Image,
    Region,
    Rejection,
    Segment,
    Text,
    is_unicode,
)
from pardalis.documents.images import from_base64
from pardalis.documents.readers._columns import (
    TEXT_NAMES,
    Place,
    TableOptions,
    first_of,
    row_document,
)
from pardalis.documents.readers._lines import BadRecordError, find_image, read_lines
from pardalis.documents.readers.recognise import expect, layout_of, telling
from pardalis.documents.tasks import task_document, task_of
from pardalis.errors import DataError

_DOCUMENT_KEYS = {"name", "licence", "segments"}
_TASK_KEYS = {"name", "licence", "task"}
_PAIR_KEYS = {"name", "licence", "prompt", "chosen", "rejected"}
_SEGMENT_KEYS = {
    "text": {"text", "role", "weight"},
    "image": {"image", "alt", "role", "regions", "weight"},
    "image_base64": {"image_base64", "alt", "role", "regions", "weight"},
}
_OLD_KEYS = {"picture": "image", "picture_base64": "image_base64"}
_ROW = TableOptions()
# What tells that a line is a row of a table; a prompt is a part of other things, too.
_OF_ROW = tuple(name for name in TEXT_NAMES if name != "prompt")
_REGION_KEYS = {"box", "kind", "weight"}


def read_jsonl(path: Path) -> Iterator[Document | Rejection]:
    """Yield the document of each line; a document without a name is called ``<file stem>:<line>``.

    Raises:
        DataError: there is no such file.
    """
    _require_file(path, "documents")
    folder, stem = path.parent, path.stem

    def parse(line: dict[str, Any], number: int) -> Document:
        return _document(line, folder, f"{stem}:{number}")

    return read_lines(path, telling(parse, "jsonl"))


def read_pairs(path: Path) -> Iterator[Document | Rejection]:
    """Yield two documents of each line, one after the other: prompt with chosen, with rejected.

    A line reads ``{"name": "...", "prompt": ..., "chosen": ..., "rejected": ...}``. Each of the
    last three is a list of segments, or a text, which stands for one segment without a role. The
    weights of the prompt are 0. The documents are called ``name#chosen`` and ``name#rejected``.

    Raises:
        DataError: there is no such file.
    """
    _require_file(path, "pairs")

    def parse(line: dict[str, Any], number: int) -> tuple[Document, Document]:
        return _pair(line, path.parent, f"{path.stem}:{number}")

    lines = read_lines(path, telling(parse, "pairs"))
    return (
        document for item in lines for document in ([item] if isinstance(item, Rejection) else item)
    )


def _require_file(path: Path, content: str) -> None:
    expect(path, f"a JSONL file of {content}", is_folder=False)


def _document(record: dict[str, Any], folder: Path, default_name: str) -> Document:
    if "task" in record:
        return _task(record, folder, default_name)
    if not layout_of(record) and first_of(record, _OF_ROW):
        return row_document(record, Place(folder, Path(folder.anchor), default_name), _ROW)
    _refuse_unknown_keys(record, _DOCUMENT_KEYS, "document")
    document = Document(
        segments=_segments(
            record.get("segments"), 'document needs a list under "segments"', folder
        ),
        name=_string(record, "name", "document") or default_name,
        licence=_string(record, "licence", "document"),
    )
    if document.is_empty:
        raise BadRecordError("empty-document", "The document has neither text nor images.")
    return document


def _task(record: dict[str, Any], folder: Path, default_name: str) -> Document:
    name = _string(record, "name", "document") or default_name
    licence = _string(record, "licence", "document")
    values = {key: _string(record, key, "task") for key in record.keys() - _TASK_KEYS}
    try:
        task = task_of(_string(record, "task", "document"))
        fields = {
            key: find_image(value, folder, f"task names under {key!r} the image")
            if key in task.images
            else value
            for key, value in values.items()
        }
        if task.answer not in fields:
            raise BadRecordError("bad-task", f"The task has no {task.answer!r}, its answer.")
        return task_document(record["task"], fields, name, licence)
    except DataError as error:
        raise BadRecordError("bad-task", str(error)) from error


def _pair(record: dict[str, Any], folder: Path, default_name: str) -> tuple[Document, Document]:
    _refuse_unknown_keys(record, _PAIR_KEYS, "pair")
    name = _string(record, "name", "pair") or default_name
    licence = _string(record, "licence", "pair")
    prompt, chosen, rejected = (
        _part(record, key, folder) for key in ("prompt", "chosen", "rejected")
    )
    prompt = tuple(replace(segment, weight=0.0) for segment in prompt)
    if chosen == rejected:
        raise BadRecordError(
            "equal-pair", 'The pair has the same "chosen" and "rejected"; they must differ.'
        )
    for key, completion in (("chosen", chosen), ("rejected", rejected)):
        if Document(completion).is_empty:
            raise BadRecordError("empty-document", f'The pair has nothing under "{key}".')
    return (
        Document((*prompt, *chosen), f"{name}#chosen", licence),
        Document((*prompt, *rejected), f"{name}#rejected", licence),
    )


def _part(record: dict[str, Any], key: str, folder: Path) -> tuple[Segment, ...]:
    """Return the segments of the prompt or a completion of a pair."""
    value = record.get(key)
    if isinstance(value, str):
        value = [{"text": value}]
    what = f'pair needs a text or a list of segments under "{key}"'
    return _segments(value, what, folder, f"{key}, ")


def _segments(value: Any, what: str, folder: Path, where: str = "") -> tuple[Segment, ...]:
    if not isinstance(value, list):
        raise BadRecordError("bad-record", f"The {what}.")
    return tuple(
        _segment(segment, f"{where}segment {number}", folder)
        for number, segment in enumerate(value)
    )


def _segment(record: Any, where: str, folder: Path) -> Segment:
    keys = [_OLD_KEYS.get(key, key) for key in record] if isinstance(record, dict) else []
    kinds = [key for key in keys if key in _SEGMENT_KEYS]
    if len(kinds) != 1:
        reason = f'{where} must be an object with one of "text", "image" and "image_base64".'
        raise BadRecordError("bad-record", reason)
    record = dict(zip(keys, record.values(), strict=True))
    _refuse_unknown_keys(record, _SEGMENT_KEYS[kinds[0]], where)
    role = record.get("role")
    if role is not None and role not in ROLES:
        reason = f"{where} has the role {role!r}; it must be one of {', '.join(ROLES)}."
        raise BadRecordError("bad-record", reason)
    content = _string(record, kinds[0], where)
    if kinds[0] == "text":
        return Text(content, role, weight_of(record, where))
    alt, regions = _string(record, "alt", where), _regions(record, where)
    if kinds[0] == "image":
        file = find_image(content, folder, f"{where} names the image")
        return Image(file, alt, role, regions, weight_of(record, where))
    try:
        return Image(from_base64(content), alt, role, regions, weight_of(record, where))
    except DataError as error:
        raise BadRecordError("bad-base64", f"{where}: {error}") from error


def weight_of(record: dict[str, Any], where: str) -> float:
    """Return the weight of a segment or a message; raises BadRecordError for a wrong one."""
    weight = record.get("weight", 1.0)
    if not _is_number(weight) or not 0 <= weight <= MAX_WEIGHT:
        raise BadRecordError(
            "bad-weight",
            f"{where} has the weight {weight!r}; it must be a number from 0 to {MAX_WEIGHT:g}.",
        )
    return float(weight)


def _regions(record: dict[str, Any], where: str) -> tuple[Region, ...]:
    regions = record.get("regions", [])
    if not isinstance(regions, list):
        raise BadRecordError("bad-region", f'{where} needs a list under "regions".')
    return tuple(
        _region(region, f"{where}, region {number}") for number, region in enumerate(regions)
    )


def _region(record: Any, where: str) -> Region:
    if not isinstance(record, dict):
        raise BadRecordError("bad-region", f'{where} must be an object with a "box".')
    _refuse_unknown_keys(record, _REGION_KEYS, where)
    weight = record.get("weight", 1.0)
    if not _is_number(weight) or weight <= 0:
        raise BadRecordError("bad-region", f"{where} has the weight {weight!r}; it must exceed 0.")
    kind = _string(record, "kind", where)
    return Region(_box(record.get("box"), where), kind, float(weight))


def _box(value: Any, where: str) -> Box:
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        raise BadRecordError(
            "bad-region",
            f"{where} has the box {value!r}; it must be a list of four numbers: left, top, right "
            "and bottom.",
        )
    left, top, right, bottom = map(float, value)
    if not (left < right and top < bottom):
        raise BadRecordError(
            "bad-region",
            f"{where} has the box {value!r}, which is empty; right must exceed left, and bottom "
            "top.",
        )
    return left, top, right, bottom


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _string(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key, "")
    if not isinstance(value, str) or not is_unicode(value):
        found = "broken Unicode" if isinstance(value, str) else f"a {type(value).__name__}"
        raise BadRecordError("bad-record", f'{where} has {found} under "{key}"; it must be text.')
    return value


def _refuse_unknown_keys(record: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(record.keys() - known)
    if unknown:
        reason = (
            f"{where} has unknown keys {', '.join(unknown)}; known are {', '.join(sorted(known))}."
        )
        raise BadRecordError("unknown-key", reason)
