"""``POST /v1/chat/completions``: conversations of texts and images.

Images come back in ``message.images``, as several clients expect it, and with the texts in their
order in ``message.content_parts``.
"""

import base64
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from pardalis.inference import Finished, LogProbs, Stream, TextDelta, TokenLogProb, Usage
from pardalis.serve.disconnect import unless_disconnected
from pardalis.serve.errors import APIError
from pardalis.serve.event_stream import DONE, EventStream, event
from pardalis.serve.schema import Count, Sampling, Schema, mode_of
from pardalis.serve.service import Answer, Service, WholeImage, new_id

Modality = Literal["text", "image"]


class StreamOptions(Schema):
    include_usage: bool = False


class ChatRequest(Sampling):
    """A conversation to be continued by one turn of the assistant."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    modalities: list[Modality] | None = Field(None, description="of the answer; default: both")
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    n: Count | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    store: Literal[False] | None = None

    def options(self) -> dict[str, Any]:
        options = {**self.sampling(), "chat": True, "mode": mode_of(self.modalities)}
        if limit := self.max_completion_tokens or self.max_tokens:
            options["max_new_tokens"] = limit
        if self.top_logprobs and not self.logprobs:
            raise APIError("top_logprobs needs logprobs to be true.", param="top_logprobs")
        if self.logprobs:
            options["logprobs"] = max(1, self.top_logprobs or 0)
        return options


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/chat/completions", summary="Continue a conversation")
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        options = body.options()
        document = await service.in_thread(service.prompts.of_messages, body.messages)
        streams = await service.submit(document, options, body.model, body.n or 1)
        writer = _Writer(service, body, options)
        if body.stream:
            return EventStream(writer.chunks(streams), service.config.ping_s)
        answers = await unless_disconnected(request, service.answers(streams, options))
        return JSONResponse(writer.completion(answers))

    return routes


class _Writer:
    """Writes answers as a completion, or as its chunks."""

    def __init__(self, service: Service, body: ChatRequest, options: dict[str, Any]) -> None:
        self.service, self.body = service, body
        self._head = {
            "id": new_id("chatcmpl"),
            "created": int(time.time()),
            "model": body.model,
            "seed": options["seed"],
        }
        self._options = options

    def completion(self, answers: Sequence[Answer]) -> dict[str, Any]:
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [self._choice(n, answer) for n, answer in enumerate(answers)],
            "usage": usage([answer.usage for answer in answers]),
        }

    def _choice(self, number: int, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.text,
            "refusal": None,
            "content_parts": [
                {"type": "text", "text": part} if isinstance(part, str) else image_part(part)
                for part in answer.parts
            ],
        }
        if images := answer.images:
            message["images"] = [image_part(image, index) for index, image in enumerate(images)]
        assert answer.finished is not None
        return {
            "index": number,
            "message": message,
            "finish_reason": finish_reason(answer.finished),
            "logprobs": self._log_probs(answer.log_probs) if self.body.logprobs else None,
        }

    async def chunks(self, streams: Sequence[Stream]) -> AsyncIterator[str]:
        """Yield the chunks of a stream; an error that comes late is its last one."""
        for number in range(len(streams)):
            yield self._chunk(number, {"role": "assistant", "content": ""})
        used: list[Usage] = []
        try:
            async with aclosing(self.service.merged(streams, self._options)) as items:
                async for number, item in items:
                    match item:
                        case TextDelta(text=text):
                            yield self._chunk(number, {"content": text})
                        case WholeImage():
                            yield self._chunk(number, {"images": [image_part(item, item.index)]})
                        case LogProbs(tokens=tokens):
                            yield self._chunk(number, {}, log_probs=self._log_probs(tokens))
                        case Finished():
                            used.append(item.usage)
                            yield self._chunk(number, {}, finish_reason(item))
        except APIError as error:
            yield event(error.body)
            return
        if self.body.stream_options and self.body.stream_options.include_usage:
            last = {"object": "chat.completion.chunk", "choices": [], "usage": usage(used)}
            yield event({**self._head, **last})
        yield DONE

    def _chunk(
        self,
        number: int,
        delta: dict[str, Any],
        reason: str | None = None,
        log_probs: dict[str, Any] | None = None,
    ) -> str:
        choice = {"index": number, "delta": delta, "finish_reason": reason, "logprobs": log_probs}
        return event({**self._head, "object": "chat.completion.chunk", "choices": [choice]})

    def _log_probs(self, tokens: Sequence[TokenLogProb]) -> dict[str, Any]:
        shown = self.body.top_logprobs or 0
        return {
            "content": [
                {
                    **self._token(token.token_id, token.log_prob),
                    "top_logprobs": [self._token(*each) for each in token.top[:shown]],
                }
                for token in tokens
            ],
            "refusal": None,
        }

    def _token(self, token_id: int, log_prob: float) -> dict[str, Any]:
        text = self.service.token_text(token_id)
        return {"token": text, "logprob": log_prob, "bytes": list(text.encode())}


def image_part(image: WholeImage, index: int | None = None) -> dict[str, Any]:
    """Return an image as a part of a message's content."""
    url = f"data:image/png;base64,{base64.b64encode(image.png).decode()}"
    part: dict[str, Any] = {"type": "image_url", "image_url": {"url": url}}
    return part if index is None else {**part, "index": index}


def finish_reason(finished: Finished) -> str:
    match finished.reason:
        case "length":
            return "length"
        case "failed":
            return "error"
        case _:
            return "stop"


def usage(used: Sequence[Usage]) -> dict[str, Any]:
    """Return the tokens of answers to one prompt, which counts once."""
    prompt = used[0].prompt_tokens if used else 0
    completion = sum(each.completion_tokens for each in used)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"image_tokens": used[0].prompt_image_tokens if used else 0},
        "completion_tokens_details": {
            "image_tokens": sum(each.completion_image_tokens for each in used)
        },
    }
