"""The engine: many prompts at once, and events as their answers are written."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from types import TracebackType

import PIL.Image

from pardalis.bundle import Bundle
from pardalis.codec import Codec
from pardalis.documents import Document
from pardalis.errors import RequestError
from pardalis.inference.config import EngineConfig
from pardalis.inference.drawing import Drawer
from pardalis.inference.events import (
    Event,
    EventWriter,
    Finished,
    ImageDone,
    ImageRows,
    Usage,
)
from pardalis.inference.prompt import GenerationMode, Prompt, to_request
from pardalis.inference.request import ImageGuidance, Request, SamplingConfig
from pardalis.inference.token_loop import FinishReason, LoopStatistics, Progress, TokenLoop
from pardalis.tokens import SpanKind

_LONGEST_WAIT_S = 0.02  # for an image, before a step looks for new requests


@dataclass(slots=True)
class _OpenRequest:
    """A request while it is answered, and its answer."""

    key: int
    request: Request
    writer: EventWriter
    submitted: float
    ids: list[int] = field(default_factory=list)
    unread: deque[Event] = field(default_factory=deque)
    drawings: deque[tuple[int, Future[PIL.Image.Image]]] = field(default_factory=deque)
    images: list[PIL.Image.Image] = field(default_factory=list)
    first_event: float = 0.0
    paused: bool = False
    reason: FinishReason | None = None  # why writing ended; images may still be missing
    error: str = ""
    finished: Finished | None = None
    document: Document | None = None

    def tell(self, event: Event) -> None:
        self.first_event = self.first_event or time.monotonic()
        self.unread.append(event)

    @property
    def pending(self) -> int:
        """Events that wait for the client, those that images will become included."""
        return len(self.unread) + len(self.drawings)


class Completion:
    """An answer while it is written: an iterator over its events, which ends after ``Finished``.

    Iterating makes the engine work whenever there is nothing to read.
    """

    def __init__(self, engine: "Engine", job: _OpenRequest) -> None:
        self._engine, self._job = engine, job

    @property
    def key(self) -> int:
        """The ``key`` of its events."""
        return self._job.key

    @property
    def finished(self) -> Finished | None:
        """The last event, once the answer is complete."""
        return self._job.finished

    @property
    def document(self) -> Document | None:
        """The answer without its prompt, once it is complete; aborted, its complete parts."""
        return self._job.document

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return self._engine.next_event(self._job)

    def wait(self) -> Document:
        """Read the events to the last and return the answer.

        Raises:
            RequestError: an image could not be decoded.
        """
        for _ in self:
            pass
        if self._job.document is None:
            raise RequestError(self._job.error)
        return self._job.document

    def abort(self) -> None:
        """End the answer where it is; ``Finished`` follows. It may be called in any thread."""
        self._engine.abort(self.key)


class Engine:
    """Answers many prompts at once with one bundle.

    It works while someone reads: by iterating an answer, or with :meth:`step` or :meth:`events`,
    which take the events of all answers. Each event is read once. All methods may be called in any
    thread; a step of the model is as long as another may have to wait.

    Raises:
        BundleError, ConfigError: the configuration does not fit the model.
    """

    def __init__(self, bundle: Bundle, config: EngineConfig | None = None) -> None:
        self.bundle = bundle
        self.config = config or EngineConfig()
        self._loop = TokenLoop(bundle.model, bundle.codec.grammar, self.config)
        self._drawer = Drawer(bundle.codec.image_tokenizer)
        self._jobs: dict[int, _OpenRequest] = {}  # until their Finished is read
        self._lock = threading.RLock()
        self._closed = False

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the thread that decodes images; unfinished answers stay unfinished."""
        with self._lock:
            self._closed = True
        self._drawer.close()

    @property
    def statistics(self) -> LoopStatistics:
        return self._loop.statistics

    def submit(
        self,
        prompt: Prompt,
        *,
        mode: GenerationMode = "interleaved",
        max_new_tokens: int | None = None,
        max_images: int | None = None,
        text: SamplingConfig | None = None,
        image: SamplingConfig | None = None,
        guidance: float | ImageGuidance = 1.0,
        chat: bool = False,
        seed: int = 0,
        priority: int = 0,
    ) -> Completion:
        """Begin to answer a prompt; arguments and errors as of :func:`pardalis.generate`.

        Args:
            priority: the higher goes first.

        Raises:
            RequestError: also when too many requests wait.
        """
        request = to_request(
            self.bundle,
            prompt,
            mode=mode,
            max_new_tokens=max_new_tokens,
            max_images=max_images,
            text=text,
            image=image,
            guidance=guidance,
            chat=chat,
            seed=seed,
        )
        return self.submit_request(request, priority)

    def submit_request(self, request: Request, priority: int = 0) -> Completion:
        """Begin to answer what :func:`pardalis.inference.to_request` made of a prompt."""
        with self._lock:
            self._must_be_open()
            key = self._loop.submit(request, priority)
            writer = EventWriter(key, self.bundle.codec)
            job = self._jobs[key] = _OpenRequest(key, request, writer, time.monotonic())
        return Completion(self, job)

    def abort(self, key: int) -> None:
        """End an answer where it is; an unknown key is ignored."""
        with self._lock:
            self._loop.abort(key)

    @property
    def idle(self) -> bool:
        """Whether every answer is complete and read."""
        return not self._jobs

    def events(self) -> Iterator[Event]:
        """Yield the events of all answers until each is complete and read."""
        while not self.idle:
            yield from self.step()

    def step(self) -> list[Event]:
        """Run one step and return the events of all answers, those of each in order."""
        self._advance()
        with self._lock:
            jobs = list(self._jobs.values())
            return [self._read(job) for job in jobs for _ in range(len(job.unread))]

    def next_event(self, job: _OpenRequest) -> Event:
        """Return an answer's next event, after as many steps as it takes; raises StopIteration."""
        while True:
            with self._lock:
                if job.unread:
                    return self._read(job)
                if job.finished is not None:
                    raise StopIteration
            self._advance()

    def _read(self, job: _OpenRequest) -> Event:
        event = job.unread.popleft()
        if event is job.finished:
            del self._jobs[job.key]
        if job.paused and job.pending <= self.config.max_unread_events // 2:
            self._pause(job, False)
        return event

    def _pause(self, job: _OpenRequest, paused: bool) -> None:
        job.paused = paused
        self._loop.pause(job.key, paused)

    def _must_be_open(self) -> None:
        if self._closed:
            raise RequestError("The engine is closed; ask another.")

    def _advance(self) -> None:
        with self._lock:
            jobs = self._jobs.values() if self._loop.idle else ()
            drawings = [drawing for job in jobs for _, drawing in job.drawings]
        wait(drawings, _LONGEST_WAIT_S, FIRST_COMPLETED)
        with self._lock:
            self._must_be_open()
            for progress in self._loop.step():
                self._take(self._jobs[progress.key], progress)
            for job in self._jobs.values():
                if job.finished is not None:
                    continue
                self._collect(job)
                if job.reason is not None and not job.drawings:
                    self._finish(job)
                elif job.pending > self.config.max_unread_events and not job.paused:
                    self._pause(job, True)

    def _take(self, job: _OpenRequest, progress: Progress) -> None:
        """Tell what was written, and have images drawn whose codes are complete."""
        job.ids += progress.ids
        for event in job.writer.write(progress.ids):
            job.tell(event)
            if isinstance(event, ImageRows) and event.rows == self._grid:
                job.drawings.append((event.index, self._drawer.draw(event.codes)))
        if progress.finished is not None:
            job.reason = progress.finished
            for delta in job.writer.end():
                job.tell(delta)

    @property
    def _grid(self) -> int:
        return self.bundle.codec.image_tokenizer.config.grid

    def _collect(self, job: _OpenRequest) -> None:
        """Tell which images are decoded."""
        while job.drawings and job.drawings[0][1].done():
            number, drawing = job.drawings.popleft()
            if error := drawing.exception():
                job.error = job.error or f"An image could not be decoded: {error}"
                self._loop.abort(job.key)
            else:
                job.images.append(drawing.result())
                job.tell(ImageDone(job.key, number, drawing.result()))

    def _finish(self, job: _OpenRequest) -> None:
        assert job.reason is not None
        if not job.error:
            job.document = _document(self.bundle.codec, job)
        now = time.monotonic()
        usage = Usage(
            prompt_tokens=len(job.request.prompt_ids),
            completion_tokens=len(job.ids),
            images=len(job.images),
            seconds=now - job.submitted,
            first_event_s=(job.first_event or now) - job.submitted,
        )
        reason = "failed" if job.error else job.reason
        job.finished = Finished(job.key, reason, usage, job.error)
        job.tell(job.finished)


def _document(codec: Codec, job: _OpenRequest) -> Document:
    """Return what was written; in a conversation it is the assistant's turn, without its end."""
    spans = codec.grammar.spans(job.ids)
    if len(job.images) < job.writer.images:  # aborted inside an image
        spans.pop()
    in_conversation = job.request.limits.one_turn
    if in_conversation and spans and spans[-1].kind is SpanKind.END_TURN:
        spans.pop()
    ids = job.ids[: spans[-1].stop if spans else 0]
    answer = codec.decode([codec.vocabulary.bos_id, *ids], images=job.images)
    if not in_conversation:
        return answer
    return replace(answer, segments=tuple(replace(s, role="assistant") for s in answer.segments))
