"""``POST /v1/images/generations``: images of a text."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from pardalis.documents import Document
from pardalis.inference import DocumentsRetrieved, Finished, Usage
from pardalis.origin import ImageFormat
from pardalis.serve.answer import Answer, Item, PartialImage, WholeImage, in_base64, told
from pardalis.serve.endpoint import Writer, respond
from pardalis.serve.errors import APIError
from pardalis.serve.event_stream import event
from pardalis.serve.filters import Refusal
from pardalis.serve.schema import Body, Count, prompt_document
from pardalis.serve.service import Service


class ImageRequest(Body):
    """A text to be drawn."""

    model: str | None = None  # type: ignore[assignment]
    prompt: str
    n: Count | None = None
    size: str | None = Field(None, description="auto, or the size that the model has")
    response_format: Literal["b64_json"] | None = None
    output_format: ImageFormat | None = None
    quality: Literal["auto"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    partial_images: int | None = Field(
        None, ge=0, le=64, description="most views of an image while it is written; default: all"
    )
    chat: bool = Field(False, description="ask as a user's turn, for models of conversations")

    @property
    def choices(self) -> int:
        return self.n or 1

    def options(self) -> dict[str, Any]:
        if self.max_images not in (None, 1):
            raise APIError("max_images must be 1; n asks for more images.", param="max_images")
        return {**self.sampling(), "mode": "image", "chat": self.chat, "max_images": 1}

    def document(self, service: Service) -> Document:
        if self.size not in (None, "auto", service.image_size):
            raise APIError(
                f"size must be auto or {service.image_size}, got {self.size[:20]!r}.", param="size"
            )
        return prompt_document(self.prompt, "user" if self.chat else None)


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/images/generations", summary="Draw a text")
    async def images_generations(request: Request, body: ImageRequest) -> Response:
        return await respond(service, request, body, _Writer)

    return routes


class _Writer(Writer[ImageRequest]):
    """Writes images as a result, or as events; those that are refused as errors."""

    def __init__(self, service: Service, body: ImageRequest, options: dict[str, Any]) -> None:
        super().__init__(service, body, options)
        self._most = 64 if body.partial_images is None else body.partial_images
        self.partial = self._most > 0
        self.image_format = body.output_format or "png"
        self._done: dict[int, WholeImage] = {}
        self._head = {
            "size": service.image_size,
            "quality": "auto",
            "background": "opaque",
            "output_format": self.image_format,
            "seed": options["seed"],
        }

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        refusals = [answer.refusal for answer in answers if answer.refusal is not None]
        if len(refusals) == len(answers):
            raise _refused(refusals[0])
        images = [image for answer in answers for image in answer.images]
        result = {
            "created": int(time.time()),
            "data": [{"b64_json": in_base64(image.data)} for image in images],
            "usage": _usage([answer.usage for answer in answers]),
            **self._head,
            **told(answers[0].retrieved),
        }
        return {**result, "refusals": refusals} if refusals else result

    def write(self, number: int, item: Item) -> Iterator[str]:
        match item:
            case PartialImage() if item.number < self._most:
                yield self._event("partial_image", number, item, {
                    "partial_image_index": item.number,
                    "rows": item.rows,
                    "image_rows": self.service.image_rows,
                })  # fmt: skip
            case WholeImage():
                self._done[number] = item
            case DocumentsRetrieved():
                self._head |= told(item)
            case Refusal(reason=reason):
                yield self.failed(_refused(reason))
            case Finished() if number in self._done:
                used = {"usage": _usage([item.usage])}
                yield self._event("completed", number, self._done[number], used)

    def refused(self, refusal: Refusal) -> None:
        raise _refused(refusal.reason)

    def failed(self, error: APIError) -> str:
        return event({"type": "error", **error.body}, "error")

    def _event(
        self, kind: str, number: int, image: PartialImage | WholeImage, more: dict[str, Any]
    ) -> str:
        name = f"image_generation.{kind}"
        head = {"type": name, "created_at": int(time.time()), "image_index": number}
        return event({**head, "b64_json": in_base64(image.data), **self._head, **more}, name)


def _refused(reason: str) -> APIError:
    return APIError(reason, code="moderation_blocked")


def _usage(used: Sequence[Usage]) -> dict[str, Any]:
    prompt = used[0] if used else None
    given = prompt.prompt_tokens if prompt else 0
    images = prompt.prompt_image_tokens if prompt else 0
    made = sum(each.completion_tokens for each in used)
    return {
        "input_tokens": given,
        "output_tokens": made,
        "total_tokens": given + made,
        "input_tokens_details": {"text_tokens": given - images, "image_tokens": images},
        "output_tokens_details": {
            "image_tokens": sum(each.completion_image_tokens for each in used),
            "text_tokens": sum(each.completion_text_tokens for each in used),
        },
    }
