"""``pardalis serve``: one model behind OpenAI's API and a page."""

import argparse
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from pardalis.cli.common import (
    Commands,
    add_adapters,
    add_bundle,
    add_command,
    add_hosts,
    add_number,
    add_placement,
    chosen_adapters,
    chosen_dtype,
    set_run,
)
from pardalis.cli.retrieval import add_retriever, chosen_retriever
from pardalis.errors import ConfigError

_DESCRIPTION = """\
Serve a model to a browser, and to every client of OpenAI's API, until Ctrl-C or SIGTERM.

  pardalis serve BUNDLE                      then open http://127.0.0.1:8000
  pardalis serve BUNDLE --adapter owls=runs/owls-lora/adapter
  pardalis serve BUNDLE --retrieve my-index --documents 2
  pardalis serve BUNDLE --host 0.0.0.0 --api-key-file keys.txt
  pardalis serve BUNDLE --request-filter blocklist:words.txt --answer-filter nsfw --watermark

The API has /v1/responses, /v1/chat/completions, /v1/images/generations, /v1/completions and
/v1/models; /docs describes it. The log has a line of JSON for each request, without its content.
"""


def add(commands: Commands) -> None:
    parser = add_command(commands, "serve", "serve a model to clients and browsers", _DESCRIPTION)
    add_bundle(parser)
    add_adapters(parser, "clients ask for it by its name as the model")
    group = parser.add_argument_group("who may use it, and where")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all "
                       "(default: 127.0.0.1, this machine alone)")  # fmt: skip
    group.add_argument("--port", type=int, default=8000, help="0: a free one (default: 8000)")
    group.add_argument("--name", help="what clients call the model (default: the folder's name)")
    group.add_argument(
        "--api-key-file", type=Path, metavar="FILE",
        help="keys that open the API, one a line (default: it is open)",
    )  # fmt: skip
    group.add_argument(
        "--cors-origin", action="append", default=[], metavar="ORIGIN", dest="cors_origins",
        help="let the pages of a site use the API, such as https://example.org (may be repeated)",
    )  # fmt: skip
    add_hosts(group)
    group.add_argument(
        "--image-host", action="append", default=[], metavar="HOST", dest="image_hosts",
        help="fetch images that requests name by URL from this host (may be repeated)",
    )  # fmt: skip
    group.add_argument(
        "--stop-timeout", type=float, default=30.0, metavar="SECONDS", dest="stop_timeout_s",
        help="that open requests have to finish at the end (default: 30)",
    )  # fmt: skip
    add_retriever(parser.add_argument_group("what is retrieved"))
    group = parser.add_argument_group("what is refused, and what images say of their origin")
    for side, judged in (("request", "prompts"), ("answer", "the texts and images of answers")):
        group.add_argument(
            f"--{side}-filter", action="append", default=[], metavar="FILTER",
            dest=f"{side}_filters",
            help=f"judge {judged}: blocklist:FILE, nsfw[:THRESHOLD], or module:function "
            "(may be repeated)",
        )  # fmt: skip
    group.add_argument(
        "--filter-timeout", type=float, default=30.0, metavar="SECONDS", dest="filter_timeout_s",
        help="that a filter has for a judgement; the request fails after it (default: 30)",
    )  # fmt: skip
    group.add_argument("--watermark", action="store_true", help="an invisible mark in all images")
    group.add_argument(
        "--c2pa-certificate", type=Path, metavar="FILE",
        help="sign images with this certificate chain in PEM (default: they are not signed)",
    )  # fmt: skip
    group.add_argument("--c2pa-key", type=Path, metavar="FILE", help="its private key in PEM")
    group = parser.add_argument_group("memory and speed")
    add_placement(group)
    group.add_argument("--compile", action="store_true", help="compile decoding: slow at first")
    add_number(group, "--max-slots", "sequences decoded at once (default: 16)")
    add_number(group, "--cache-tokens", "capacity of the KV cache (default: --max-slots contexts)")
    add_number(group, "--max-waiting", "requests that may wait (default: 1,024)")
    set_run(parser, _run)


def _run(options: argparse.Namespace) -> None:
    require_libraries()
    from pardalis import load
    from pardalis.inference import Engine, EngineConfig
    from pardalis.serve import ServeConfig, listen, serve
    from pardalis.serve.keys import read_keys
    from pardalis.serve.server import served_name

    api_keys = read_keys(options.api_key_file) if options.api_key_file else ()
    config = ServeConfig(
        host=options.host,
        port=options.port,
        api_keys=api_keys,
        hosts=ServeConfig.local_hosts(options.host, api_keys, tuple(options.allowed_hosts)),
        cors_origins=tuple(options.cors_origins),
        image_hosts=tuple(options.image_hosts),
        stop_timeout_s=options.stop_timeout_s,
        request_filters=tuple(options.request_filters),
        answer_filters=tuple(options.answer_filters),
        filter_timeout_s=options.filter_timeout_s,
        watermark=options.watermark,
        c2pa_certificate=options.c2pa_certificate,
        c2pa_key=options.c2pa_key,
    )
    filters, origin = config.filters(), config.origin()  # what is wrong with them shows at once
    given: dict[str, Any] = {
        name: value
        for name in ("max_slots", "cache_tokens", "max_waiting")
        if (value := getattr(options, name)) is not None
    }
    engine_config = replace(EngineConfig(compile=options.compile, weights=options.weights), **given)
    name = options.name or served_name(options.bundle)
    adapters = chosen_adapters(options)
    if name in adapters:
        raise ConfigError(f"adapters has the name {name!r}, which the model has; give another.")

    def on_ready(url: str) -> None:
        models = [name, *adapters]
        key = ", with a key" if config.api_keys else ""
        line = f"{', '.join(models)} at {url} (page) and {url}/v1 (API{key})"
        said = json.dumps({"url": url, "models": models}) if options.json else line
        options.stdout.write(said + "\n")
        options.stdout.flush()

    retriever = chosen_retriever(options)
    log_to_stderr()
    with listen(config) as listener:  # before the bundle is loaded, which takes a while
        bundle = load(options.bundle, options.device, chosen_dtype(options))
        with Engine(bundle, engine_config, adapters=adapters, retriever=retriever) as engine:
            serve(engine, config, name, on_ready, listener, filters=filters, origin=origin)


def require_libraries() -> None:
    """Raise ConfigError unless what serves is installed."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"Serving needs {error.name}, which is not installed: run pip install "
            "'pardalis[serve]'."
        ) from error


class _AsJSON(logging.Formatter):
    """Writes records as lines of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        time = self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z")
        head = {"time": time, "level": record.levelname.lower()}
        if fields := getattr(record, "fields", None):  # of a request
            return json.dumps({**head, **fields})
        if record.exc_info:
            head["error"] = self.formatException(record.exc_info)
        return json.dumps({**head, "event": record.name, "message": message})


def log_to_stderr() -> None:
    """Write the log of a server to stderr, as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_AsJSON())
    for name in ("pardalis.serve", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "pardalis.serve" else logging.WARNING)
