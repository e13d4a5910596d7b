"""One engine behind all requests, and the events of its answers as a server sends them."""

import asyncio
import io
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar
from weakref import WeakSet

from pardalis import __version__
from pardalis.documents import Document, Image, Text, open_image
from pardalis.errors import PardalisError
from pardalis.inference import (
    DocumentsRetrieved,
    Engine,
    EngineDriver,
    Event,
    Finished,
    GenerationConfig,
    ImageBegun,
    ImageDone,
    ImageRows,
    Infilling,
    Mask,
    Request,
    Stream,
    to_requests,
)
from pardalis.inference.prompt import check_length
from pardalis.origin import About, ImageFormat, OriginWriter
from pardalis.origin.watermark import check_size
from pardalis.serve.answer import DocumentsShown, Item, PartialImage, WholeImage, in_order, judged
from pardalis.serve.config import ServeConfig
from pardalis.serve.errors import APIError
from pardalis.serve.filters import Filters, Judge, Refusal
from pardalis.serve.metrics import Metrics
from pardalis.serve.prompts import Prompts
from pardalis.serve.remote_images import RemoteImages
from pardalis.serve.schema import NAMES

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ENCODED_AT_ONCE = 2  # prompts whose images become tokens at the same time
_THUMBNAIL = (256, 256)  # most pixels of an image of a retrieved document


