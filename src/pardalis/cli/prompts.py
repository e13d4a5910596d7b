"""Prompts as a command line or a line of a file has them, and a file of prompts to answers.

A text file has a prompt a line. A line of a JSONL file is an object: ``prompt`` is a text or a list
of texts, ``{"text": ...}`` and ``{"image": path}``, and any of :data:`DEFAULTS` may stand beside
it. Answers are appended as they finish and put in order at the end:

    answers.jsonl      {"index", "prompt", "answer" or "error", "reason", "ids"} for each prompt
    images/          the drawn images, 000012-0.png for the first of prompt 12
    settings.json      what was asked of which bundle, so that only the same run goes on

The ``prompt`` of a record is a digest of the line and of its images' bytes.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pardalis.bundle import Bundle
from pardalis.documents import Document, Image, Text, to_png
from pardalis.documents.writers import write_records
from pardalis.errors import ConfigError, DataError, PardalisError, RequestError
from pardalis.files import output_folder, write_bytes, write_json
from pardalis.inference import (
    Completion,
    Contrastive,
    Engine,
    Finished,
    Guidance,
    ImageGuidance,
    Part,
    Request,
    SamplingConfig,
    to_request,
)
from pardalis.progress import bar

DEFAULTS: dict[str, Any] = {
    "mode": "interleaved",
    "max_new_tokens": None,
    "max_images": None,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "image_temperature": 0.7,
    "image_top_k": 0,
    "image_top_p": 0.9,
    "guidance": 1.0,
    "image_guidance": None,
    "contrastive": None,
    "chat": False,
    "seed": 0,
}
_GUIDES = ("guidance", "image_guidance", "contrastive")
_SHAPE = ("mode", "max_new_tokens", "max_images")
_MODES = ("text", "image", "interleaved")
_WHOLE = ("max_new_tokens", "max_images", "top_k", "image_top_k", "seed")
_FRACTIONS = (
    "temperature", "top_p", "image_temperature", "image_top_p", "guidance", "image_guidance",
)  # fmt: skip
_ANSWERS, _SETTINGS = "answers.jsonl", "settings.json"


def ask(
    bundle: Bundle, prompt: Sequence[Part], options: Mapping[str, Any], number: int = 0
) -> Request:
    """Return the request of a prompt with options named as in :data:`DEFAULTS`.

    Raises:
        PardalisError: it cannot be answered as asked.
    """
    return to_request(
        bundle,
        prompt,
        mode=options["mode"],
        max_new_tokens=options["max_new_tokens"],
        max_images=options["max_images"],
        text=_sampling(options, ""),
        image=_sampling(options, "image_"),
        guidance=_guide(options),
        chat=options["chat"],
        seed=options["seed"],
        number=number,
    )


def _sampling(options: Mapping[str, Any], prefix: str) -> SamplingConfig:
    try:
        return SamplingConfig(
            temperature=options[f"{prefix}temperature"],
            top_k=options[f"{prefix}top_k"],
            top_p=options[f"{prefix}top_p"],
        )
    except RequestError as error:  # which begins with the name of the option
        raise RequestError(f"{prefix}{error}") from error


def _guide(options: Mapping[str, Any]) -> float | ImageGuidance:
    text, image, contrastive = (options[name] for name in _GUIDES)
    if contrastive is None:
        return Guidance(text=text, image=image)
    if text != 1 or image is not None:
        raise RequestError("Guidance and contrastive decoding exclude each other; choose one.")
    alpha, k = contrastive
    if not float(k).is_integer():
        raise RequestError(f"k of contrastive decoding must be a whole number, got {k}.")
    return Contrastive(alpha=float(alpha), k=int(k))


# ── a file of prompts ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Line:
    """A prompt of a file, as it stands there."""

    index: int
    where: str
    content: str

    def digest(self, parts: Sequence[Part] = ()) -> str:
        """Return what an answer remembers its prompt by; raises OSError.

        Args:
            parts: of the prompt, whose images count with their bytes.
        """
        digest = hashlib.sha256(self.content.encode())
        for part in parts:
            if isinstance(part, Path):
                with part.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a file that are not blank.

    Raises:
        ConfigError: all of them are.
        DataError: there is no such file, or it is not UTF-8.
        RequestError: its name ends neither in .txt nor in .jsonl.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise RequestError(f"Prompts are read from a .txt or .jsonl file, got {path}.")
    if not path.is_file():
        raise DataError(f"{path} does not exist; a file of prompts was expected there.")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason}; save it as that.") from error
    lines = [(n, line) for n, line in enumerate(content.split("\n"), 1) if line.strip()]
    if not lines:
        raise ConfigError(f"{path} holds no prompt; write one a line.")
    return [
        Line(index, f"{path.name}:{number}", line.removesuffix("\r"))
        for index, (number, line) in enumerate(lines)
    ]


def parse(
    line: Line, path: Path, defaults: Mapping[str, Any]
) -> tuple[list[Part], dict[str, Any], int]:
    """Return the parts of a line's prompt, its options, and its number among those of its seed.

    Raises:
        RequestError: the line does not say what to ask.
    """
    if path.suffix == ".txt":
        return [line.content], dict(defaults), line.index
    try:
        record = json.loads(line.content)
    except json.JSONDecodeError as error:  # which counts lines of its own
        raise RequestError(
            f"{line.where} is not JSON: {error.msg} at character {error.colno}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{line.where} is not JSON that can be read: {error}.") from error
    if not isinstance(record, dict) or "prompt" not in record:
        raise RequestError(f'{line.where} must be an object with a "prompt".')
    own = _options({k: v for k, v in record.items() if k != "prompt"}, line.where)
    options = _joined(own, defaults)
    prompt = record["prompt"]
    parts = [_part(part, line.where, path.parent) for part in _listed(prompt)]
    return parts, options, 0 if "seed" in own else line.index


def _listed(prompt: Any) -> list[Any]:
    return prompt if isinstance(prompt, list) else [prompt]


def _part(part: Any, where: str, folder: Path) -> Part:
    match {"text": part} if isinstance(part, str) else part:
        case {"text": str(text), **rest} if not rest:
            return _unicode(text, where)
        case {"image": str(name), **rest} if not rest:
            file = folder / name
            if not os.path.isfile(file):  # unlike Path.is_file, it bears a name of any length
                raise RequestError(
                    f"{where} names the image {name!r}, which is not a file in {folder}."
                )
            return file
    raise RequestError(
        f'{where} has a prompt that is neither a text nor a list of texts, {{"text": ...}} and '
        '{"image": path}.'
    )


def _unicode(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{where} holds broken Unicode: half of a surrogate pair.") from error
    return text


def _joined(own: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line's options upon those of all; guidance is taken from one of them as a whole."""
    options = {**defaults, **own}
    guides_itself = any(name in own for name in _GUIDES)
    draws = options["mode"] != "text" and options["max_images"] != 0
    if guides_itself or not draws:
        options |= {name: own.get(name, DEFAULTS[name]) for name in _GUIDES}
    return options


