"""Server-sent events: a response that ends when its reader leaves."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # no proxy may hold events back
_PING = ": ping\n\n"

DONE = "data: [DONE]\n\n"


def event(data: dict[str, Any], name: str | None = None) -> str:
    """Return one event; ``name`` is its type, for clients that listen for types."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n"


class EventStream(StreamingResponse):
    """Events as they come; what makes them is cancelled as soon as the client has left."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], ping_s: float) -> None:
        super().__init__(_with_pings(events, ping_s), headers=_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:

            async def notice_the_end() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(notice_the_end)
            await self.stream_response(send)
            group.cancel_scope.cancel()


async def _with_pings(events: AsyncIterator[str], ping_s: float) -> AsyncIterator[str]:
    """Yield events, and a comment whenever none has come for a while."""
    following: asyncio.Task[str] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(_next(events))
            done, _ = await asyncio.wait({following}, timeout=ping_s)
            if not done:
                yield _PING
                continue
            try:
                item = following.result()
            except StopAsyncIteration:
                return
            following = None
            yield item
    finally:
        if following is not None:
            following.cancel()
            await asyncio.wait({following})
        if close := getattr(events, "aclose", None):
            await close()


async def _next(events: AsyncIterator[str]) -> str:
    return await anext(events)
