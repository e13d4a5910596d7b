"""A page on which raters judge the items of a pairwise study, blind.

What is sent to a browser has left and right, never A and B, which only the server can resolve.
"""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from pydantic import Field

from pardalis import __version__
from pardalis.serve import errors
from pardalis.serve.app import PAGE, add_page
from pardalis.serve.config import ServeConfig
from pardalis.serve.errors import APIError
from pardalis.serve.middleware import Gate
from pardalis.serve.schema import Schema
from pardalis.serve.server import AppServer
from pardalis.studies.pairwise import Desk, Study

STUDY_PAGE = Path(__file__).parent / "study_page"
_CLOSED = ("/progress", "/items/", "/judgements", "/images/")  # what a key opens
_SHARED = ("style.css", "theme.js", "dom.js", "icon.svg")  # with the page of a model

Fulfilment = Literal["fulfils", "partially", "does not"]


class Judged(Schema):
    """What a rater says of an item."""

    rater: str = Field(max_length=200)
    item: int
    left: Fulfilment
    right: Fulfilment
    choice: Literal["left", "right", "same"]


def create_study_app(study: Study, config: ServeConfig) -> FastAPI:
    """Return the application of a study; raises as :meth:`Study.judgements`."""
    desk = Desk(study)
    app = FastAPI(title="Pardalis: a study", version=__version__)
    errors.install(app)

    def progress(rater: str) -> dict[str, Any]:
        return {"items": len(study.items), "judged": desk.judged(rater)}

    @app.get("/progress", summary="How many items there are, and which a rater has judged")
    def progress_of(rater: str) -> dict[str, Any]:
        return progress(rater)

    @app.get("/items/{number}", summary="A prompt and two answers")
    def item(number: int) -> dict[str, Any]:
        found = study.item(number)
        return {
            "prompt": found.prompt,
            "left": found.answers[found.left],
            "right": found.answers[found.right],
        }

    @app.post("/judgements", summary="Judge an item; a later judgement of it replaces this one")
    def judge(judged: Judged) -> dict[str, Any]:
        desk.take(judged.rater, judged.item, judged.left, judged.right, judged.choice)
        return progress(judged.rater)

    @app.get("/images/{name}", summary="An image of an item")
    def image(name: str) -> Response:
        return Response(study.image(name), media_type="image/png")

    @app.get("/look/{name}", include_in_schema=False)
    def look(name: str) -> Response:
        if name not in _SHARED:
            raise APIError(f"The page has no file {name!r}.", 404)
        return FileResponse(PAGE / name, headers={"Cache-Control": "no-cache"})

    add_page(app, STUDY_PAGE)
    app.add_middleware(Gate, config=config, closed=_CLOSED)
    return app


def serve_study(
    study: Study,
    config: ServeConfig,
    listener: socket.socket,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve the page of a study until SIGINT or SIGTERM; raises as :meth:`Study.judgements`."""
    app = create_study_app(study, config)
    asyncio.run(AppServer(app, config.stop_timeout_s, on_ready).serve(sockets=[listener]))
