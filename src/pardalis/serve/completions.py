"""``POST /v1/completions``: text that continues a text, or fills a gap in one."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from pardalis.documents import Document, Text
from pardalis.documents.document import is_unicode
from pardalis.inference import Finished, LogProbs, Mask, Stream, TextDelta, TokenLogProb, Usage
from pardalis.serve.chat import StreamOptions, finish_reason, usage
from pardalis.serve.disconnect import unless_disconnected
from pardalis.serve.errors import APIError
from pardalis.serve.event_stream import DONE, EventStream, event
from pardalis.serve.schema import Count, Sampling
from pardalis.serve.service import Answer, Service, new_id


class CompletionRequest(Sampling):
    """A text to be continued."""

    prompt: str
    suffix: str | None = None  # stands behind the completion, for models that infill
    max_tokens: Count | None = None
    n: Count | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None

    def options(self) -> dict[str, Any]:
        options = self.sampling() | ({"mode": "text"} if self.suffix is None else {})
        if self.max_tokens:
            options["max_new_tokens"] = self.max_tokens
        if self.logprobs is not None:
            options["logprobs"] = max(1, self.logprobs)
        return options


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/completions", summary="Continue a text")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        options = body.options()
        text = Text(unicode_text(body.prompt, "prompt"))
        prompt: Document | list[Text | Mask] = Document((text,))
        if body.suffix is not None:
            prompt = [text, Mask(), Text(unicode_text(body.suffix, "suffix"))]
        streams = await service.submit(prompt, options, body.model, body.n or 1)
        writer = _Writer(service, body, options)
        if body.stream:
            return EventStream(writer.chunks(streams), service.config.ping_s)
        answers = await unless_disconnected(request, service.answers(streams, options))
        return JSONResponse(writer.completion(answers))

    return routes


def unicode_text(text: str, field: str) -> str:
    if not is_unicode(text):
        raise APIError(f"{field} holds broken Unicode: half of a surrogate pair.", param=field)
    return text


class _Writer:
    """Writes answers as a completion, or as its chunks."""

    def __init__(self, service: Service, body: CompletionRequest, options: dict[str, Any]) -> None:
        self.service, self.body, self._options = service, body, options
        self._head = {
            "id": new_id("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
            "seed": options["seed"],
        }

    def completion(self, answers: Sequence[Answer]) -> dict[str, Any]:
        choices = []
        for number, answer in enumerate(answers):
            assert answer.finished is not None
            log_probs = self._log_probs(answer.log_probs)
            choices.append(
                self._choice(number, answer.text, finish_reason(answer.finished), log_probs)
            )
        used = usage([answer.usage for answer in answers])
        return {**self._head, "choices": choices, "usage": used}

    async def chunks(self, streams: Sequence[Stream]) -> AsyncIterator[str]:
        used: list[Usage] = []
        try:
            async with aclosing(self.service.merged(streams, self._options)) as items:
                async for number, item in items:
                    match item:
                        case TextDelta(text=text):
                            yield self._chunk(self._choice(number, text))
                        case LogProbs(tokens=tokens):
                            log_probs = self._log_probs(tokens)
                            yield self._chunk(self._choice(number, "", None, log_probs))
                        case Finished():
                            used.append(item.usage)
                            yield self._chunk(self._choice(number, "", finish_reason(item)))
        except APIError as error:
            yield event(error.body)
            return
        if self.body.stream_options and self.body.stream_options.include_usage:
            yield event({**self._head, "choices": [], "usage": usage(used)})
        yield DONE

    def _chunk(self, choice: dict[str, Any]) -> str:
        return event({**self._head, "choices": [choice]})

    def _choice(
        self,
        number: int,
        text: str,
        reason: str | None = None,
        log_probs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        return {"index": number, "text": text, "finish_reason": reason, "logprobs": log_probs}

    def _log_probs(self, tokens: Sequence[TokenLogProb]) -> dict[str, Any] | None:
        if self.body.logprobs is None:
            return None
        name = self.service.token_text
        return {
            "tokens": [name(token.token_id) for token in tokens],
            "token_logprobs": [token.log_prob for token in tokens],
            "top_logprobs": [
                {name(i): log_prob for i, log_prob in token.top[: self.body.logprobs]}
                for token in tokens
            ],
            "text_offset": [],
        }
