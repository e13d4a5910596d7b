"""``POST /v1/responses``: texts and images in their order, as OpenAI's newer API has them.

A text of an answer is an output item ``message``, an image an item ``image_generation_call``. The
items of an answer can be sent back as input, so that a conversation needs no state here.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from pardalis.documents import Document
from pardalis.inference import DocumentsRetrieved, Finished, ImageBegun, LogProbs, TextDelta, Usage
from pardalis.serve.answer import Answer, Item, PartialImage, WholeImage, in_base64, told
from pardalis.serve.endpoint import Writer, respond
from pardalis.serve.errors import APIError
from pardalis.serve.event_stream import event
from pardalis.serve.filters import Refusal
from pardalis.serve.schema import Body, Count, Modality, Schema, mode_of
from pardalis.serve.service import Service, new_id


class ImageTool(Schema):
    """Asks for images, which the model generates itself."""

    type: Literal["image_generation"]
    partial_images: int | None = Field(None, ge=0, le=64)
    output_format: Literal["png"] | None = None


class TextFormat(Schema):
    type: Literal["text"]


class TextOptions(Schema):
    format: TextFormat | None = None


class ResponseRequest(Body):
    """A conversation to be continued by one turn of the assistant."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    modalities: list[Modality] | None = Field(None, description="of the answer; default: both")
    tools: list[ImageTool] | None = None
    tool_choice: Literal["auto"] | None = None
    max_output_tokens: Count | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[Literal["message.output_text.logprobs", "retrieved.content"]] | None = Field(
        None,
        description="log-probabilities of texts; the texts and images of retrieved documents, "
        "unless a filter judges answers or the model has no decoder of images",
    )
    partial_images: int | None = Field(
        None, ge=0, le=64, description="most views of an image while it is written; default: all"
    )
    text: TextOptions | None = None
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    truncation: Literal["disabled"] | None = None

    @property
    def views(self) -> int:
        """Most views of an image while it is written."""
        for tool in self.tools or ():
            if tool.partial_images is not None:
                return tool.partial_images
        return 64 if self.partial_images is None else self.partial_images

    def options(self) -> dict[str, Any]:
        options = {**self.sampling(), "chat": True, "mode": mode_of(self.modalities)}
        if self.max_output_tokens:
            options["max_new_tokens"] = self.max_output_tokens
        if "message.output_text.logprobs" in (self.include or ()) or self.top_logprobs:
            options["logprobs"] = max(1, self.top_logprobs or 0)
        return options

    def document(self, service: Service) -> Document:
        return service.prompts.of_items(self.input, self.instructions)


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/responses", summary="Continue a conversation; texts and images in order")
    async def responses(request: Request, body: ResponseRequest) -> Response:
        return await respond(service, request, body, _Writer)

    return routes


