"""The process: load, listen, say where, and stop without losing answers."""

import asyncio
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from pardalis.errors import ConfigError
from pardalis.inference import Engine
from pardalis.serve.app import create_app
from pardalis.serve.config import ServeConfig
from pardalis.serve.service import Service

logger = logging.getLogger(__name__)

_SPARE_FILES = 32  # descriptors that connections leave to files
_WARN_EVERY_S = 60.0
_POLL_S = 0.05  # of whether answers are still open


def served_name(bundle: Path) -> str:
    """Return what clients call a model by default: its folder, or the run that it belongs to."""
    folder = bundle.resolve()
    return folder.parent.name if folder.name == "bundle" else folder.name


class Listener(socket.socket):
    """A listening socket that turns clients away when the process has no file descriptor for them.

    asyncio would report each of thousands of failed attempts, again and again, and serve nobody.
    """

    _warned_at = -_WARN_EVERY_S

    @classmethod
    def at(cls, host: str, port: int) -> "Listener":
        """Listen at an address, and let the process open as many files as it may."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        made = socket.create_server((host, port), family=family, backlog=2048)
        found = cls(fileno=made.detach())
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(OSError, ValueError):  # no limit, or more than the system allows
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        return found

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # The system gives the lowest number that is free.
        if most < 0 or connection.fileno() < most - min(_SPARE_FILES, most // 4):
            return connection, address
        connection.close()
        if (now := time.monotonic()) >= self._warned_at + _WARN_EVERY_S:
            self._warned_at = now
            logger.warning(
                "Clients are turned away: the process may have %d files and connections open; "
                "raise that limit (ulimit -n).",
                most,
            )
        raise ConnectionAbortedError


def listen(config: ServeConfig) -> socket.socket:
    """Return a socket at the address of the config, so that a taken one is noticed at once.

    Raises:
        ConfigError: the address is taken, not of this machine, or not allowed.
    """
    try:
        return Listener.at(config.host, config.port)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise ConfigError(
            f"port {config.port} of {config.host} cannot be listened on: {reason}; choose another "
            "`port` or `host`."
        ) from error


def serve(
    engine: Engine,
    config: ServeConfig,
    name: str,
    on_ready: Callable[[str], None] = lambda url: None,
    listener: socket.socket | None = None,
    **parts: Any,
) -> None:
    """Serve an engine until SIGINT or SIGTERM; open answers have some time to finish.

    Args:
        name: what clients call the model.
        on_ready: called with the address once requests are taken.
        listener: what :func:`listen` returned; default: a new one.
        parts: further arguments of :class:`Service`.

    Raises:
        ConfigError: the address cannot be listened on; or as :class:`Service`.
    """
    with listener or listen(config) as found:
        asyncio.run(_serve(partial(Service, engine, config, name, **parts), on_ready, found))


async def _serve(
    make_service: Callable[[], Service], on_ready: Callable[[str], None], listener: socket.socket
) -> None:
    service = make_service()
    try:
        await Server(service, on_ready).serve(sockets=[listener])
    finally:
        service.close()


class Protocol(H11Protocol):
    """HTTP in which the head of a request has to arrive in time, or the connection is closed.

    Uvicorn waits for it without end, so who opens connections and sends nothing, or a header a
    minute, soon holds all that the process may have open.
    """

    head_timeout_s = 30.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()

    def _watch(self) -> None:
        """Begin to wait for a head, go on, or end it once the head is there."""
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_timeout_s, self.transport.close)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class AppServer(uvicorn.Server):
    """Serves an application, says where, and takes the signal that stops it for no failure."""

    def __init__(
        self, app: FastAPI, stop_timeout_s: float, on_ready: Callable[[str], None]
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(stop_timeout_s) + 5,
                http=Protocol,  # on h11, whatever else is installed, as it alone limits headers
                h11_max_incomplete_event_size=64 << 10,
                ws="none",
            )
        )
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            self._on_ready(f"http://{shown}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().shutdown(sockets)
        finally:
            self._captured_signals.clear()  # the signal did what it should: no failure


class Server(AppServer):
    """Stops in three steps: not ready, open answers finish, the rest is aborted.

    It listens until no answer is open, so that ``/ready`` tells proxies to ask elsewhere.
    """

    def __init__(self, service: Service, on_ready: Callable[[str], None]) -> None:
        super().__init__(create_app(service), service.config.stop_timeout_s, on_ready)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.stop_accepting()
        loop = asyncio.get_running_loop()
        end = loop.time() + self._service.config.stop_timeout_s
        timer = loop.call_at(end, self._service.abort_all)
        try:
            while self._service.open and loop.time() < end and not self.force_exit:
                await asyncio.sleep(_POLL_S)
            self.config.timeout_graceful_shutdown = max(0, int(end - loop.time())) + 5
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.stop_accepting()
        if self.should_exit and sig == signal.SIGINT:
            self._service.abort_all()
        super().handle_exit(sig, frame)
