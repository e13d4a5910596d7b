"""Running filters: beside the event loop, within a time limit; in doubt, nothing passes."""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import PIL.Image

from pardalis.documents import Document, Image, open_image
from pardalis.documents.document import ImageSource, is_unicode
from pardalis.errors import PardalisError
from pardalis.serve.errors import APIError
from pardalis.serve.filters.names import Filters, Named, Part

logger = logging.getLogger(__name__)

_AT_ONCE = 8  # judgements; a filter that hangs keeps its place

_MOST_SIDE = 1024  # pixels; so that a prompt of many large images takes little memory

Count = Callable[[str, str, str], object]
"""Called with a filter's name, the side (request or answer) and the verdict."""

InThread = Callable[[Callable[[Document], Document], Document], Awaitable[Document]]
"""Runs a function of a document beside the event loop, few at once."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A filter has refused a request, or a part of an answer, which it ends."""

    reason: str


class Judge:
    """Asks filters, each of which has ``timeout_s`` seconds, and as long to wait for a place.

    What no filter has let pass does not pass: a filter that raises, takes too long or returns
    something else than None or a text fails the request.

    Args:
        in_thread: decodes the images of a prompt, where a filter reads them.
    """

    def __init__(
        self, filters: Filters, timeout_s: float, count: Count, in_thread: InThread
    ) -> None:
        self._filters, self._timeout_s, self._count = filters, timeout_s, count
        self._in_thread = in_thread
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._begun: dict[object, float] = {}  # when the judgements began that have not ended

    @property
    def failure(self) -> str | None:
        """Why nothing can be judged: each place is taken by a judgement that is past its time."""
        past = time.monotonic() - self._timeout_s
        if len(self._begun) < _AT_ONCE or max(self._begun.values()) > past:
            return None
        return (
            f"All {_AT_ONCE} places of filters are taken by judgements that have not ended in "
            f"{self._timeout_s:g} s."
        )

    @property
    def judges_answers(self) -> bool:
        return bool(self._filters.answers)

    async def request(self, document: Document) -> Refusal | None:
        """Return why a prompt is refused.

        Raises:
            APIError: a filter failed, all places are taken, or an image of the prompt is broken.
        """
        if any(each.reads_images for each in self._filters.requests):
            try:
                document = await self._in_thread(_decoded, document)
            except PardalisError as error:
                raise APIError.of(error) from error
        return await self._ask(self._filters.requests, "request", document)

    async def part(self, part: Part) -> Refusal | None:
        """Return why a part of an answer is refused; raises APIError as :meth:`request`."""
        return await self._ask(self._filters.answers, "answer", part)

    async def _ask(
        self, filters: Sequence[Named], side: str, judged: Document | Part
    ) -> Refusal | None:
        for each in filters:
            try:
                verdict = await self._verdict(each, judged)
            except APIError:
                self._count(each.name, side, "busy")
                logger.warning(
                    "The filter %s of %ss had no place for %g s, as %d others run.",
                    each.name, side, self._timeout_s, _AT_ONCE,
                )  # fmt: skip
                raise
            except _FilterError as error:
                self._count(each.name, side, "failed")
                logger.error(
                    "The filter %s of %ss %s.", each.name, side, error, exc_info=error.__cause__
                )
                raise APIError(
                    f"A filter of this server failed, so the {side} is not let through; the log of "
                    "the server has the reason.",
                    500,
                ) from error
            self._count(each.name, side, "passed" if verdict is None else "refused")
            if verdict is not None:
                return Refusal(verdict)
        return None

    async def _place(self) -> None:
        """Wait for a place; raises APIError if none comes free."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._places.acquire()
        except TimeoutError:
            raise APIError("All filters are busy; send the request again later.", 503) from None

    async def _verdict(self, judge: Named, judged: Document | Part) -> str | None:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Any] = loop.create_future()

        def end(verdict: object, error: BaseException | None) -> None:
            del self._begun[answered]
            self._places.release()
            if not answered.done():
                answered.set_result((verdict, error))

        def run() -> None:
            verdict: object = None
            error: BaseException | None = None
            try:
                verdict = judge.function(judged)
            except BaseException as raised:
                error = raised
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(end, verdict, error)

        await self._place()
        self._begun[answered] = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                # A thread of its own that ends with the process, as a pool would wait for one that
                # hangs.
                threading.Thread(target=run, name=f"filter {judge.name}", daemon=True).start()
                verdict, error = await answered
        except TimeoutError:
            raise _FilterError(f"did not answer within {self._timeout_s:g} s") from None
        if error is not None:
            raise _FilterError("failed") from error
        if verdict is None or (isinstance(verdict, str) and verdict and is_unicode(verdict)):
            return verdict
        if verdict == "":
            raise _FilterError("returned an empty reason; it must return None to let pass")
        raise _FilterError(
            f"returned a value of type {type(verdict).__name__}; it must return None, or a reason "
            "as a text"
        )


class _FilterError(Exception):
    """A filter has no verdict; its cause is what it raised."""


def _decoded(document: Document) -> Document:
    """Return a prompt with its images decoded: upright, RGB, on white, and shrunk if large."""
    return replace(
        document,
        segments=tuple(
            replace(each, source=_small(each.source)) if isinstance(each, Image) else each
            for each in document.segments
        ),
    )


def _small(source: ImageSource) -> PIL.Image.Image:
    image = open_image(source)
    if image is source:  # shrinking is in place
        image = image.copy()
    image.thumbnail((_MOST_SIDE, _MOST_SIDE))
    return image
