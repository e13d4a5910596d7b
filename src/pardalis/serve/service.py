"""One engine behind all requests, and the events of its answers as a server sends them."""

import asyncio
import io
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar

import PIL.Image
from PIL.PngImagePlugin import PngInfo

from pardalis import __version__
from pardalis.documents import Document, Text
from pardalis.errors import PardalisError
from pardalis.inference import (
    Engine,
    EngineDriver,
    Finished,
    GenerationConfig,
    ImageBegun,
    ImageDone,
    ImageRows,
    Infilling,
    LogProbs,
    Mask,
    Request,
    Stream,
    TextDelta,
    TokenLogProb,
    Usage,
    to_request,
)
from pardalis.serve.config import ServeConfig
from pardalis.serve.errors import APIError
from pardalis.serve.metrics import Metrics
from pardalis.serve.prompts import Prompts
from pardalis.serve.remote_images import RemoteImages
from pardalis.serve.schema import NAMES

T = TypeVar("T")

_ENCODED_AT_ONCE = 2  # prompts whose images become tokens at the same time


@dataclass(frozen=True, slots=True)
class PartialImage:
    """An image as far as it is written, grey below."""

    index: int
    number: int  # counts the views of this image from 0
    rows: int  # of codes that are written
    png: bytes


@dataclass(frozen=True, slots=True)
class WholeImage:
    """A finished image."""

    index: int
    png: bytes


Item: TypeAlias = TextDelta | ImageBegun | PartialImage | WholeImage | LogProbs | Finished


@dataclass(slots=True)
class Answer:
    """What one answer came to, in its order."""

    parts: list[str | WholeImage] = field(default_factory=list)
    log_probs: list[TokenLogProb] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, item: Item) -> None:
        match item:
            case TextDelta(text=text) if self.parts and isinstance(self.parts[-1], str):
                self.parts[-1] += text
            case TextDelta(text=text):
                self.parts.append(text)
            case WholeImage():
                self.parts.append(item)
            case LogProbs(tokens=tokens):
                self.log_probs += tokens
            case Finished():
                self.finished = item

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> list[WholeImage]:
        return [part for part in self.parts if isinstance(part, WholeImage)]

    @property
    def usage(self) -> Usage:
        assert self.finished is not None  # as it is read when all items have come
        return self.finished.usage


