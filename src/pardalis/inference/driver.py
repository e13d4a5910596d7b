"""A thread that runs one engine for consumers in other threads, as a server needs it."""

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from pardalis.errors import RequestError
from pardalis.inference.engine import Completion, Engine
from pardalis.inference.events import Event, Finished
from pardalis.inference.generation import GenerationConfig, documents_options
from pardalis.inference.prompt import to_request
from pardalis.inference.prompt_parts import Prompt
from pardalis.inference.request import Request, ScoreRequest
from pardalis.inference.response import Response

T = TypeVar("T")

_BUFFER = 64  # events that a stream holds; later ones wait in the engine


@dataclass(frozen=True, slots=True)
class _End:
    """The last item of a stream, which stays there."""

    message: str = ""  # why the events end early
    cause: BaseException | None = None


class _Items:
    """A queue of items that a thread waits for in ``get``, a coroutine in ``get_async``."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Event | _End] = SimpleQueue()
        self._waiting: set[Callable[[], object]] = set()  # each wakes one coroutine

    def put(self, item: Event | _End) -> None:
        self._queue.put(item)
        for wake in tuple(self._waiting):
            with suppress(RuntimeError):  # its event loop is closed
                wake()

    def get(self) -> Event | _End:
        return self._queue.get()

    async def get_async(self) -> Event | _End:
        """Wait for an item without holding up the event loop; none is lost by a cancellation."""
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        wake = partial(loop.call_soon_threadsafe, arrived.set)
        self._waiting.add(wake)  # first, so that no item comes unnoticed
        try:
            while True:
                with suppress(Empty):
                    return self._queue.get_nowait()
                await arrived.wait()
                arrived.clear()
        finally:
            self._waiting.discard(wake)

    def qsize(self) -> int:
        return self._queue.qsize()


class Stream(Completion):
    """A completion of a driver: an iterator over its events that waits for the next one.

    A coroutine reads it by ``async for``, or awaits the document: ``response = await stream``.

    A stream that is dropped before it has ended is aborted, and so is one whose ``await`` is
    cancelled. A cancelled ``async for`` loses no event; the stream can be read further.

    Raises:
        RequestError: by iteration: the driver was closed, or the engine failed.
    """

    def __init__(self, driver: "EngineDriver", completion: Completion) -> None:
        super().__init__(completion._engine, completion._active)
        self._driver = driver
        self._items = _Items()

    def __next__(self) -> Event:
        event = self._open(self._items.get())
        if event is None:
            raise StopIteration
        return event

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        event = self._open(await self._items.get_async())
        if event is None:
            raise StopAsyncIteration
        return event

    def __await__(self) -> Generator[Any, None, Response]:
        return self._wait_async().__await__()

    async def _wait_async(self) -> Response:
        try:
            async for _ in self:
                pass
        except asyncio.CancelledError:
            self.abort()
            raise
        return self._result()

    def _open(self, item: Event | _End) -> Event | None:
        """Return the event that came; None if the events have ended."""
        if not isinstance(item, _End):
            self._driver._post(self._driver._was_read, self.key)
            return item
        self._items.put(item)
        if item.message:
            raise RequestError(item.message) from item.cause
        return None

    def poll(self) -> Event | None:
        """Return the next event if there is one, without waiting."""
        return next(self, None) if self._items.qsize() else None

    def abort(self) -> None:
        """End the completion early; ``Finished`` follows. Any thread may call this."""
        self._driver._post(self._driver._abort, self.key)


@dataclass(slots=True, eq=False)
class _Consumer:
    """A stream as the driver knows it, without a reference to it, so that it can be dropped."""

    completion: Completion
    items: _Items
    free: int  # events that it can take now
    present: bool = True  # False: nobody reads it, and its events are dropped


class EngineDriver:
    """Runs an engine in a thread, for consumers in any number of other threads::

        with Engine(bundle) as engine, EngineDriver(engine) as driver:
            for event in driver.submit("owl", mode="image"):
                ...

    A coroutine submits in a thread, because that waits for the step in progress::

            stream = await asyncio.to_thread(driver.submit, "owl", mode="image")
            async for event in stream:
                ...

    A slow consumer holds up its own request only: its stream holds 64 events, and the engine pauses
    the request when ``max_unread_events`` more wait. Until it is closed, only the driver may use
    the engine; :meth:`call` runs a function there. An error of the engine ends the driver and
    reaches every consumer.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._consumers: dict[int, _Consumer] = {}  # by key; only the thread uses it
        self._inbox: SimpleQueue[Callable[[], object]] = SimpleQueue()  # what the thread is to do
        self._closing = False
        self._end: _End | None = None  # why the thread ended
        self._lock = threading.Lock()  # of _end: no call may enter the inbox once it is set
        self._thread = threading.Thread(target=self._run, name="pardalis-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> "EngineDriver":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def is_running(self) -> bool:
        """Whether requests are taken; false once it is closed or the engine has failed."""
        return self._end is None

    def close(self) -> None:
        """End the thread after the step in progress; open completions are aborted.

        The engine stays open.
        """
        self._post(setattr, self, "_closing", True)
        self._thread.join()

    @documents_options
    def submit(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        priority: int = 0,
        **options: Any,
    ) -> Stream:
        """Add a request and return the stream of its events. Any thread may call this.

        Args:
            prompt: as :func:`pardalis.generate` takes it.
            config: options as one object.
            priority: requests of higher priority run first.
            options: fields of :class:`pardalis.GenerationConfig`, which replace those of
                ``config``.

        Options:
            {options}

        Raises:
            RequestError, DataError: as :meth:`pardalis.Engine.submit`, or the driver has ended.
        """
        request = to_request(self._engine.bundle, prompt, config, **options)
        return self.submit_request(request, priority)

    def submit_request(self, request: Request | ScoreRequest, priority: int = 0) -> Stream:
        """Add a request in token ids, as :meth:`pardalis.Engine.submit_request` takes it."""

        def submit(engine: Engine) -> Stream:
            completion = engine.submit_request(request, priority)
            stream = Stream(self, completion)
            self._consumers[stream.key] = _Consumer(completion, stream._items, _BUFFER)
            # A finaliser may run anywhere; this queue alone may be written to from there.
            weakref.finalize(stream, self._post, self._leave, stream.key).atexit = False
            return stream

        return self.call(submit)

    def call(self, function: Callable[[Engine], T]) -> T:
        """Run a function of the engine between two steps, such as :meth:`Engine.reload`.

        Raises:
            RequestError: the driver has ended.
            Exception: what the function raises.
        """
        future: Future[T] = Future()

        def run() -> None:
            try:
                self._require_running()
                future.set_result(function(self._engine))
            except BaseException as error:
                future.set_exception(error)

        with self._lock:
            self._require_running()
            self._inbox.put(run)
        return future.result()

    def _require_running(self) -> None:
        if self._end is not None:
            raise RequestError(self._end.message) from self._end.cause

    def _post(self, function: Callable[..., object], *arguments: object) -> None:
        self._inbox.put(partial(function, *arguments))

    # ── in the thread ────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            while not self._closing:
                if self._engine.has_work and self._inbox.empty():
                    self._advance()
                else:
                    self._inbox.get()()
            self._end_streams(_End("The driver of the engine is closed; make a new one."))
            for key in list(self._consumers):
                self._leave(key)
            while self._consumers:
                self._advance()
        except BaseException as error:
            self._end_streams(_End(f"The engine failed: {error!r}; make a new one.", error))
        self._consumers.clear()
        while not self._inbox.empty():  # calls that now raise, and what concerns no consumer
            self._inbox.get()()

    def _end_streams(self, end: _End) -> None:
        with self._lock:
            self._end = self._end or end
        for consumer in self._consumers.values():
            if consumer.present:
                consumer.items.put(end)

    def _advance(self) -> None:
        self._engine.advance()
        for consumer in list(self._consumers.values()):
            self._deliver(consumer)

    def _deliver(self, consumer: _Consumer) -> None:
        """Pass on as many events as a consumer can take."""
        while consumer.free or not consumer.present:
            event = consumer.completion.poll()
            if event is None:
                return
            if consumer.present:
                consumer.items.put(event)
                consumer.free -= 1
            if isinstance(event, Finished):
                del self._consumers[event.key]
                if consumer.present:
                    consumer.items.put(_End())
                return

    def _was_read(self, key: int) -> None:
        if consumer := self._consumers.get(key):
            consumer.free += 1
            self._deliver(consumer)

    def _abort(self, key: int) -> None:
        if key in self._consumers:
            self._engine.abort(key)

    def _leave(self, key: int) -> None:
        if consumer := self._consumers.get(key):
            consumer.present = False
            self._engine.abort(key)
            self._deliver(consumer)
