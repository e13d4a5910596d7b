"""What every request passes: an id, a log line, limits of its body, the key, headers."""

import asyncio
import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pardalis.serve.config import ServeConfig
from pardalis.serve.errors import APIError
from pardalis.serve.service import Service

logger = logging.getLogger(__name__)

_OPEN = ("/health", "/ready")  # need no key, as whatever runs the server asks for them
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_DOCS = ("/docs", "/redoc")  # FastAPI's own pages load scripts from elsewhere


class Gate:
    """Wraps the application: counts and logs a request, checks its key, limits its body."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service, self.config = app, service, service.config
        self._keys = [_digest(key) for key in self.config.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        key, begun = uuid.uuid4().hex, time.monotonic()
        status = 499  # the client has left before an answer began

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = key
                if not scope["path"].startswith(_DOCS):
                    headers.update(_HEADERS)
            await send(message)

        try:
            self._check_key(scope)
            body = _Body(receive, Headers(scope=scope), self.config)
            await self.app(scope, body.receive, answer)
        except APIError as error:
            await error.response()(scope, receive, answer)
        finally:
            self._record(scope, status, time.monotonic() - begun, key)

    def _check_key(self, scope: Scope) -> None:
        path = scope["path"]
        is_api = path.startswith("/v1/") or path == "/metrics"
        if not self._keys or not is_api or path in _OPEN or scope["method"] == "OPTIONS":
            return
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        found = _digest(given.strip())
        known = [hmac.compare_digest(found, key) for key in self._keys]  # all, in constant time
        if scheme.lower() != "bearer" or not any(known):
            raise APIError(
                "This server needs a key; send it as the header Authorization: Bearer KEY.", 401,
                code="invalid_api_key",
            )  # fmt: skip

    def _record(self, scope: Scope, status: int, seconds: float, key: str) -> None:
        route = scope.get("route")
        path = getattr(route, "path", None) or "other"
        self.service.metrics.requests.labels(path, str(status)).inc()
        self.service.metrics.request_seconds.labels(path).observe(seconds)
        record: dict[str, Any] = {
            "event": "request",
            "id": key,
            "method": scope["method"],
            "path": path if path != "other" else scope["path"][:200],
            "status": status,
            "seconds": round(seconds, 4),
            "client": (scope.get("client") or ("",))[0],
        }
        logger.info(json.dumps(record))


class _Body:
    """Reads a body within its limits of size and time."""

    def __init__(self, receive: Receive, headers: Headers, config: ServeConfig) -> None:
        self._receive = receive
        self._most, self._left_s = config.max_body_mib << 20, config.body_timeout_s
        self._config = config
        self._size, self._whole = 0, False
        if (
            int(length if (length := headers.get("content-length", "0")).isdigit() else 0)
            > self._most
        ):
            raise self._too_large()

    async def receive(self) -> MutableMapping[str, Any]:
        if self._whole:
            return await self._receive()
        begun = time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), self._left_s)
        except TimeoutError:
            raise APIError(
                f"The body did not arrive within {self._config.body_timeout_s:g} s.", 408
            ) from None
        self._left_s -= time.monotonic() - begun
        self._size += len(message.get("body", b""))
        if self._size > self._most:
            raise self._too_large()
        self._whole = not message.get("more_body", False)
        return message

    def _too_large(self) -> APIError:
        return APIError(f"The body is larger than {self._config.max_body_mib} MiB; send less.", 413)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
