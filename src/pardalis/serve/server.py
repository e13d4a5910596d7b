"""The process: load, listen, say where, and stop without losing answers."""

import asyncio
import logging
import signal
from collections.abc import Callable
from types import FrameType

import uvicorn

from pardalis.inference import Engine
from pardalis.serve.app import create_app
from pardalis.serve.config import ServeConfig
from pardalis.serve.service import Service

logger = logging.getLogger(__name__)


def serve(
    engine: Engine,
    config: ServeConfig,
    name: str,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve an engine until SIGINT or SIGTERM; open answers have some time to finish.

    Args:
        on_ready: called with the address once requests are taken.

    Raises:
        OSError: the address cannot be listened on.
    """
    asyncio.run(_serve(engine, config, name, on_ready))


async def _serve(
    engine: Engine, config: ServeConfig, name: str, on_ready: Callable[[str], None]
) -> None:
    service = Service(engine, config, name)
    try:
        server = _Server(service, on_ready)
        await server.serve()
    finally:
        service.close()


class _Server(uvicorn.Server):
    """Stops in three steps: not ready, open answers finish, the rest is aborted."""

    def __init__(self, service: Service, on_ready: Callable[[str], None]) -> None:
        config = service.config
        super().__init__(
            uvicorn.Config(
                create_app(service),
                host=config.host,
                port=config.port,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(config.stop_timeout_s) + 5,
                h11_max_incomplete_event_size=64 << 10,
            )
        )
        self._service, self._on_ready = service, on_ready

    async def startup(self, sockets: object = None) -> None:
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            self._on_ready(f"http://{shown}:{port}")

    async def shutdown(self, sockets: object = None) -> None:
        self._service.stop_accepting()
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._service.config.stop_timeout_s, self._service.abort_all)
        try:
            await super().shutdown(sockets)  # type: ignore[arg-type]
        finally:
            timer.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.stop_accepting()
        if self.should_exit and sig == signal.SIGINT:
            self._service.abort_all()
        super().handle_exit(sig, frame)
