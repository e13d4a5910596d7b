"""``POST /v1/completions``: text that continues a text, or fills a gap in one."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from pardalis.documents import Document
from pardalis.inference import DocumentsRetrieved, Finished, LogProbs, TextDelta, TokenLogProb
from pardalis.serve.answer import Answer, Item
from pardalis.serve.chunks import ChunkWriter
from pardalis.serve.endpoint import respond
from pardalis.serve.schema import ChunkedBody, prompt_document
from pardalis.serve.service import Service


class CompletionRequest(ChunkedBody):
    """A text to be continued."""

    prompt: str
    suffix: str | None = None  # behind the completion, for models that infill; "": none
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None

    def options(self) -> dict[str, Any]:
        options = self.sampling() | ({} if self.suffix else {"mode": "text"})
        if self.max_tokens:
            options["max_new_tokens"] = self.max_tokens
        if self.logprobs is not None:
            options["logprobs"] = max(1, self.logprobs)
        return options

    def document(self, service: Service) -> Document:
        before = prompt_document(self.prompt)
        if not self.suffix:
            return before
        return Document((*before.segments, *prompt_document(self.suffix, field="suffix").segments))

    @property
    def gap(self) -> int | None:
        return 1 if self.suffix else None


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/completions", summary="Continue a text")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        return await respond(service, request, body, _Writer)

    return routes


class _Writer(ChunkWriter[CompletionRequest]):
    """A refused answer has no text; ``finish_reason`` says so, as there is no place for why."""

    prefix = "cmpl"
    kinds = ("text_completion", "text_completion")

    def parts(self, number: int, item: Item) -> Iterator[dict[str, Any]]:
        match item:
            case TextDelta(text=text):
                yield _choice(number, text)
            case LogProbs(tokens=tokens):
                yield _choice(number, "", self._log_probs(tokens))
            case DocumentsRetrieved() | Finished():
                yield _choice(number, "")

    def choice(self, number: int, answer: Answer) -> dict[str, Any]:
        return _choice(number, answer.text, self._log_probs(answer.log_probs))

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


def _choice(number: int, text: str, log_probs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": number, "text": text, "logprobs": log_probs}
