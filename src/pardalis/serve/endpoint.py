"""What all endpoints that generate do: an endpoint is the schema of its body and its writer."""

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from pardalis.inference import Finished, TokenLogProb, Usage
from pardalis.origin import ImageFormat
from pardalis.serve.answer import Answer, Item
from pardalis.serve.disconnect import unless_disconnected
from pardalis.serve.errors import APIError
from pardalis.serve.event_stream import EventStream
from pardalis.serve.filters import Refusal
from pardalis.serve.schema import Body
from pardalis.serve.service import Service

logger = logging.getLogger(__name__)

B = TypeVar("B", bound=Body)
_NOTHING = Usage(
    prompt_tokens=0, prompt_image_tokens=0, completion_tokens=0, completion_image_tokens=0,
    images=0, seconds=0.0, first_event_s=0.0,
)  # fmt: skip


class Writer(ABC, Generic[B]):
    """Writes the answers to one request: whole, or as the events of a stream.

    Attributes:
        partial: whether images are also shown while they are written.
        contents: whether retrieved documents are shown, and not only named.
        image_format: of the images.
    """

    partial: bool = False
    contents: bool = False
    image_format: ImageFormat = "png"

    def __init__(self, service: Service, body: B, options: dict[str, Any]) -> None:
        self.service, self.body, self.options = service, body, options

    @abstractmethod
    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the body of a response; raises APIError."""

    def begin(self) -> Iterable[str]:
        """Return the first events of a stream."""
        return ()

    @abstractmethod
    def write(self, number: int, item: Item) -> Iterator[str]:
        """Yield the events of an item of the answer with this number."""

    def end(self) -> Iterable[str]:
        """Return the last events of a stream that did not fail."""
        return ()

    def refused(self, refusal: Refusal) -> None:
        """Raise APIError where a refusal of the whole request is no answer, but an error."""

    @abstractmethod
    def failed(self, error: APIError) -> str:
        """Return the last event of a stream that failed."""

    def log_probs(self, tokens: Iterable[TokenLogProb], shown: int | None) -> list[dict[str, Any]]:
        """Return tokens with their log-probabilities, and those of the most likely ones."""
        return [
            {
                **self._token(token.token_id, token.log_prob),
                "top_logprobs": [self._token(*each) for each in token.top[: shown or 0]],
            }
            for token in tokens
        ]

    def _token(self, token_id: int, log_prob: float) -> dict[str, Any]:
        text = self.service.token_text(token_id)
        return {"token": text, "logprob": log_prob, "bytes": list(text.encode())}


async def respond(
    service: Service, request: Request, body: B, write_with: Callable[..., Writer[B]]
) -> Response:
    """Answer a request, whole or as a stream; raises APIError."""
    options = body.options()
    writer = write_with(service, body, options)
    service.check(body.model or service.name, body.choices)
    items = await unless_disconnected(request, _begun(service, body, options, writer))
    if body.stream:
        return EventStream(_events(items, writer), service.config.ping_s)
    answers = await unless_disconnected(request, _whole(items, body.choices))
    return JSONResponse(writer.whole(answers))


async def _begun(
    service: Service, body: B, options: dict[str, Any], writer: Writer[B]
) -> AsyncGenerator[tuple[int, Item], None]:
    """Return the items of the answers, which the engine has begun; raises APIError."""
    document = await service.in_thread(body.document, service)
    service.check_length(document)
    if refusal := await service.judge.request(document):
        writer.refused(refusal)
        return _refused(refusal, body.choices)
    streams = await service.submit(document, options, body.model, body.choices, body.gap)
    return service.merged(
        streams, options, partial=writer.partial and bool(body.stream),
        contents=writer.contents, image_format=writer.image_format,
    )  # fmt: skip


async def _refused(refusal: Refusal, choices: int) -> AsyncGenerator[tuple[int, Item], None]:
    """Yield the items of answers to a prompt that the model does not get."""
    for number in range(choices):
        yield number, refusal
        yield number, Finished(number, "aborted", _NOTHING)


async def _whole(items: AsyncGenerator[tuple[int, Item], None], choices: int) -> list[Answer]:
    answers = [Answer() for _ in range(choices)]
    async with aclosing(items):
        async for number, item in items:
            answers[number].add(item)
    for answer in answers:
        if answer.finished is None or answer.finished.reason == "failed":
            message = answer.finished.error if answer.finished else "the engine stopped"
            raise APIError(f"The answer failed: {message}", 500)
    return answers


async def _events(
    items: AsyncGenerator[tuple[int, Item], None], writer: Writer[Any]
) -> AsyncIterator[str]:
    """Yield the events of a stream; an error that comes late is its last one."""
    for event in writer.begin():
        yield event
    try:
        async with aclosing(items):
            async for number, item in items:
                for event in writer.write(number, item):
                    yield event
    except Exception as error:
        if not isinstance(error, APIError):
            logger.exception("An answer failed.")
        yield writer.failed(APIError.of(error))
        return
    for event in writer.end():
        yield event
