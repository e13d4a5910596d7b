"""The application: every route behind one gate, and the page."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse

from pardalis import __version__
from pardalis.serve import chat, completions, errors, images, operations, responses
from pardalis.serve.middleware import Gate
from pardalis.serve.service import Service

PAGE = Path(__file__).parent / "page"


_NO_CACHE = {"Cache-Control": "no-cache"}  # a browser asks each time whether it has the newest


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
    add_page(app, PAGE)
    if origins := list(service.config.cors_origins):
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(Gate, config=service.config, metrics=service.metrics)
    return app


def add_page(app: FastAPI, folder: Path) -> None:
    """Serve the files of a folder, each at its name, and index.html at / too; nothing else."""

    def add(path: str, file: Path) -> None:
        def content() -> FileResponse:
            return FileResponse(file, headers=_NO_CACHE)

        app.add_api_route(path, content, methods=["GET", "HEAD"], include_in_schema=False)

    for file in sorted(folder.iterdir()):
        add(f"/{file.name}", file)
    add("/", folder / "index.html")
