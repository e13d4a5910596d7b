"""The lines of a file of prompts: reading them, and what each asks for.

In a text file every line is a prompt. In a JSONL file every line is an object. Its ``prompt`` is a
text or a list of texts, ``{"text": ...}`` and ``{"image": path}``, with paths relative to the file.
A prompt with masks, such as ``{"mask": true}`` (:func:`pardalis.inference.mask.to_mask`), is a
document to be filled in.
A ``category`` groups prompts in the report of a study. All other keys are fields of
:class:`GenerationConfig`.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pardalis.documents.document import Text, is_unicode
from pardalis.errors import ConfigError, DataError, RequestError
from pardalis.files import found_at, parse_json, read_bytes, with_line_feeds
from pardalis.inference.generation import GenerationConfig
from pardalis.inference.mask import Mask, is_mask, to_mask

LinePart = Text | Path  # a text, or the path of an image

MOST_BYTES = 1 << 32  # of a file of prompts or completions, which is read whole

_GUIDANCE = (
    "guidance", "image_guidance", "unconditional", "contrastive_alpha", "contrastive_k",
)  # fmt: skip
_LIMITS = ("mode", "max_new_tokens", "max_images")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file of prompts."""

    index: int  # counts prompts from 0
    number: int  # counts lines from 1, blank ones included
    content: str

    def digest(self, parts: Sequence[LinePart | Mask] = ()) -> str:
        """Return a hash of the line and of its images' bytes; raises OSError."""
        digest = hashlib.sha256(self.content.encode())
        for part in parts:
            image = part.image if isinstance(part, Mask) else part
            if isinstance(image, Path):
                with image.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a file that are not blank; raises as :class:`PromptFile`."""
    if path.suffix not in (".txt", ".jsonl"):
        raise RequestError(f"A file of prompts is a .txt or .jsonl file, got {path}.")
    if not path.is_file():
        raise DataError(f"{path} {found_at(path)}; a file of prompts was expected there.")
    try:
        content = with_line_feeds(read_bytes(path, MOST_BYTES).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason}; save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    lines = [(n, line) for n, line in enumerate(content.split("\n"), 1) if line.strip()]
    if not lines:
        raise ConfigError(f"{path} has no prompts; write one on each line.")
    return [Line(index, number, line) for index, (number, line) in enumerate(lines)]


def parse_line(
    line: Line, path: Path, defaults: GenerationConfig
) -> tuple[list[LinePart | Mask], GenerationConfig, int]:
    """Return a line's prompt, its options, and its number among the prompts that share its seed.

    Raises:
        RequestError: the line is not a prompt with known options.
    """
    if path.suffix == ".txt":
        return [Text(line.content)], defaults, line.index
    record = _record(line)
    parts = [
        _mask(part, path.parent) if is_mask(part) else _part(part, path.parent)
        for part in _listed(record.pop("prompt"))
    ]
    record.pop("category", None)
    config = _with_defaults(record, defaults)
    number = 0 if "seed" in record else line.index
    return parts, config, number


def category_of(line: Line, path: Path) -> str:
    """Return the category of a line's prompt; it is empty if there is none.

    Raises:
        RequestError: it is no text.
    """
    category = "" if path.suffix == ".txt" else _record(line).get("category", "")
    if not isinstance(category, str) or not is_unicode(category):
        raise RequestError(f"The category must be a text, got {category!r}.")
    return category


def parse_continuation(line: Line, path: Path) -> tuple[list[LinePart], list[LinePart]]:
    """Return the prompt and the continuation of a line of a file for :func:`pardalis.score`.

    Raises:
        RequestError: the line has not these two keys, or one of them is not a text or a list.
    """
    record = _record(line)
    if record.keys() != {"prompt", "continuation"}:
        raise RequestError(
            'The line must have a "prompt", a "continuation" and nothing else, but it has '
            f"{', '.join(sorted(record))}."
        )
    prompt, continuation = (_parts(record[key], path.parent) for key in ("prompt", "continuation"))
    return prompt, continuation


def parse_question(line: Line, path: Path) -> tuple[list[LinePart], list[str]]:
    """Return the prompt of a line and the texts that are accepted as its answer.

    Raises:
        RequestError: the line has not these two keys, or one of them is wrong.
    """
    record = _record(line)
    if record.keys() != {"prompt", "answers"}:
        raise RequestError(
            'The line must have a "prompt", its "answers" and nothing else, but it has '
            f"{', '.join(sorted(record))}."
        )
    answers = record["answers"]
    if not isinstance(answers, list) or not answers or not all(map(_is_text, answers)):
        raise RequestError('"answers" must be a list of one text or more, none of them empty.')
    return _parts(record["prompt"], path.parent), answers


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _record(line: Line) -> dict[str, Any]:
    """Return the object of a line, which has a prompt; raises RequestError."""
    try:
        record = parse_json(line.content)
    except json.JSONDecodeError as error:
        raise RequestError(
            f"The line is not JSON: {error.msg} at character {error.colno}."
        ) from error
    except ValueError as error:
        raise RequestError(f"The line is not JSON that can be read: {error}.") from error
    if not isinstance(record, dict) or "prompt" not in record:
        raise RequestError('The line must be an object with a "prompt".')
    return record


def common_config(
    lines: Sequence[Line], path: Path, defaults: GenerationConfig
) -> GenerationConfig:
    """Return the options that no line replaces, which can be checked before the first line."""
    own: set[str] = set()
    if path.suffix == ".jsonl":
        records = (json_or_none(line.content.encode()) for line in lines)
        own = own.union(*(record for record in records if isinstance(record, dict)))
    return _reset(defaults, [name for name in _LIMITS if name in own])


def json_or_none(content: bytes) -> Any:
    """Return the value of JSON, or None if it is damaged, like a line cut off by a crash."""
    try:
        value = parse_json(content.decode())
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot be written
    except ValueError:
        return None
    return value


def _with_defaults(own: Mapping[str, Any], defaults: GenerationConfig) -> GenerationConfig:
    """Return a line's options over the defaults.

    The options of guidance belong together: a line that has one of them takes none from the
    defaults.
    """
    if any(name in own for name in _GUIDANCE):
        defaults = _reset(defaults, _GUIDANCE)
    return defaults.with_options(own)


def _reset(config: GenerationConfig, names: Sequence[str]) -> GenerationConfig:
    plain = GenerationConfig()
    return config.with_options({name: getattr(plain, name) for name in names})


def _parts(prompt: Any, folder: Path) -> list[LinePart]:
    return [_part(part, folder) for part in _listed(prompt)]


def _listed(prompt: Any) -> list[Any]:
    return prompt if isinstance(prompt, list) else [prompt]


def _mask(part: Any, folder: Path) -> Mask:
    mask = to_mask(part)
    if mask.image is None:
        return mask
    return replace(mask, image=_part({"image": mask.image}, folder))


def _part(part: Any, folder: Path) -> LinePart:
    match {"text": part} if isinstance(part, str) else part:
        case {"text": str(text), **rest} if not rest:
            if not is_unicode(text):
                raise RequestError("The prompt has invalid Unicode: half of a surrogate pair.")
            return Text(text)
        case {"image": str(name), **rest} if not rest:
            file = folder / name
            if not os.path.isfile(file):  # unlike Path.is_file, it takes a name of any length
                raise RequestError(f"The image {name!r} is not a file in {folder}.")
            return file
    raise RequestError(
        'The prompt must be a text or a list of texts, {"text": ...} and {"image": path}.'
    )