def _options(own: dict[str, Any], where: str) -> dict[str, Any]:
    """Return options of a line, checked; what may be a fraction becomes a float."""
    if unknown := sorted(own.keys() - DEFAULTS.keys()):
        raise RequestError(
            f"{where} has unknown keys {', '.join(unknown)}; known are prompt, "
            f"{', '.join(DEFAULTS)}."
        )
    for name, value in own.items():
        if not _fits(name, value):
            raise RequestError(f"{where} has {json.dumps(value)} under {name!r}; {_needed(name)}.")
    return {name: float(v) if name in _FRACTIONS else v for name, v in own.items()}


def _fits(name: str, value: Any) -> bool:
    match name:
        case "mode":
            return value in _MODES
        case "chat":
            return isinstance(value, bool)
        case "contrastive":
            return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
    return _is_number(value) and (isinstance(value, int) or name not in _WHOLE)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _needed(name: str) -> str:
    match name:
        case "mode":
            return f"it must be one of {', '.join(_MODES)}"
        case "chat":
            return "it must be true or false"
        case "contrastive":
            return "it must be two numbers, alpha and k"
    return f"it must be a {'whole ' if name in _WHOLE else ''}number"


@dataclass(slots=True)
class Summary:
    """What a file of prompts came to; counts are of this run, but for ``requests``."""

    requests: int
    unchanged: int = 0  # answered before and kept
    failed: int = 0
    tokens: int = 0
    images: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    peak_rows: int = 0
    tokens_per_step: float = 0.0
    reused_tokens: int = 0  # prompt ids that another prompt had computed


