"""``POST /v1/chat/completions``: conversations of texts and images.

Images come back in ``message.images``, as several clients expect it, and with the texts in their
order in ``message.content_parts``.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from pardalis.documents import Document
from pardalis.inference import DocumentsRetrieved, Finished, LogProbs, TextDelta, TokenLogProb
from pardalis.serve.answer import Answer, Item, WholeImage, in_base64
from pardalis.serve.chunks import ChunkWriter
from pardalis.serve.endpoint import respond
from pardalis.serve.errors import APIError
from pardalis.serve.filters import Refusal
from pardalis.serve.schema import ChunkedBody, Count, Modality, mode_of
from pardalis.serve.service import Service


class ChatRequest(ChunkedBody):
    """A conversation to be continued by one turn of the assistant."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    modalities: list[Modality] | None = Field(None, description="of the answer; default: both")
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
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

    def document(self, service: Service) -> Document:
        return service.prompts.of_messages(self.messages)


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/chat/completions", summary="Continue a conversation")
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        return await respond(service, request, body, _Writer)

    return routes


class _Writer(ChunkWriter[ChatRequest]):
    prefix = "chatcmpl"
    kinds = ("chat.completion", "chat.completion.chunk")

    def begin(self) -> Iterator[str]:
        for number in range(self.body.choices):
            first = _delta(number, {"role": "assistant", "content": ""})
            yield self.chunk([{**first, "finish_reason": None}])

    def parts(self, number: int, item: Item) -> Iterator[dict[str, Any]]:
        match item:
            case TextDelta(text=text):
                yield _delta(number, {"content": text})
            case WholeImage():
                yield _delta(number, {"images": [image_part(item, item.index)]})
            case LogProbs(tokens=tokens):
                yield _delta(number, {}, self._log_probs(tokens))
            case Refusal(reason=reason):
                yield _delta(number, {"refusal": reason})
            case DocumentsRetrieved() | Finished():
                yield _delta(number, {})

    def choice(self, number: int, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.text,
            "refusal": answer.refusal,
            "content_parts": [
                {"type": "text", "text": part} if isinstance(part, str) else image_part(part)
                for part in answer.parts
            ],
        }
        if images := answer.images:
            message["images"] = [image_part(image, index) for index, image in enumerate(images)]
        log_probs = self._log_probs(answer.log_probs) if self.body.logprobs else None
        return {"index": number, "message": message, "logprobs": log_probs}

    def _log_probs(self, tokens: Sequence[TokenLogProb]) -> dict[str, Any]:
        return {"content": self.log_probs(tokens, self.body.top_logprobs), "refusal": None}


def _delta(
    number: int, delta: dict[str, Any], log_probs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": number, "delta": delta, "logprobs": log_probs}


def image_part(image: WholeImage, index: int | None = None) -> dict[str, Any]:
    """Return an image as a part of a message's content."""
    url = f"data:image/png;base64,{in_base64(image.data)}"
    part: dict[str, Any] = {"type": "image_url", "image_url": {"url": url}}
    return part if index is None else {**part, "index": index}
