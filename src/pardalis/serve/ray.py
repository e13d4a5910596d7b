"""Replicas: the application on Ray Serve, each replica a process with an engine of its own.

Ray's proxy listens, gives each request to a replica, and replaces replicas that fail. From Python::

    ray.serve.run(deployment(RayConfig(bundle=Path("runs/quickstart"), replicas=2)))

or as ``import_path: pardalis.serve.ray:app`` of a config file for ``serve run``, whose ``args`` are
the fields of :class:`RayConfig`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pardalis.bundle import load
from pardalis.config import check_above, check_at_least, check_types, from_dict, replaced_paths
from pardalis.errors import ConfigError
from pardalis.inference import Engine, EngineConfig
from pardalis.retrieval import RetrieverConfig
from pardalis.serve.app import create_app
from pardalis.serve.config import ServeConfig
from pardalis.serve.keys import read_keys
from pardalis.serve.server import served_name
from pardalis.serve.service import Service

if TYPE_CHECKING:
    from ray.serve import Application

_NOT_READ = ("host", "port")  # of ServeConfig, as Ray's proxy listens


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """A model, and how many replicas serve it; paths are the same on every node.

    Raises:
        ConfigError: a value has the wrong type, is out of range, or belongs to Ray's own options.
    """

    bundle: Path  # folder of a bundle, or of a run that has one
    name: str | None = None  # what clients call the model; None: the name of the folder
    adapters: dict[str, Path] = field(default_factory=dict)
    retrieve: RetrieverConfig | None = None  # what puts documents before prompts; None: nothing
    replicas: int = 1
    cpus: float = 1.0  # reserved for a replica, and the threads that it computes with
    device: str = "cpu"  # cuda: a GPU for each replica, which sees no other
    dtype: Literal["stored", "float32", "bfloat16"] = "stored"
    api_key_file: Path | None = None  # read by each replica, so that no key passes through Ray
    engine: EngineConfig = field(default_factory=EngineConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, replicas=1)
        check_above(self, cpus=0)
        for name in _NOT_READ:
            if getattr(self.serve, name) != getattr(ServeConfig(), name):
                raise ConfigError(
                    f"serve.{name} is not read, as Ray's proxy listens; set {name} of Ray's "
                    "http_options."
                )
        if self.device.startswith("cuda:") and self.device != "cuda:0":
            raise ConfigError(
                f"device {self.device} is no GPU of a replica, as Ray shows each the one that it "
                "gets; set device to cuda."
            )
        if self.api_key_file is not None and self.serve.api_keys:
            raise ConfigError("api_key_file and `serve.api_keys` are both set; give one of them.")
        if self.served_name in self.adapters:
            raise ConfigError(
                f"adapters has the name {self.served_name!r}, which the model has; give another."
            )

    @property
    def served_name(self) -> str:
        return self.name or served_name(self.bundle)

    def with_paths(self, change: Callable[[Path], Path]) -> "RayConfig":
        """Return the config with each path that a replica reads changed."""
        serve = self.serve
        return replace(
            self,
            bundle=change(self.bundle),
            adapters={name: change(path) for name, path in self.adapters.items()},
            retrieve=replaced_paths(self.retrieve, change),
            api_key_file=self.api_key_file and change(self.api_key_file),
            serve=replace(
                serve,
                c2pa_certificate=serve.c2pa_certificate and change(serve.c2pa_certificate),
                c2pa_key=serve.c2pa_key and change(serve.c2pa_key),
                request_filters=tuple(_with_path(each, change) for each in serve.request_filters),
                answer_filters=tuple(_with_path(each, change) for each in serve.answer_filters),
            ),
        )


class Replica:
    """One process: a model, its engine and the application. Ray makes and ends it.

    Raises:
        PardalisError: the bundle, an adapter, the index or the keys cannot be read.
    """

    def __init__(self, config: RayConfig) -> None:
        dtype = None if config.dtype == "stored" else getattr(torch, config.dtype)
        keys = read_keys(config.api_key_file) if config.api_key_file else config.serve.api_keys
        retriever = config.retrieve.build() if config.retrieve else None
        bundle = load(config.bundle, config.device, dtype)
        self._engine = Engine(bundle, config.engine, adapters=config.adapters, retriever=retriever)
        self._service = Service(
            self._engine, replace(config.serve, api_keys=keys), config.served_name
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        from ray import serve

        app = create_app(self._service)
        app.add_middleware(_Named, name=serve.get_replica_context().replica_tag)
        return app

    def check_health(self) -> None:
        """Raise an error if the engine or all filters have failed; Ray replaces the replica."""
        if (reason := self._service.failure) is not None:
            raise RuntimeError(reason)

    def __del__(self) -> None:
        if service := getattr(self, "_service", None):  # else the bundle could not be loaded
            service.stop_accepting()
            service.abort_all()
            service.close()
            self._engine.close()


def deployment(config: RayConfig) -> "Application":
    """Return the application for ``ray.serve.run``.

    Raises:
        ConfigError: Ray Serve is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise ConfigError(
            f"Replicas need {error.name}, which is not installed: run pip install "
            "'pardalis[cluster]'."
        ) from error
    config = config.with_paths(Path.resolve)
    resources = {"num_cpus": config.cpus, "num_gpus": int(config.device.startswith("cuda"))}
    deployed = serve.deployment(
        serve.ingress()(Replica),
        name="pardalis",
        num_replicas=config.replicas,
        ray_actor_options=resources,
        # Twice what the engine takes: it, and not Ray's queue, says when there are too many.
        max_ongoing_requests=2 * (config.engine.max_slots + config.engine.max_waiting),
        graceful_shutdown_timeout_s=config.serve.stop_timeout_s,
    )
    return deployed.bind(config)


def app(arguments: Mapping[str, Any]) -> "Application":
    """Return the application of a config file for ``serve run``.

    Args:
        arguments: fields of :class:`RayConfig` as plain values; paths are absolute, as Ray builds
            the application in a folder of its own.

    Raises:
        ConfigError: a key is unknown or missing, or a value is wrong.
    """
    config = from_dict(RayConfig, arguments)
    return deployment(config.with_paths(_absolute))


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ConfigError(f"{path} must be an absolute path, as Ray builds it elsewhere.")
    return path


def _with_path(name: str, change: Callable[[Path], Path]) -> str:
    """Return the name of a filter with its path changed, if it is a file's."""
    if name.startswith("blocklist:"):
        kind, _, path = name.partition(":")
        return f"{kind}:{change(Path(path))}" if path else name
    module, colon, function = name.rpartition(":")
    return f"{change(Path(module))}{colon}{function}" if module.endswith(".py") else name


class _Named:
    """Says in each answer which replica has made it."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self.app, self.name = app, name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Replica"] = self.name
                del headers["X-Request-ID"]  # Ray's proxy gives one
            await send(message)

        await self.app(scope, receive, named)