class PromptFile:
    """Answers the prompts of a file into a folder.

    Args:
        defaults: options of lines that have none of their own, named as in :data:`DEFAULTS`.

    Raises:
        PardalisError: the options can answer no line, or a file stands in place of the folder.
    """

    def __init__(
        self, engine: Engine, path: Path, folder: Path, defaults: Mapping[str, Any]
    ) -> None:
        self.engine, self.path, self.defaults = engine, path, defaults
        self.lines = read_lines(path)
        self._check_options()
        self.folder = output_folder(folder)
        self.summary = Summary(len(self.lines))
        self._open: dict[int, tuple[Line, str, Completion]] = {}

    def _check_options(self) -> None:
        """Refuse the options of all lines once; what lines may say otherwise is left to them."""
        own: set[str] = set()
        if self.path.suffix == ".jsonl":
            records = (_json_or_none(line.content.encode()) for line in self.lines)
            own = own.union(*(record for record in records if isinstance(record, dict)))
        shape = {name: DEFAULTS[name] for name in _SHAPE if name in own}
        ask(self.engine.bundle, [], {**self.defaults, **shape})

    def settle(self, bundle: Path) -> None:
        """Write down what is asked of which bundle, or find that it was the same before.

        Raises:
            ConfigError: the folder holds answers to other options or of another bundle.
        """
        settings = {
            "bundle": str(bundle.resolve()),
            "made_by": self.engine.bundle.made_by,
            "dtype": str(self.engine.bundle.model.embedding.weight.dtype),
            "weights": self.engine.config.weights,
            "options": dict(self.defaults),
        }
        path = self.folder / _SETTINGS
        before = _json_or_none(_bytes(path))
        if before != json.loads(json.dumps(settings)) and any(self._records()):
            held = (
                f"answers, but to what cannot be read from {path}"
                if before is None
                else f"answers of another bundle or to other options, as {path} says"
            )
            raise ConfigError(f"{self.folder} holds {held}; choose another folder, or remove it.")
        write_json(path, settings)

    def run(self) -> Summary:
        """Answer what is not answered yet, and put all answers in order."""
        summary, path = self.summary, self.folder / _ANSWERS
        records = self._kept()
        summary.unchanged = len(records)
        write_records(records.values(), path)
        start = time.monotonic()
        with (
            path.open("a", encoding="utf-8", newline="\n") as file,
            bar("Answering", len(self.lines), "prompts", done=len(records)) as advance,
        ):
            for record in self._answered(line for line in self.lines if line.index not in records):
                records[record["index"]] = record
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                file.flush()
                summary.seconds = time.monotonic() - start
                summary.tokens_per_second = summary.tokens / summary.seconds
                advance(tokens_per_s=summary.tokens_per_second, failed=summary.failed)
        write_records((records[index] for index in sorted(records)), path)
        statistics = self.engine.statistics
        summary.peak_rows = statistics.peak_sequences
        summary.tokens_per_step = summary.tokens / max(statistics.passes, 1)
        summary.reused_tokens = statistics.reused_tokens
        return summary

    def _records(self) -> Iterator[dict[str, Any]]:
        """Yield the answers of an earlier run that are whole, with their images."""
        for content in _bytes(self.folder / _ANSWERS).split(b"\n"):
            match _json_or_none(content):
                case {"index": index, "prompt": str(), "answer": [*segments]} as record:
                    if type(index) is int and all(map(self._is_whole, segments)):
                        yield record

    def _is_whole(self, segment: Any) -> bool:
        match segment:
            case {"text": str(), **rest} if not rest:
                return True
            case {"image": str(name), **rest} if not rest:
                return os.path.isfile(self.folder / name)
        return False

    def _kept(self) -> dict[int, dict[str, Any]]:
        """Return the answers of an earlier run to prompts that are still the same."""
        lines = {line.index: line for line in self.lines}
        return {
            record["index"]: record
            for record in self._records()
            if record["index"] in lines and self._answers(record, lines[record["index"]])
        }

    def _answers(self, record: dict[str, Any], line: Line) -> bool:
        try:
            parts, _, _ = parse(line, self.path, self.defaults)
            return record["prompt"] == line.digest(parts)
        except (RequestError, OSError):
            return False

    def _answered(self, lines: Iterator[Line]) -> Iterator[dict[str, Any]]:
        """Yield records as answers finish; as many are asked at once as keep every row busy."""
        config = self.engine.config
        most = config.max_slots + min(config.max_slots, config.max_waiting)
        for line in lines:
            while len(self._open) >= most:
                yield from self._step()
            try:
                parts, options, number = parse(line, self.path, self.defaults)
                request = ask(self.engine.bundle, parts, options, number)
                digest = line.digest(parts)
                answer = self.engine.submit_request(request)
            except (PardalisError, OSError) as error:
                yield self._failed(line, str(error))
            else:
                self._open[answer.key] = line, digest, answer
        while self._open:
            yield from self._step()

    def _step(self) -> Iterator[dict[str, Any]]:
        for event in self.engine.step():
            if isinstance(event, Finished):
                line, digest, answer = self._open.pop(event.key)
                if answer.document is None:
                    yield self._failed(line, event.error)
                else:
                    yield self._record(line.index, digest, answer.document, event)

    def _failed(self, line: Line, error: str) -> dict[str, Any]:
        self.summary.failed += 1
        return {"index": line.index, "prompt": line.digest(), "error": error}

    def _record(
        self, index: int, digest: str, document: Document, finished: Finished
    ) -> dict[str, Any]:
        self.summary.tokens += finished.usage.completion_tokens
        self.summary.images += finished.usage.images
        segments: list[dict[str, Any]] = []
        n_drawn = 0
        for segment in document.segments:
            if isinstance(segment, Text):
                segments.append({"text": segment.text})
            else:
                segments.append({"image": self._stored(segment, index, n_drawn)})
                n_drawn += 1
        return {
            "index": index,
            "prompt": digest,
            "answer": segments,
            "reason": finished.reason,
            "ids": finished.usage.completion_tokens,
        }

    def _stored(self, image: Image, index: int, number: int) -> str:
        name = f"images/{index:06}-{number}.png"
        write_bytes(self.folder / name, to_png(image.source))
        return name


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _json_or_none(content: bytes) -> Any:
    """Return what JSON says; None if it is broken, as a line that a dying process wrote."""
    try:
        value = json.loads(content.decode())
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot be written
    except (ValueError, RecursionError):
        return None
    return value
