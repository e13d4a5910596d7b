"""The engine: completes many prompts at once and emits events while it generates."""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import PIL.Image

from pardalis import config as configs
from pardalis.bundle import Bundle, as_bundle
from pardalis.codec import Codec
from pardalis.documents import Document, Image, Segment, Text
from pardalis.errors import ConfigError, RequestError
from pardalis.inference.adapters import Adapters, open_adapters
from pardalis.inference.config import EngineConfig
from pardalis.inference.events import (
    DocumentsRetrieved,
    Event,
    EventWriter,
    Finished,
    ImageDone,
    ImageRows,
    LogProbs,
    Usage,
)
from pardalis.inference.generation import GenerationConfig, documents_options, plain_value
from pardalis.inference.image_decoding import ImageDecoder
from pardalis.inference.log_probs import TokenLogProb
from pardalis.inference.prompt import to_request
from pardalis.inference.prompt_parts import Prompt
from pardalis.inference.request import Request, ScoreRequest
from pardalis.inference.response import Response
from pardalis.inference.stop import stop_start
from pardalis.inference.token_loop import FinishReason, LoopStatistics, Progress, TokenLoop
from pardalis.model import LanguageModel
from pardalis.retrieval import Retrieved, Retriever
from pardalis.tokens import Ids, SpanKind, Vocabulary

_LONGEST_WAIT_S = 0.02  # for an image, before a step looks for new requests


@dataclass(slots=True)
class _ActiveRequest:
    """A request until its ``Finished`` is read, with what was generated so far."""

    key: int
    request: Request | ScoreRequest
    writer: EventWriter
    submitted: float
    ids: list[int] = field(default_factory=list)
    unread: deque[Event] = field(default_factory=deque)
    decoding: deque[tuple[int, Future[PIL.Image.Image]]] = field(default_factory=deque)
    images: list[PIL.Image.Image] = field(default_factory=list)
    log_probs: list[TokenLogProb] = field(default_factory=list)
    first_event: float = 0.0
    paused: bool = False
    reason: FinishReason | None = None  # why token generation ended; images may still be missing
    error: str = ""
    finished: Finished | None = None
    document: Response | None = None

    def emit(self, event: Event) -> None:
        self.first_event = self.first_event or time.monotonic()
        self.unread.append(event)

    @property
    def retrieved(self) -> tuple[Retrieved, ...]:
        return self.request.retrieved if isinstance(self.request, Request) else ()

    @property
    def n_pending(self) -> int:
        """Events that the client has not read, with those of images that are being decoded."""
        return len(self.unread) + len(self.decoding)


class Completion:
    """A completion during generation: an iterator over its events that ends after ``Finished``.

    Iteration runs steps of the engine whenever there is no event to read.
    """

    def __init__(self, engine: "Engine", active: _ActiveRequest) -> None:
        self._engine, self._active = engine, active

    @property
    def key(self) -> int:
        """The ``key`` of its events."""
        return self._active.key

    @property
    def finished(self) -> Finished | None:
        """The last event, once the completion has ended."""
        return self._active.finished

    @property
    def document(self) -> Response | None:
        """The completion without its prompt, once it has ended; after an abort, what is whole."""
        return self._active.document

    @property
    def token_ids(self) -> list[int]:
        """The ids of all tokens so far."""
        return self._active.ids

    @property
    def log_probs(self) -> list[TokenLogProb]:
        """The log-probabilities of all tokens so far, if the request asks for them."""
        return self._active.log_probs

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return self._engine.next_event(self._active)

    def poll(self) -> Event | None:
        """Return the next event if there is one, without running the engine."""
        return self._engine.poll(self._active)

    def wait(self) -> Response:
        """Read all events and return the document, with why it ended and what it used.

        Raises:
            RequestError: an image could not be decoded.
        """
        for _ in self:
            pass
        return self._result()

    def _result(self) -> Response:
        if self._active.document is None:
            raise RequestError(self._active.error)
        return self._active.document

    def abort(self) -> None:
        """End the completion early; ``Finished`` follows. Any thread may call this."""
        self._engine.abort(self.key)


