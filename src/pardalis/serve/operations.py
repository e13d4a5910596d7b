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

    @routes.get("/health", summary="Whether the engine works; else the process has to be replaced")
    async def health() -> Response:
        status = "ok" if service.is_running else "failed"
        return JSONResponse({"status": status}, 200 if service.is_running else 503)

    @routes.get("/ready", summary="Whether requests are taken")
    async def ready() -> Response:
        is_ready = service.accepting and service.is_running
        status = "ready" if is_ready else "stopping" if not service.accepting else "failed"
        return JSONResponse({"status": status}, 200 if is_ready else 503)

    @routes.get("/metrics", summary="For Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    return routes
