"""What every request passes: an id, a log line, limits of its body, the host, the key, headers."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pardalis.serve.config import ServeConfig, is_address
from pardalis.serve.errors import APIError
from pardalis.serve.keys import Keys
from pardalis.serve.metrics import Metrics

logger = logging.getLogger(__name__)

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
    """Wraps the application: counts and logs a request, checks its key, limits its body.

    Args:
        closed: paths that need a key if there are any; one that ends with a slash, all below it.
    """

    def __init__(
        self,
        app: ASGIApp,
        config: ServeConfig,
        metrics: Metrics | None = None,
        closed: Sequence[str] = ("/v1/", "/metrics"),
    ) -> None:
        self.app, self.config, self.metrics = app, config, metrics
        self._keys, self._closed = Keys(config.api_keys), tuple(closed)

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
            self._check_host(scope)
            self._check_key(scope)
            await self.app(scope, await self._with_body(scope, receive), answer)
        except APIError as error:
            await error.response()(scope, receive, answer)
        finally:
            self._record(scope, status, time.monotonic() - begun, key)

    def _check_host(self, scope: Scope) -> None:
        if self.config.hosts is None:
            return
        name = _name_of(Headers(scope=scope).get("host", ""))
        if "." not in name or is_address(name) or name.endswith(".localhost"):
            return
        if name not in self.config.hosts:
            raise APIError(
                f"This server does not answer to the name {name[:200]!r}; whoever runs it can add "
                "the name to its hosts, or ask for keys.", 403, code="unknown_host",
            )  # fmt: skip

    def _check_key(self, scope: Scope) -> None:
        if not self._needs_key(scope) or scope["method"] == "OPTIONS":
            return
        if not self._keys.open(Headers(scope=scope).get("authorization", "")):
            raise APIError(
                "This server needs a key; send it as the header Authorization: Bearer KEY.", 401,
                code="invalid_api_key",
            )  # fmt: skip

    def _needs_key(self, scope: Scope) -> bool:
        path, root = scope["path"], scope.get("root_path", "")  # where the application is mounted
        if path.startswith(f"{root}/"):
            path = path[len(root) :]
        return any(
            path.startswith(each) if each.endswith("/") else path == each for each in self._closed
        )

    async def _with_body(self, scope: Scope, receive: Receive) -> Receive:
        """Read the body within its limits of size and time; return what gives it again."""
        most, body = self.config.max_body_mib << 20, bytearray()
        too_large = APIError(
            f"The body is larger than {self.config.max_body_mib} MiB; send less.", 413
        )
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length[:20]) > most:
            raise too_large
        try:
            async with asyncio.timeout(self.config.body_timeout_s):
                more = True
                while more:
                    message = await receive()
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise APIError(
                f"The body did not arrive within {self.config.body_timeout_s:g} s.", 408
            ) from None
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return again

    def _record(self, scope: Scope, status: int, seconds: float, key: str) -> None:
        route = scope.get("route")
        path = getattr(route, "path", None) or "other"
        if self.metrics is not None:
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.request_seconds.labels(path).observe(seconds)
        record: dict[str, Any] = {
            "event": "request",
            "id": key,
            "method": scope["method"],
            "path": path if path != "other" else scope["path"][:200],
            "status": status,
            "seconds": round(seconds, 4),
            "client": (scope.get("client") or ("",))[0],
        }
        logger.info(json.dumps(record), extra={"fields": record})


def _name_of(host: str) -> str:
    """Return a Host header without its port and a final dot."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".").lower()