class Service:
    """Runs the requests of all clients on one engine.

    Args:
        engine: stays the caller's to close; until :meth:`close` only the service uses it.
        name: what clients call the model; its adapters have their own names.
        filters: what judges requests and answers; default: those that the config names.
        origin: what encodes images; default: as the config says.
        private_hosts: fetch images from private addresses too. For tests.

    Raises:
        ConfigError: a filter or a certificate that the config names cannot be loaded, or images are
            too small for a watermark.
    """

    def __init__(
        self,
        engine: Engine,
        config: ServeConfig | None = None,
        name: str = "pardalis",
        *,
        filters: Filters | None = None,
        origin: OriginWriter | None = None,
        private_hosts: bool = False,
    ) -> None:
        self.config = config or ServeConfig()
        self.engine, self.bundle, self.name = engine, engine.bundle, name
        self.started = int(time.time())
        self.prompts = Prompts(self.config, RemoteImages(self.config.image_hosts, private_hosts))
        self.metrics = Metrics(self)
        self.origin = origin or self.config.origin()
        if self.origin.watermark:
            check_size(self.resolution, self.resolution)
        self.judge = Judge(
            filters or self.config.filters(), self.config.filter_timeout_s, self.metrics.judged,
            self.in_thread,
        )  # fmt: skip
        self.accepting = True  # False: the server is about to stop
        # A client may leave before its answer is read at all; a stream that is dropped is aborted.
        self.open: WeakSet[Stream] = WeakSet()
        self._driver = EngineDriver(engine)
        self._encoding = asyncio.Semaphore(_ENCODED_AT_ONCE)

    @property
    def models(self) -> tuple[str, ...]:
        """The names that a request may ask for."""
        return (self.name, *self.engine.adapters)

    @property
    def failure(self) -> str | None:
        """Why this process has to be replaced; None: it works."""
        if not self._driver.is_running:
            return "The engine failed; the log has the reason."
        return self.judge.failure

    @property
    def resolution(self) -> int:
        """Height and width of images in pixels."""
        return self.bundle.codec.image_tokenizer.config.resolution

    @property
    def image_size(self) -> str:
        """Width and height of images, as clients write it."""
        return f"{self.resolution}x{self.resolution}"

    @property
    def image_rows(self) -> int:
        """Rows of codes of an image."""
        return self.bundle.codec.image_tokenizer.config.grid

    def close(self) -> None:
        """End the engine's thread; open answers are aborted."""
        self._driver.close()

    def stop_accepting(self) -> None:
        """Refuse new requests, and let those that are open finish."""
        self.accepting = False

    def abort_all(self) -> None:
        """End all open answers early."""
        for stream in tuple(self.open):
            stream.abort()

    def adapter_of(self, model: str) -> str | None:
        """Return the adapter that a model's name stands for.

        Raises:
            APIError: there is no such model.
        """
        if model not in self.models:
            raise APIError(
                f"There is no model {model[:80]!r}; this server has {', '.join(self.models)}.",
                404,
                param="model",
                code="model_not_found",
            )
        return None if model == self.name else model

    def check(self, model: str, choices: int) -> None:
        """Check what needs no prompt.

        Raises:
            APIError: the server stops, there is no such model, or these are too many answers.
        """
        self._check_accepting()
        if not 1 <= choices <= self.config.max_choices:
            raise APIError(
                f"n must be from 1 to {self.config.max_choices}, got {choices}.", param="n"
            )
        self.adapter_of(model)

    def _check_accepting(self) -> None:
        if not self.accepting:
            raise APIError("The server stops; send the request again later.", 503)

    def check_length(self, document: Document) -> None:
        """Refuse a prompt that cannot be answered before filters read it; raises APIError."""
        try:
            check_length(self.bundle, document)
        except PardalisError as error:
            raise APIError.of(error, NAMES) from error

    async def submit(
        self,
        document: Document,
        options: dict[str, Any],
        model: str | None,
        choices: int = 1,
        gap: int | None = None,
    ) -> list[Stream]:
        """Start the answers to a prompt, which differ in their randomness alone.

        Args:
            gap: before which segment stands a gap that is filled; None: the prompt is continued.

        Raises:
            APIError: the prompt or an option is wrong, too many wait, or the server stops.
        """
        options = {**options, "adapter": self.adapter_of(model or self.name)}
        streams: list[Stream] = []
        try:
            requests = await self.in_thread(self._requests, document, options, choices, gap)
            for request in requests:
                self._check_accepting()  # prompts take time
                stream = await asyncio.to_thread(self._driver.submit_request, request)
                streams.append(stream)
        except BaseException as error:
            for stream in streams:
                stream.abort()
            if isinstance(error, PardalisError):
                told = APIError.of(error, NAMES)
                if told.status == 500:
                    logger.error("A request failed.", exc_info=error)
                raise told from error
            raise
        self.open.update(streams)
        return streams

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run what takes long, such as making tokens of images, beside the event loop.

        Who is cancelled does not wait; the thread keeps its place until it ends.
        """
        await self._encoding.acquire()
        working = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
        working.add_done_callback(lambda _: self._encoding.release())
        return await asyncio.shield(working)

    def _requests(
        self, document: Document, options: dict[str, Any], choices: int, gap: int | None
    ) -> list[Request]:
        config = GenerationConfig().with_options(options)
        if gap is None:
            return to_requests(self.bundle, document, [config] * choices, self.engine.retriever)
        parts = [*document.segments[:gap], Mask(), *document.segments[gap:]]
        gaps = (Infilling(self.bundle, parts, config, number=n) for n in range(choices))
        return [each.request() for each in gaps]

    # ── answers ──────────────────────────────────────────────────────────────────────────────────

    async def items(
        self,
        stream: Stream,
        options: dict[str, Any],
        *,
        partial: bool = False,
        contents: bool = False,
        image_format: ImageFormat = "png",
    ) -> AsyncGenerator[Item, None]:
        """Yield what an answer consists of, in its order; leaving ends the answer.

        Args:
            partial: also images while they are written, where no filter judges answers. A view is
                left out while an earlier one is made, and as long afterwards.
            contents: also what retrieved documents hold, likewise, if images can be decoded.
        """
        about = About(options.get("adapter") or self.name, options["seed"], __version__)
        ordered = in_order(stream, self.image_rows)
        events: AsyncGenerator[Event | Refusal, None] = ordered
        contents = contents and self.bundle.codec.image_tokenizer.config.has_decoder
        if self.judge.judges_answers:
            events = judged(ordered, self.judge.part, stream.abort)
            partial = contents = False
        after, views = 0.0, 0
        first_row, refused = True, False
        started = time.monotonic()
        try:
            async with aclosing(events):
                async for event in events:
                    match event:
                        case DocumentsRetrieved() if contents:
                            yield await self.in_thread(self._shown, event)
                        case ImageBegun():
                            after, views = 0.0, 0
                            yield event
                        case ImageRows(rows=rows, codes=codes, index=index):
                            if first_row:
                                self.metrics.first_image_row(time.monotonic() - started)
                                first_row = False
                            begun = time.monotonic()
                            if not partial or rows == self.image_rows or begun < after:
                                continue
                            data = await asyncio.to_thread(self._view, codes, about, image_format)
                            taken = time.monotonic() - begun
                            after = begun + taken + max(taken, self.config.partial_interval_s)
                            yield PartialImage(index, views, rows, data)
                            views += 1
                        case ImageDone(index=index, image=image):
                            data = await asyncio.to_thread(
                                self.origin.encode, image, about, image_format
                            )
                            yield WholeImage(index, data)
                        case Finished():
                            self.metrics.finished(event, "refused" if refused else event.reason)
                            yield event
                        case _:
                            refused = refused or isinstance(event, Refusal)
                            yield event
        except PardalisError as error:
            logger.exception("An answer failed.")
            raise APIError.of(error) from error
        finally:
            stream.abort()
            self.open.discard(stream)

    async def merged(
        self, streams: Sequence[Stream], options: dict[str, Any], **how: Any
    ) -> AsyncGenerator[tuple[int, Item], None]:
        """Yield the items of several answers as they come, each with the number of its answer.

        Args:
            how: as :meth:`items` takes it.
        """
        if len(streams) == 1:
            async with aclosing(self.items(streams[0], options, **how)) as items:
                async for item in items:
                    yield 0, item
            return
        queue: asyncio.Queue[tuple[int, Item] | BaseException | None] = asyncio.Queue(maxsize=1)

        async def read(number: int, stream: Stream) -> None:
            try:
                async for item in self.items(stream, options, **how):
                    await queue.put((number, item))
                await queue.put(None)
            except Exception as error:
                await queue.put(error)

        tasks = [asyncio.ensure_future(read(n, stream)) for n, stream in enumerate(streams)]
        try:
            left = len(tasks)
            while left:
                match await queue.get():
                    case None:
                        left -= 1
                    case BaseException() as error:
                        raise error
                    case item:
                        yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _view(self, codes: tuple[int, ...], about: About, image_format: ImageFormat) -> bytes:
        image = self.bundle.codec.image_tokenizer.partial_image(codes)
        return self.origin.encode(image, about, image_format, is_view=True)

    def _shown(self, retrieved: DocumentsRetrieved) -> DocumentsShown:
        """Return retrieved documents with what they hold."""
        retriever = self.engine.retriever
        assert retriever is not None  # as it has retrieved them
        contents = tuple(
            tuple(
                segment.text if isinstance(segment, Text) else _thumbnail(segment)
                for segment in retriever.content(document, self.bundle.codec).segments
            )
            for document in retrieved.documents
        )
        return DocumentsShown(retrieved.key, retrieved.documents, contents)

    def token_text(self, token_id: int) -> str:
        """Return a token of text as it reads, and any other by its name, such as <image 17>."""
        vocabulary = self.bundle.codec.vocabulary
        if token_id not in vocabulary.text:
            return vocabulary.name_of(token_id)
        return self.bundle.codec.text_tokenizer.decode([vocabulary.text_token(token_id)])


def _thumbnail(image: Image) -> bytes:
    shown, buffer = open_image(image.source), io.BytesIO()
    shown.thumbnail(_THUMBNAIL)
    shown.save(buffer, "PNG")
    return buffer.getvalue()


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
