"""A server of a tiny model with random weights, on a port of its own, and clients for it."""

import asyncio
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from shapes import decoder_config

pytest.importorskip("fastapi", reason="the server needs FastAPI: pip install 'pardalis[serve]'")

from pardalis import Engine
from pardalis.bundle import Bundle
from pardalis.model import Decoder, initialise
from pardalis.serve import ServeConfig, Service, listen
from pardalis.serve.filters import Filters
from pardalis.serve.server import Server


@pytest.fixture(scope="session")
def served_bundle(codec) -> Bundle:
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=96, d_model=32, n_layers=2, n_heads=4,
        n_kv_heads=2, d_ff=64, init_std=0.3,
    )  # fmt: skip
    return Bundle(initialise(Decoder(config), 0).eval(), codec, {})


@pytest.fixture(scope="session")
def bundle_folder(served_bundle, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    served_bundle.save(folder)
    return folder


@dataclass
class Running:
    """A server that runs in a thread."""

    url: str
    service: Service
    stop: Callable[[], None]

    def connect(self, timeout: float = 120) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=timeout)

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of one request."""
        with closing(self.connect()) as connection:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, dict(response.headers), response.read()

    def post(self, path: str, body: object, **headers: str) -> tuple[int, Any]:
        """Return status and content of a request in JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = {"Content-Type": "application/json", **headers}
        status, _, answer = self.send("POST", path, content, head)
        return status, json.loads(answer)


@contextmanager
def _running(
    engine: Engine, private_hosts: bool = False, filters: Filters | None = None, **options
) -> Iterator[Running]:
    """Serve an engine until the end of the block."""
    started: list[Running] = []
    ready = threading.Event()

    async def run() -> None:
        config = ServeConfig(port=0, **options)
        service = Service(engine, config, "tiny", filters=filters, private_hosts=private_hosts)
        loop = asyncio.get_running_loop()

        def on_ready(url: str) -> None:
            def stop() -> None:
                loop.call_soon_threadsafe(setattr, server, "should_exit", True)

            started.append(Running(url, service, stop))
            ready.set()

        server = Server(service, on_ready)
        try:
            with listen(config) as listener:
                await server.serve(sockets=[listener])
        finally:
            service.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(60)
        yield started[0]
    finally:
        started[0].stop()
        thread.join(60)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def server(served_bundle) -> Iterator[Running]:
    with Engine(served_bundle) as engine, _running(engine) as found:
        yield found


@pytest.fixture(scope="session")
def running():
    """The function that serves an engine until the end of a block."""
    return _running
