"""Answers as a server sends them: what they consist of, in which order, and after which filters."""

import base64
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from pardalis.inference import (
    DocumentsRetrieved,
    Event,
    Finished,
    ImageBegun,
    ImageDone,
    ImageRows,
    LogProbs,
    TextDelta,
    TokenLogProb,
    Usage,
)
from pardalis.serve.filters import Part, Refusal


@dataclass(frozen=True, slots=True)
class PartialImage:
    """An image as far as it is written, grey below."""

    index: int
    number: int  # counts the views of this image from 0
    rows: int  # of codes that are written
    data: bytes


@dataclass(frozen=True, slots=True)
class WholeImage:
    """A finished image."""

    index: int
    data: bytes


@dataclass(frozen=True, slots=True)
class DocumentsShown(DocumentsRetrieved):
    """The documents with their texts and their images in PNG, for a client that asks for them."""

    contents: tuple[tuple[str | bytes, ...], ...]


Item: TypeAlias = (
    DocumentsRetrieved
    | TextDelta
    | ImageBegun
    | PartialImage
    | WholeImage
    | LogProbs
    | Refusal
    | Finished
)


@dataclass(slots=True)
class Answer:
    """What one answer came to, in its order."""

    parts: list[str | WholeImage] = field(default_factory=list)
    log_probs: list[TokenLogProb] = field(default_factory=list)
    retrieved: DocumentsRetrieved | None = None  # what stands before the prompt
    refusal: str | None = None  # why a filter ended it
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
            case DocumentsRetrieved():
                self.retrieved = item
            case Refusal(reason=reason):
                self.refusal = reason
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


def told(retrieved: DocumentsRetrieved | None) -> dict[str, Any]:
    """Return the field of a body that names what was retrieved; none if nothing was."""
    if retrieved is None:
        return {}
    documents = [asdict(each) for each in retrieved.documents]
    if isinstance(retrieved, DocumentsShown):
        for document, parts in zip(documents, retrieved.contents, strict=True):
            document["content"] = [_read(part) for part in parts]
    return {"retrieved": documents}


def _read(part: str | bytes) -> dict[str, str]:
    """Return a text or an image as clients write what a model reads."""
    if isinstance(part, str):
        return {"type": "input_text", "text": part}
    return {"type": "input_image", "image_url": f"data:image/png;base64,{in_base64(part)}"}


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def in_order(events: AsyncIterable[Event], image_rows: int) -> AsyncGenerator[Event, None]:
    """Yield events, but those that follow an image only once it is decoded.

    The engine decodes an image beside the generation of what follows it.

    Args:
        image_rows: rows of codes of an image.
    """
    later: deque[Event] = deque()  # what follows an image that is being decoded
    decoding = False
    async for event in events:
        if isinstance(event, ImageDone):
            yield event
        else:
            later.append(event)
        if isinstance(event, ImageDone | Finished):  # after a failure an image may be missing
            decoding = False
        while later and (not decoding or isinstance(event, Finished)):
            following = later.popleft()
            decoding = isinstance(following, ImageRows) and following.rows == image_rows
            yield following


async def judged(
    events: AsyncIterable[Event],
    judge: Callable[[Part], Awaitable[Refusal | None]],
    stop: Callable[[], object],
) -> AsyncGenerator[Event | Refusal, None]:
    """Yield the events of an answer part by part, each when it is whole and was let pass.

    The first part that is refused ends the answer, and its refusal comes in its place.
    Log-probabilities tell parts too, so they come at the end, and not after a refusal.

    Args:
        stop: called at a refusal; the events have to end soon afterwards.
    """
    refusal: Refusal | None = None
    async for part, held in _whole_parts(events):
        if refusal is None and part is not None and (refusal := await judge(part)):
            stop()
            yield refusal
        for event in held:
            if refusal is None or isinstance(event, Finished):
                yield event


async def _whole_parts(
    events: AsyncIterable[Event],
) -> AsyncGenerator[tuple[Part | None, list[Event]], None]:
    """Yield each whole part of an answer with its events; and other events, without a part."""
    text = ""
    begun: list[Event] = []  # an image
    log_probs: list[Event] = []
    async for event in events:
        match event:
            case TextDelta():
                text += event.text
            case LogProbs():
                log_probs.append(event)
            case ImageRows() | DocumentsRetrieved():  # rows are counted, and not sent
                yield None, [event]
            case ImageDone(image=image):
                yield image, [*begun, event]
            case ImageBegun() | Finished():
                if text:
                    yield text, [TextDelta(event.key, text)]
                text, begun = "", [event]
                if isinstance(event, Finished):
                    yield None, [*log_probs, event]
