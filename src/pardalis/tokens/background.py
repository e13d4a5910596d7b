"""Long work of a library in a thread beside, so that Ctrl-C ends the wait for it.

While native code works, Python hears no signal. In the main thread only waiting is done, a moment
at a time. A thread that is left behind ends with its work, or with the process.
"""

from collections.abc import Callable, Iterator
from queue import Empty, Full, Queue
from threading import Thread, current_thread, main_thread
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

_MOMENT_S = 0.1  # how long Ctrl-C may have to wait
_FED_AHEAD = 64  # texts


class _Given:
    """The result of a function, or what it raised."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:  # panics of Rust are no Exceptions
            self.error = error

    def get(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.result


def in_background(work: Callable[[], T]) -> T:
    """Return the result of a function that lets other threads work, or raise what it raises."""
    given = _Given(work)
    if current_thread() is not main_thread():  # no signal comes here
        given.run()
    else:
        thread = Thread(target=given.run, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_MOMENT_S)
    result: T = given.get()
    return result


class Feed:
    """Feeds an iterator to a function in a thread beside, and waits for the end of the function.

    Whatever makes the items thus runs in the caller's thread, and its errors arise there::

        with Feed(lambda items: library.train(items)) as feed:
            for item in source:
                feed.put(item)

    An error within the block, such as Ctrl-C, ends the iterator by an error too.
    """

    def __init__(self, work: Callable[[Iterator[Any]], object]) -> None:
        self._queue: Queue[tuple[str, Any]] = Queue(_FED_AHEAD)
        self._given = _Given(lambda: work(self._items()))
        self._thread = Thread(target=self._given.run, daemon=True)

    def __enter__(self) -> "Feed":
        self._thread.start()
        return self

    def put(self, item: Any) -> None:
        """Give the function one more item; raises what it has raised."""
        self._put("item", item)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None:
            self._stop()
            return
        self._put("end", None)
        while self._thread.is_alive():
            self._thread.join(_MOMENT_S)
        self._given.get()

    def _put(self, kind: str, item: Any) -> None:
        while True:
            if not self._thread.is_alive():
                self._given.get()
                raise RuntimeError("the function ended before its items did")
            try:
                return self._queue.put((kind, item), timeout=_MOMENT_S)
            except Full:
                continue

    def _stop(self) -> None:
        while True:  # what waits is not worth its time
            try:
                self._queue.get_nowait()
            except Empty:
                break
        self._queue.put(("stop", None))

    def _items(self) -> Iterator[Any]:
        while True:
            kind, item = self._queue.get()
            if kind == "end":
                return
            if kind == "stop":
                raise InterruptedError("stopped")
            yield item