class Engine:
    """Completes many prompts at once with one bundle.

    The engine runs while a client reads: by iterating over a :class:`Completion`, or with
    :meth:`step` or :meth:`events`, which return the events of all completions. Each event is read
    once. Any thread may call any method; a call may wait for the step in progress.

    Args:
        bundle: what :func:`pardalis.load` returns, or the path of a bundle, which is loaded.
        config: batch size, memory and execution as one object.
        adapters: folders of adapters by name; the option ``adapter`` of a request names one of
            them, and requests with different ones and without any run in one batch.
        retriever: puts documents of an index before the prompts that :meth:`submit` gets.
        options: fields of :class:`pardalis.EngineConfig`, which replace those of ``config``.

    Raises:
        BundleError, ConfigError: the configuration or an adapter does not fit the model.
        DataError: the retriever's index is of another codec.
    """

    def __init__(
        self,
        bundle: Bundle | Path | str,
        config: EngineConfig | None = None,
        *,
        adapters: Adapters | None = None,
        retriever: Retriever | None = None,
        **options: Any,
    ) -> None:
        self.config = _with_options(config, options)
        self.bundle, self.retriever = as_bundle(bundle), retriever
        if retriever is not None and retriever.documents:
            retriever.require_fits(self.bundle.codec)
        self.adapters = open_adapters(self.bundle, adapters)
        self._loop = TokenLoop(
            self.bundle.model, self.bundle.codec.grammar, self.config, self.adapters
        )
        self._image_decoder = ImageDecoder(self.bundle.codec.image_tokenizer)
        self._active: dict[int, _ActiveRequest] = {}
        self._lock = threading.RLock()
        self._closed = False

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the image decoding thread; unfinished completions stay unfinished."""
        with self._lock:
            self._closed = True
        self._image_decoder.close()

    @property
    def statistics(self) -> LoopStatistics:
        return self._loop.statistics

    @documents_options
    def submit(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        priority: int = 0,
        **options: Any,
    ) -> Completion:
        """Add a request and return its completion, whose events are read while it is generated.

        Args:
            prompt: as :func:`pardalis.generate` takes it.
            config: options as one object.
            priority: requests of higher priority run first.
            options: fields of :class:`pardalis.GenerationConfig`, which replace those of
                ``config``.

        Options:
            {options}

        Raises:
            RequestError, DataError: as :func:`pardalis.generate`, or too many requests wait.
        """
        request = to_request(self.bundle, prompt, config, retriever=self.retriever, **options)
        return self.submit_request(request, priority)

    def submit_request(self, request: Request | ScoreRequest, priority: int = 0) -> Completion:
        """Add a request that :func:`pardalis.inference.to_request` made, or one for scores.

        The events of a :class:`pardalis.inference.ScoreRequest` are ``LogProbs`` and ``Finished``,
        and its document is empty.
        """
        with self._lock:
            self._require_open()
            key = self._loop.submit(request, priority)
            stop = request.stop if isinstance(request, Request) else ()
            codec = self.bundle.codec
            masked = codec.grammar.masked_image(request.prompt_ids)
            writer = EventWriter(key, codec, stop, masked)
            active = self._active[key] = _ActiveRequest(key, request, writer, time.monotonic())
            if active.retrieved:
                active.unread.append(DocumentsRetrieved(key, active.retrieved))
        return Completion(self, active)

    def abort(self, key: int) -> None:
        """End a completion early; an unknown key is ignored."""
        with self._lock:
            self._loop.abort(key)

    def reload(self, model: LanguageModel) -> None:
        """Continue with changed weights, as :meth:`pardalis.inference.TokenLoop.reload` does.

        Raises:
            RequestError: a completion has not ended, or the engine is closed.
            ConfigError: the model is not of the same config.
        """
        with self._lock:
            self._require_open()
            self._loop.reload(model)
            self.bundle = replace(self.bundle, model=model)

    @property
    def idle(self) -> bool:
        """Whether every completion has ended and was read."""
        return not self._active

    @property
    def has_work(self) -> bool:
        """Whether :meth:`advance` would do anything before a client reads or submits."""
        with self._lock:
            return not self._loop.idle or any(a.decoding for a in self._active.values())

    def events(self) -> Iterator[Event]:
        """Yield the events of all completions until the engine is idle."""
        while not self.idle:
            yield from self.step()

    def step(self) -> list[Event]:
        """Run one step and return the unread events of all completions, each in its order."""
        self.advance()
        with self._lock:
            requests = list(self._active.values())
            return [self._read(active) for active in requests for _ in range(len(active.unread))]

    def next_event(self, active: _ActiveRequest) -> Event:
        """Return the next event of one completion after as many steps as that takes.

        Raises:
            StopIteration: all its events were read.
        """
        while True:
            with self._lock:
                if active.unread:
                    return self._read(active)
                if active.finished is not None:
                    raise StopIteration
            self.advance()

    def poll(self, active: _ActiveRequest) -> Event | None:
        """Return the next event of one completion; None if there is none yet."""
        with self._lock:
            return self._read(active) if active.unread else None

    def _read(self, active: _ActiveRequest) -> Event:
        event = active.unread.popleft()
        if event is active.finished:
            del self._active[active.key]
        if active.paused and active.n_pending <= self.config.max_unread_events // 2:
            self._pause(active, False)
        return event

    def _pause(self, active: _ActiveRequest, paused: bool) -> None:
        active.paused = paused
        self._loop.pause(active.key, paused)

    def _require_open(self) -> None:
        if self._closed:
            raise RequestError("The engine is closed; make a new one.")

    def advance(self) -> None:
        """Run one step; its events can be read afterwards."""
        with self._lock:
            waiting = self._active.values() if self._loop.idle else ()
            futures = [future for active in waiting for _, future in active.decoding]
        wait(futures, _LONGEST_WAIT_S, FIRST_COMPLETED)
        with self._lock:
            self._require_open()
            for progress in self._loop.step():
                active = self._active.get(progress.key)
                if active is not None and active.reason is None:  # not stopped before
                    self._record(active, progress)
            for active in self._active.values():
                if active.finished is not None:
                    continue
                self._collect_images(active)
                if active.reason is not None and not active.decoding:
                    self._finish(active)
                elif active.n_pending > self.config.max_unread_events and not active.paused:
                    self._pause(active, True)

    def _record(self, active: _ActiveRequest, progress: Progress) -> None:
        """Emit the events of new tokens and submit images whose codes are complete."""
        grid = self.bundle.codec.image_tokenizer.config.grid
        is_score = isinstance(active.request, ScoreRequest)
        for event in () if is_score else active.writer.write(progress.ids):
            active.emit(event)
            if isinstance(event, ImageRows) and event.rows == grid:
                active.decoding.append((event.index, self._image_decoder.submit(event.codes)))
        if progress.finished is not None:
            active.reason = progress.finished
            for delta in active.writer.end():
                active.emit(delta)
        n_new = len(progress.ids)
        if active.writer.stopped:
            active.reason = "stop"
            self._loop.abort(active.key)
            n_new = active.writer.n_ids - len(active.ids)
        active.ids += progress.ids[:n_new]
        if log_probs := tuple(progress.log_probs[:n_new]):
            active.log_probs += log_probs
            active.emit(LogProbs(active.key, log_probs))

    def _collect_images(self, active: _ActiveRequest) -> None:
        """Emit the images that are decoded, in their order."""
        while active.decoding and active.decoding[0][1].done():
            index, future = active.decoding.popleft()
            if error := future.exception():
                active.error = active.error or f"An image could not be decoded: {error}"
                self._loop.abort(active.key)
            else:
                active.images.append(future.result())
                active.emit(ImageDone(active.key, index, future.result()))

    def _finish(self, active: _ActiveRequest) -> None:
        assert active.reason is not None
        now = time.monotonic()
        vocabulary = self.bundle.codec.vocabulary
        usage = Usage(
            prompt_tokens=len(active.request.prompt_ids),
            prompt_image_tokens=_n_image_tokens(vocabulary, active.request.prompt_ids),
            completion_tokens=len(active.ids),
            completion_image_tokens=_n_image_tokens(vocabulary, active.ids),
            images=len(active.images),
            seconds=now - active.submitted,
            first_event_s=(active.first_event or now) - active.submitted,
        )
        if not active.error:
            document = _document(self.bundle.codec, active)
            active.document = Response(
                document.segments,
                reason=active.reason,
                usage=usage,
                log_probs=tuple(active.log_probs),
                retrieved=active.retrieved,
            )
        reason = "failed" if active.error else active.reason
        active.finished = Finished(active.key, reason, usage, active.error)
        active.emit(active.finished)


def _with_options(config: object, options: dict[str, Any]) -> EngineConfig:
    """Return a config, or the default one, with options over it; raises ConfigError."""
    if not isinstance(config, EngineConfig | None):
        raise ConfigError(
            f"config must be an EngineConfig, got {type(config).__name__}; give its fields as "
            "keyword arguments."
        )
    plain = {name: plain_value(name, value) for name, value in options.items()}
    return configs.from_dict(EngineConfig, {**asdict(config or EngineConfig()), **plain})


def _n_image_tokens(vocabulary: Vocabulary, ids: Ids) -> int:
    codes, marks = vocabulary.image, (vocabulary.begin_image_id, vocabulary.end_image_id)
    return sum(token_id in codes or token_id in marks for token_id in ids)


def _document(codec: Codec, active: _ActiveRequest) -> Document:
    """Return what was generated; in a conversation, the assistant's turn without ``end_turn``."""
    if isinstance(active.request, ScoreRequest):
        return Document(())
    if active.writer.masked_image is not None:
        return Document(tuple(map(Image, active.images)))
    spans = codec.grammar.spans(active.ids)
    if len(active.images) < active.writer.images:  # aborted inside an image
        spans.pop()
    in_conversation = active.request.limits.one_turn
    if in_conversation and spans and spans[-1].kind is SpanKind.END_TURN:
        spans.pop()
    ids = active.ids[: spans[-1].stop if spans else 0]
    completion = codec.decode([codec.vocabulary.bos_id, *ids], images=active.images)
    segments = list(completion.segments)
    if active.writer.stopped:
        segments[-1:] = _until_stop(segments[-1], active.request.stop)
    if in_conversation:
        segments = [replace(segment, role="assistant") for segment in segments]
    return replace(completion, segments=tuple(segments))


def _until_stop(segment: Segment, stop: Sequence[str]) -> list[Segment]:
    """Return a text without its stop string and what follows; nothing, if that is all of it."""
    assert isinstance(segment, Text)
    text = segment.text[: stop_start(segment.text, stop)]
    return [replace(segment, text=text)] if text else []
