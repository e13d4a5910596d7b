"""Completing a file of prompts into a folder, in a way that can be interrupted and resumed.

:mod:`pardalis.inference.prompt_lines` describes the file. The folder gets

    completions.jsonl   {"index", "prompt", "completion" or "error", "reason", "tokens"} per prompt,
                        with "logprobs" if they are asked for, and what was "retrieved" or "filled"
    images/             the generated images, 000012-0.png for the first one of prompt 12
    settings.json       the bundle and the options, so that only the same run resumes
    LICENCES.md         the licences of the index whose documents are retrieved, if any are

The ``prompt`` of a record is a hash of the line and of its images' bytes. Records are appended as
completions finish and are sorted at the end. The completion of a line with masks is the whole
document.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pardalis.bundle import LICENCES
from pardalis.documents import Document, Text, to_png
from pardalis.documents.writers import write_records
from pardalis.errors import ConfigError, PardalisError, RequestError
from pardalis.files import (
    is_bare_name,
    output_folder,
    plain,
    read_bytes,
    write_bytes,
    write_json,
    write_text,
)
from pardalis.inference.engine import Completion, Engine
from pardalis.inference.events import Finished
from pardalis.inference.generation import GenerationConfig, documents_options
from pardalis.inference.infilling import Infilling
from pardalis.inference.mask import Mask
from pardalis.inference.prompt import to_request
from pardalis.inference.prompt_lines import (
    MOST_BYTES,
    Line,
    LinePart,
    common_config,
    json_or_none,
    parse_line,
    read_lines,
)
from pardalis.inference.request import Request
from pardalis.inference.response import Response
from pardalis.progress import bar

COMPLETIONS = "completions.jsonl"
_SETTINGS = "settings.json"
_OLD_COMPLETIONS = "answers.jsonl"


@dataclass(slots=True)
class Summary:
    """Counts and speed of one run; all but ``requests`` leave out what earlier runs completed."""

    requests: int  # prompts in the file
    unchanged: int = 0  # completed by an earlier run and kept
    failed: int = 0
    tokens: int = 0
    images: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    peak_sequences: int = 0
    tokens_per_step: float = 0.0
    reused_tokens: int = 0  # prompt tokens whose keys and values another prompt had computed


@dataclass(frozen=True, slots=True)
class _Open:
    """A line whose completion, or what fills its next mask, is being generated."""

    line: Line
    digest: str
    completion: Completion
    infilling: Infilling | None  # None: a line without masks


@documents_options
class PromptFile:
    """Completes the prompts of a file into a folder.

        with Engine(bundle) as engine:
            summary = PromptFile(engine, Path("prompts.jsonl"), Path("completions")).run()

    Args:
        path: a .txt file with a prompt on each line, or a .jsonl file with an object on each line.
        folder: receives completions.jsonl and images/; an interrupted run resumes from it.
        config: options of all lines as one object; a JSONL line may replace any of them.
        bundle_path: where the bundle was loaded from; a folder resumes only with the same path.
        options: fields of :class:`GenerationConfig`, which replace those of ``config``.

    Options:
        {options}

    Raises:
        ConfigError: the file has no prompts, or the folder cannot be written or resumed.
        DataError: the file does not exist or is not UTF-8.
        RequestError: an option is wrong or fits no line, or the file is neither .txt nor .jsonl.
    """

    def __init__(
        self,
        engine: Engine,
        path: Path,
        folder: Path,
        config: GenerationConfig | None = None,
        *,
        bundle_path: Path | None = None,
        **options: Any,
    ) -> None:
        self.engine, self.path, self.bundle_path = engine, path, bundle_path
        self.config = GenerationConfig.of(config, options)
        self.lines = read_lines(path)
        to_request(engine.bundle, [], common_config(self.lines, path, self.config))  # checks it
        if (folder / _OLD_COMPLETIONS).exists():
            raise ConfigError(
                f"{folder} holds {_OLD_COMPLETIONS}, which an older version wrote; choose another "
                "folder, or remove it."
            )
        self.folder = output_folder(folder)
        self.completions = self.folder / COMPLETIONS
        self.summary = Summary(len(self.lines))
        self._open: dict[int, _Open] = {}

    def run(self) -> Summary:
        """Complete the prompts that have no completion yet; sort all records.

        A prompt that fails gets a record with its ``error``; the others are completed.

        Raises:
            ConfigError: the folder holds completions of another bundle or with other options.
        """
        self._check_settings()
        summary, path = self.summary, self.completions
        records = self._kept()
        summary.unchanged = len(records)
        write_records(records.values(), path)
        start = time.monotonic()
        with (
            path.open("a", encoding="utf-8", newline="\n") as file,
            bar("Generating", len(self.lines), "prompts", done=len(records)) as advance,
        ):
            for record in self._complete(line for line in self.lines if line.index not in records):
                records[record["index"]] = record
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                file.flush()
                summary.seconds = time.monotonic() - start
                summary.tokens_per_second = summary.tokens / summary.seconds
                advance(tokens_per_s=summary.tokens_per_second, failed=summary.failed)
        write_records((records[index] for index in sorted(records)), path)
        statistics = self.engine.statistics
        summary.peak_sequences = statistics.peak_sequences
        summary.tokens_per_step = summary.tokens / max(statistics.passes, 1)
        summary.reused_tokens = statistics.reused_tokens
        return summary

    def _check_settings(self) -> None:
        """Write settings.json, or check that completions were generated with the same ones."""
        settings = {
            "bundle": str(self.bundle_path.resolve()) if self.bundle_path else None,
            "made_by": self.engine.bundle.made_by,
            "dtype": str(self.engine.bundle.model.head.weight.dtype),
            "weights": self.engine.config.weights,
            "options": asdict(self.config),
        }
        if adapters := self.engine.adapters:
            settings["adapters"] = {name: each.digest for name, each in adapters.items()}
        if self.engine.retriever is not None:
            settings["retrieval"] = self.engine.retriever.facts()
        path = self.folder / _SETTINGS
        before = json_or_none(_bytes(path))
        if isinstance(before, dict) and isinstance(before.get("options"), dict):
            # An option that is newer than the folder had its default.
            before["options"] = plain(asdict(GenerationConfig())) | before["options"]
        if before != plain(settings) and any(read_completions(self.folder)):
            found = (
                f"completions, but their settings cannot be read from {path}"
                if before is None
                else f"completions of another bundle or with other options (see {path})"
            )
            raise ConfigError(f"{self.folder} holds {found}; choose another folder, or remove it.")
        write_json(path, settings)
        if self.engine.retriever is not None and (text := self.engine.retriever.index.licences):
            write_text(self.folder / LICENCES, text)

    def _kept(self) -> dict[int, dict[str, Any]]:
        """Return the completions of earlier runs whose prompts have not changed, by index."""
        lines = {line.index: line for line in self.lines}
        return {
            record["index"]: record
            for record in read_completions(self.folder)
            if record["index"] in lines and record["prompt"] == self._digest(lines[record["index"]])
        }

    def _digest(self, line: Line) -> str | None:
        try:
            return line.digest(parse_line(line, self.path, self.config)[0])
        except (RequestError, OSError):
            return None

    def _complete(self, lines: Iterable[Line]) -> Iterator[dict[str, Any]]:
        """Yield records as completions finish; enough requests are open to fill every slot."""
        config = self.engine.config
        max_open = config.max_slots + min(config.max_slots, config.max_waiting)
        for line in lines:
            while len(self._open) >= max_open:
                yield from self._step()
            try:
                parts, options, number = parse_line(line, self.path, self.config)
                infilling, request = self._request(parts, options, number)
                self._submit(line, line.digest(parts), infilling, request)
            except (PardalisError, OSError) as error:
                yield self._failed(line, str(error))
        while self._open:
            yield from self._step()

    def _request(
        self, parts: list[LinePart | Mask], config: GenerationConfig, number: int
    ) -> tuple[Infilling | None, Request]:
        """Return the request of a line, or the first one of a line with masks."""
        bundle, retriever = self.engine.bundle, self.engine.retriever
        plain_parts = [part for part in parts if not isinstance(part, Mask)]
        if len(plain_parts) == len(parts):
            return None, to_request(bundle, plain_parts, config, number=number, retriever=retriever)
        if retriever is not None:
            raise RequestError(
                "The line has masks, which are filled without retrieved documents; leave "
                "`retrieve` out, or put the line in another file."
            )
        infilling = Infilling(bundle, parts, config, number=number)
        return infilling, infilling.request()

    def _submit(
        self, line: Line, digest: str, infilling: Infilling | None, request: Request
    ) -> None:
        completion = self.engine.submit_request(request)
        self._open[completion.key] = _Open(line, digest, completion, infilling)

    def _step(self) -> Iterator[dict[str, Any]]:
        for event in self.engine.step():
            if isinstance(event, Finished):
                yield from self._finished(self._open.pop(event.key), event.error)

    def _finished(self, done: _Open, error: str) -> Iterator[dict[str, Any]]:
        response, infilling = done.completion.document, done.infilling
        if response is None:
            yield self._failed(done.line, error)
            return
        if infilling is not None:
            infilling.add(done.completion)
            if infilling.is_open:
                try:
                    self._submit(done.line, done.digest, infilling, infilling.request())
                except RequestError as too_long:
                    yield self._failed(done.line, str(too_long))
                return
            response = infilling.response()
        yield self._record(done.line.index, done.digest, response)

    def _failed(self, line: Line, error: str) -> dict[str, Any]:
        self.summary.failed += 1
        where = f"{self.path.name}:{line.number}"
        return {"index": line.index, "prompt": line.digest(), "error": f"{where}: {error}"}

    def _record(self, index: int, digest: str, response: Response) -> dict[str, Any]:
        self.summary.tokens += response.usage.completion_tokens
        self.summary.images += response.usage.images
        names: dict[int, str] = {}  # of the images, by the identity of their segments
        for segment in response.segments:
            if not isinstance(segment, Text):
                name = names[id(segment)] = f"images/{index:06}-{len(names)}.png"
                write_bytes(self.folder / name, to_png(segment.source))

        def written(document: Document) -> list[dict[str, str]]:
            return [
                {"text": segment.text}
                if isinstance(segment, Text)
                else {"image": names[id(segment)]}
                for segment in document.segments
            ]

        record = {
            "index": index,
            "prompt": digest,
            "completion": written(response),
            "reason": response.reason,
            "tokens": response.usage.completion_tokens,
        }
        if response.filled:
            record["filled"] = [written(each) for each in response.filled]
        if response.log_probs:
            record["logprobs"] = [asdict(token) for token in response.log_probs]
        if response.retrieved:
            record["retrieved"] = [asdict(each) for each in response.retrieved]
        return record


def read_completions(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the undamaged completions of a folder whose images exist."""
    for content in _bytes(folder / COMPLETIONS).split(b"\n"):
        match json_or_none(content):
            case {"index": index, "prompt": str(), "completion": [*segments]} as record:
                if type(index) is int and all(_is_whole(segment, folder) for segment in segments):
                    yield record


def _is_whole(segment: Any, folder: Path) -> bool:
    match segment:
        case {"text": str(), **rest} if not rest:
            return True
        case {"image": str(name), **rest} if not rest:
            images, _, file = name.partition("/")
            return images == "images" and is_bare_name(file) and os.path.isfile(folder / name)
    return False


def _bytes(path: Path) -> bytes:
    return read_bytes(path, MOST_BYTES) if path.exists() else b""
