"""The application: every route behind one gate, and the page."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles

from pardalis import __version__
from pardalis.serve import chat, completions, errors, images, operations, responses
from pardalis.serve.middleware import Gate
from pardalis.serve.service import Service

PAGE = Path(__file__).parent / "page"


class Page(StaticFiles):
    """The page's files; a browser asks each time whether it has the newest of each."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def create_app(service: Service) -> FastAPI:
    """Return the application of a service, for any ASGI server."""
    app = FastAPI(
        title="Pardalis",
        version=__version__,
        summary="Texts and images in any order, by the API of OpenAI.",
    )
    errors.install(app)
    for part in (chat, responses, images, completions, operations):
        app.include_router(part.router(service))
    if PAGE.is_dir():
        app.mount("/", Page(directory=PAGE, html=True), name="page")
    if origins := list(service.config.cors_origins):
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(Gate, config=service.config, metrics=service.metrics)
    return app