class Service:
    """Runs the requests of all clients on one engine.

    Args:
        engine: stays the caller's to close; until :meth:`close` only the service uses it.
        name: what clients call the model; its adapters have their own names.
        private_hosts: fetch images from private addresses too. For tests.
    """

    def __init__(
        self,
        engine: Engine,
        config: ServeConfig | None = None,
        name: str = "pardalis",
        *,
        private_hosts: bool = False,
    ) -> None:
        self.config = config or ServeConfig()
        self.engine, self.bundle, self.name = engine, engine.bundle, name
        self.started = int(time.time())
        self.prompts = Prompts(self.config, RemoteImages(self.config.image_hosts, private_hosts))
        self.metrics = Metrics(self)
        self.accepting = True  # False: the server is about to stop
        self.open: set[Stream] = set()
        self._driver = EngineDriver(engine)
        self._encoding = asyncio.Semaphore(_ENCODED_AT_ONCE)

    @property
    def models(self) -> tuple[str, ...]:
        """The names that a request may ask for."""
        return (self.name, *self.engine.adapters)

    @property
    def is_running(self) -> bool:
        """Whether the engine works; its failure ends it."""
        return self._driver.is_running

    @property
    def resolution(self) -> int:
        """Height and width of images in pixels."""
        return self.bundle.codec.image_tokenizer.config.resolution

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

    async def submit(
        self,
        prompt: Document | Sequence[Text | Mask],
        options: dict[str, Any],
        model: str,
        choices: int = 1,
    ) -> list[Stream]:
        """Start the answers to a prompt, which differ in their randomness alone.

        Args:
            prompt: what is continued, or a list with a mask that is filled in.

        Raises:
            APIError: the server stops, the prompt or an option is wrong, or too many wait.
        """
        if not self.accepting:
            raise APIError("The server stops; send the request again later.", 503)
        if not 1 <= choices <= self.config.max_choices:
            raise APIError(
                f"n must be from 1 to {self.config.max_choices}, got {choices}.", param="n"
            )
        options = {**options, "adapter": self.adapter_of(model)}
        streams: list[Stream] = []
        try:
            requests = await self.in_thread(self._requests, prompt, options, choices)
            for request in requests:
                stream = await asyncio.to_thread(self._driver.submit_request, request)
                streams.append(stream)
        except BaseException as error:
            for stream in streams:
                stream.abort()
            if isinstance(error, PardalisError):
                raise APIError.of(error, NAMES) from error
            raise
        self.open.update(streams)
        return streams

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run what takes long, such as making tokens of images, beside the event loop."""
        async with self._encoding:
            return await asyncio.to_thread(function, *arguments)

    def _requests(
        self, prompt: Document | Sequence[Text | Mask], options: dict[str, Any], choices: int
    ) -> list[Request]:
        config = GenerationConfig().with_options(options)
        if isinstance(prompt, Document):
            return [to_request(self.bundle, prompt, config, number=n) for n in range(choices)]
        documents = (Infilling(self.bundle, prompt, config, number=n) for n in range(choices))
        return [each.request() for each in documents]

    # ── answers ──────────────────────────────────────────────────────────────────────────────────

    async def items(
        self, stream: Stream, options: dict[str, Any], *, partial: bool = False
    ) -> AsyncGenerator[Item, None]:
        """Yield the events of an answer, its images as PNG; leaving ends the answer.

        Args:
            partial: also images while they are written. A view is left out while an earlier one is
                made, and as long afterwards.
        """
        info = self._provenance(options)
        after, views = 0.0, 0
        first_row = True
        started = time.monotonic()
        try:
            async for event in stream:
                match event:
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
                        png = await asyncio.to_thread(self._partial, codes, info)
                        taken = time.monotonic() - begun
                        after = begun + taken + max(taken, self.config.partial_interval_s)
                        yield PartialImage(index, views, rows, png)
                        views += 1
                    case ImageDone(index=index, image=image):
                        yield WholeImage(index, await asyncio.to_thread(_png, image, info))
                    case Finished():
                        self.metrics.finished(event)
                        yield event
                    case _:
                        yield event
        except PardalisError as error:
            raise APIError.of(error) from error
        finally:
            stream.abort()
            self.open.discard(stream)

    async def answers(self, streams: Sequence[Stream], options: dict[str, Any]) -> list[Answer]:
        """Return whole answers.

        Raises:
            APIError: an image could not be decoded, or the engine failed.
        """

        async def read(stream: Stream) -> Answer:
            answer = Answer()
            async for item in self.items(stream, options):
                answer.add(item)
            if answer.finished is None or answer.finished.reason == "failed":
                message = answer.finished.error if answer.finished else "the engine stopped"
                raise APIError(f"The answer failed: {message}", 500)
            return answer

        tasks = [asyncio.ensure_future(read(stream)) for stream in streams]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def merged(
        self, streams: Sequence[Stream], options: dict[str, Any], *, partial: bool = False
    ) -> AsyncGenerator[tuple[int, Item], None]:
        """Yield the items of several answers as they come, each with the number of its answer."""
        if len(streams) == 1:
            async with aclosing(self.items(streams[0], options, partial=partial)) as items:
                async for item in items:
                    yield 0, item
            return
        queue: asyncio.Queue[tuple[int, Item] | BaseException | None] = asyncio.Queue(maxsize=1)

        async def read(number: int, stream: Stream) -> None:
            try:
                async for item in self.items(stream, options, partial=partial):
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

    def _partial(self, codes: tuple[int, ...], info: PngInfo) -> bytes:
        return _png(self.bundle.codec.image_tokenizer.partial_image(codes), info)

    def _provenance(self, options: dict[str, Any]) -> PngInfo:
        """Return what every image says of its origin."""
        info = PngInfo()
        info.add_text("Software", f"Pardalis {__version__}")
        info.add_text("Source", f"generated by the model {options.get('adapter') or self.name}")
        info.add_text("Creation Time", datetime.now(UTC).isoformat(timespec="seconds"))
        info.add_text("Seed", str(options.get("seed", "")))
        return info

    def token_text(self, token_id: int) -> str:
        """Return a token of text as it reads, and any other by its name, such as <image 17>."""
        vocabulary = self.bundle.codec.vocabulary
        if token_id not in vocabulary.text:
            return vocabulary.name_of(token_id)
        return self.bundle.codec.text_tokenizer.decode([vocabulary.text_token(token_id)])


def _png(image: PIL.Image.Image, info: PngInfo) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
