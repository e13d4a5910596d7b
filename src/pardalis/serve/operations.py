"""What runs the server, and what it serves: models, health, readiness, metrics."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from pardalis.serve.service import Service


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    def described(model: str) -> dict[str, Any]:
        head = {"id": model, "object": "model", "created": service.started, "owned_by": "pardalis"}
        tokenizer = service.bundle.codec.image_tokenizer.config
        return {
            **head,
            "adapter": model != service.name,
            "context": service.bundle.model.context,
            "image_size": service.resolution,
            "image_tokens": tokenizer.codes_per_image,
            "generates_images": tokenizer.has_decoder,
        }

    @routes.get("/v1/models", summary="What this server has")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described(model) for model in service.models]}

    @routes.get("/v1/models/{model:path}", summary="One model")
    async def model(model: str) -> dict[str, Any]:
        service.adapter_of(model)
        return described(model)

    @routes.get("/health", summary="Whether the server works; else the process has to be replaced")
    async def health() -> Response:
        if (reason := service.failure) is not None:
            return JSONResponse({"status": "failed", "reason": reason}, 503)
        return JSONResponse({"status": "ok"})

    @routes.get("/ready", summary="Whether requests are taken")
    async def ready() -> Response:
        if not service.accepting:
            return JSONResponse({"status": "stopping"}, 503)
        if (reason := service.failure) is not None:
            return JSONResponse({"status": "failed", "reason": reason}, 503)
        return JSONResponse({"status": "ready"})

    @routes.get("/metrics", summary="For Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    return routes