class _Writer(Writer[ResponseRequest]):
    """Writes an answer as a response, or as its events."""

    def __init__(self, service: Service, body: ResponseRequest, options: dict[str, Any]) -> None:
        super().__init__(service, body, options)
        self.partial = body.views > 0
        self.contents = "retrieved.content" in (body.include or ())
        self._number = 0  # of the next event
        self._output: list[dict[str, Any]] = []
        self._text: _Text | None = None  # that is being written
        self._image: dict[str, Any] = {}  # likewise
        self._refused = False
        self._head = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "model": body.model,
            "instructions": body.instructions,
            "metadata": body.metadata or {},
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [tool.model_dump(exclude_none=True) for tool in body.tools or ()],
            "temperature": options.get("temperature"),
            "top_p": options.get("top_p"),
            "max_output_tokens": body.max_output_tokens,
            "store": False,
            "seed": options["seed"],
        }

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        [answer] = answers
        self._head |= told(answer.retrieved)
        rest = self.log_probs(answer.log_probs, self.body.top_logprobs)
        for part in answer.parts:
            if isinstance(part, str):
                item = _message(new_id("msg"))
                self._output.append(_complete_message(item, _text_part(part, rest)))
                rest = []  # the first message has those of the whole answer
            else:
                self._output.append(_image_item(new_id("ig"), part))
        if answer.refusal is not None:
            item = _message(new_id("msg"))
            self._output.append(_complete_message(item, _refusal_part(answer.refusal)))
            self._refused = True
        assert answer.finished is not None
        return self._response(answer.finished)

    def begin(self) -> Iterator[str]:
        yield self._event("response.created", response=self._open())
        yield self._event("response.in_progress", response=self._open())

    def write(self, number: int, item: Item) -> Iterator[str]:
        if isinstance(item, ImageBegun | Refusal | Finished):
            yield from self._end_text()
        match item:
            case TextDelta() | LogProbs():
                yield from self._write_text(item)
            case ImageBegun() | PartialImage() | WholeImage():
                yield from self._write_image(item)
            case Refusal():
                yield from self._write_refusal(item)
            case DocumentsRetrieved():
                self._head |= told(item)  # of the response at the end
            case Finished(reason="failed", error=error):
                yield self._failed(error)
            case Finished():
                response = self._response(item)
                yield self._event(f"response.{response['status']}", response=response)

    def failed(self, error: APIError) -> str:
        return self._failed(error.message)

    # ── parts ────────────────────────────────────────────────────────────────────────────────────

    def _event(self, name: str, **data: Any) -> str:
        self._number += 1
        return event({"type": name, "sequence_number": self._number - 1, **data}, name)

    def _write_text(self, item: TextDelta | LogProbs) -> Iterator[str]:
        if isinstance(item, LogProbs):
            self._latest_log_probs().extend(self.log_probs(item.tokens, self.body.top_logprobs))
            return
        if self._text is None:
            self._text = _Text(_message(new_id("msg")))
            yield from self._begin_message(self._text.item, _text_part("", []))
        self._text.text += item.text
        yield self._event(
            "response.output_text.delta", **self._at(self._text.item), delta=item.text,
            logprobs=self._text.new_log_probs(),
        )  # fmt: skip

    def _latest_log_probs(self) -> list[dict[str, Any]]:
        """Return the list of the text that is being written, or else of the last one."""
        if self._text is not None:
            return self._text.log_probs
        for item in reversed(self._output):
            if item["type"] == "message":
                found: list[dict[str, Any]] = item["content"][0].get("logprobs", [])
                return found
        return []

    def _end_text(self) -> Iterator[str]:
        if (text := self._text) is None:
            return
        yield self._event(
            "response.output_text.done", **self._at(text.item), text=text.text,
            logprobs=text.log_probs,
        )  # fmt: skip
        yield from self._end_message(text.item, _text_part(text.text, text.log_probs))
        self._text = None

    def _write_refusal(self, refusal: Refusal) -> Iterator[str]:
        self._refused = True
        item = _message(new_id("msg"))
        yield from self._begin_message(item, _refusal_part(""))
        yield self._event("response.refusal.delta", **self._at(item), delta=refusal.reason)
        yield self._event("response.refusal.done", **self._at(item), refusal=refusal.reason)
        yield from self._end_message(item, _refusal_part(refusal.reason))

    def _begin_message(self, item: dict[str, Any], part: dict[str, Any]) -> Iterator[str]:
        yield self._item_event("added", item)
        yield self._event("response.content_part.added", **self._at(item), part=part)

    def _end_message(self, item: dict[str, Any], part: dict[str, Any]) -> Iterator[str]:
        yield self._event("response.content_part.done", **self._at(item), part=part)
        whole = _complete_message(item, part)
        yield self._item_event("done", whole)
        self._output.append(whole)

    def _write_image(self, item: ImageBegun | PartialImage | WholeImage) -> Iterator[str]:
        if isinstance(item, ImageBegun):
            self._image = {**_image_item(new_id("ig")), "status": "in_progress"}
            yield self._item_event("added", self._image)
            yield self._image_event("in_progress")
            yield self._image_event("generating")
        elif isinstance(item, WholeImage):
            whole = _image_item(self._image["id"], item)
            yield self._image_event("completed")
            yield self._item_event("done", whole)
            self._output.append(whole)
        elif item.number < self.body.views:
            yield self._image_event(
                "partial_image",
                partial_image_index=item.number,
                partial_image_b64=in_base64(item.data),
                rows=item.rows,
                image_rows=self.service.image_rows,
            )

    def _item_event(self, kind: str, item: dict[str, Any]) -> str:
        name = f"response.output_item.{kind}"
        return self._event(name, output_index=len(self._output), item=item)

    def _image_event(self, kind: str, **data: Any) -> str:
        place = {"output_index": len(self._output), "item_id": self._image["id"]}
        return self._event(f"response.image_generation_call.{kind}", **place, **data)

    def _at(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"item_id": item["id"], "output_index": len(self._output), "content_index": 0}

    def _open(self) -> dict[str, Any]:
        return {**self._head, "status": "in_progress", "output": [], "error": None, "usage": None,
                "incomplete_details": None}  # fmt: skip

    def _response(self, finished: Finished) -> dict[str, Any]:
        reasons = {"length": "max_output_tokens", "aborted": "server_stopped"}
        reason = "content_filter" if self._refused else reasons.get(finished.reason)
        return {
            **self._head,
            "status": "incomplete" if reason else "completed",
            "incomplete_details": {"reason": reason} if reason else None,
            "output": self._output,
            "error": None,
            "usage": _usage(finished.usage),
        }

    def _failed(self, message: str) -> str:
        error = {"code": "server_error", "message": message}
        failed = {**self._open(), "status": "failed", "output": self._output, "error": error}
        return self._event("response.failed", response=failed)


class _Text:
    """A message that is being written."""

    def __init__(self, item: dict[str, Any]) -> None:
        self.item, self.text = item, ""
        self.log_probs: list[dict[str, Any]] = []
        self._sent = 0

    def new_log_probs(self) -> list[dict[str, Any]]:
        """Return those that no event has had."""
        new, self._sent = self.log_probs[self._sent :], len(self.log_probs)
        return new


def _message(key: str) -> dict[str, Any]:
    head = {"id": key, "type": "message", "role": "assistant"}
    return {**head, "status": "in_progress", "content": []}


def _complete_message(item: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    return {**item, "status": "completed", "content": [part]}


def _text_part(text: str, log_probs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": log_probs}


def _refusal_part(reason: str) -> dict[str, Any]:
    return {"type": "refusal", "refusal": reason}


def _image_item(key: str, image: WholeImage | None = None) -> dict[str, Any]:
    result = in_base64(image.data) if image else None
    return {"id": key, "type": "image_generation_call", "status": "completed", "result": result}


def _usage(used: Usage) -> dict[str, Any]:
    return {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "image_tokens": used.prompt_image_tokens},
        "output_tokens": used.completion_tokens,
        "output_tokens_details": {
            "reasoning_tokens": 0,
            "image_tokens": used.completion_image_tokens,
        },
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }
