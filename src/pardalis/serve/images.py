"""``POST /v1/images/generations``: images of a text."""

import base64
import io
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Literal

import PIL.Image
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from pardalis.documents import Document, Text
from pardalis.inference import Finished, Stream, Usage
from pardalis.serve.completions import unicode_text
from pardalis.serve.disconnect import unless_disconnected
from pardalis.serve.errors import APIError
from pardalis.serve.event_stream import EventStream, event
from pardalis.serve.schema import Count, Sampling
from pardalis.serve.service import PartialImage, Service, WholeImage

Format = Literal["png", "jpeg", "webp"]


class ImageRequest(Sampling):
    """A text to be drawn."""

    model: str | None = None  # type: ignore[assignment]
    prompt: str
    n: Count | None = None
    size: str | None = Field(None, description="auto, or the size that the model has")
    response_format: Literal["b64_json"] | None = None
    output_format: Format | None = None
    quality: Literal["auto"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(
        None, ge=0, le=64, description="most views of an image while it is written; default: all"
    )
    chat: bool = Field(False, description="ask as a user's turn, for models of conversations")

    def options(self) -> dict[str, Any]:
        if self.max_images not in (None, 1):
            raise APIError("max_images must be 1; n asks for more images.", param="max_images")
        return {**self.sampling(), "mode": "image", "chat": self.chat, "max_images": 1}


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/images/generations", summary="Draw a text")
    async def images_generations(request: Request, body: ImageRequest) -> Response:
        size = f"{service.resolution}x{service.resolution}"
        if body.size not in (None, "auto", size):
            raise APIError(f"size must be auto or {size}, got {body.size[:20]!r}.", param="size")
        options = body.options()
        document = Document(
            (Text(unicode_text(body.prompt, "prompt"), "user" if body.chat else None),)
        )
        model = body.model or service.name
        streams = await service.submit(document, options, model, body.n or 1)
        writer = _Writer(service, body, options, size)
        if body.stream:
            return EventStream(writer.events(streams), service.config.ping_s)
        answers = await unless_disconnected(request, service.answers(streams, options))
        images = [image for answer in answers for image in answer.images]
        used = [answer.usage for answer in answers]
        return JSONResponse(await service.in_thread(writer.result, images, used))

    return routes


class _Writer:
    """Writes images as a result, or as events."""

    def __init__(
        self, service: Service, body: ImageRequest, options: dict[str, Any], size: str
    ) -> None:
        self.service, self.body, self._options = service, body, options
        self._format = body.output_format or "png"
        self._head = {
            "size": size,
            "quality": "auto",
            "background": "opaque",
            "output_format": self._format,
            "seed": options["seed"],
        }

    def result(self, images: Sequence[WholeImage], used: Sequence[Usage]) -> dict[str, Any]:
        data = [{"b64_json": self._encoded(image.png)} for image in images]
        return {"created": int(time.time()), "data": data, "usage": _usage(used), **self._head}

    async def events(self, streams: Sequence[Stream]) -> AsyncIterator[str]:
        most = 64 if self.body.partial_images is None else self.body.partial_images
        merged = self.service.merged(streams, self._options, partial=most > 0)
        done: dict[int, WholeImage] = {}
        try:
            async with aclosing(merged) as items:
                async for number, item in items:
                    match item:
                        case PartialImage() if item.number < most:
                            yield self._event("partial_image", number, item.png, {
                                "partial_image_index": item.number,
                                "rows": item.rows,
                                "image_rows": self.service.image_rows,
                            })  # fmt: skip
                        case WholeImage():
                            done[number] = item
                        case Finished() if number in done:
                            used = {"usage": _usage([item.usage])}
                            yield self._event("completed", number, done[number].png, used)
        except APIError as error:
            yield event({"type": "error", **error.body}, "error")

    def _event(self, kind: str, number: int, png: bytes, more: dict[str, Any]) -> str:
        name = f"image_generation.{kind}"
        head = {"type": name, "created_at": int(time.time()), "image_index": number}
        return event({**head, "b64_json": self._encoded(png), **self._head, **more}, name)

    def _encoded(self, png: bytes) -> str:
        if self._format != "png":
            buffer = io.BytesIO()
            PIL.Image.open(io.BytesIO(png)).save(buffer, format=self._format, quality=90)
            png = buffer.getvalue()
        return base64.b64encode(png).decode()


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
