"""Serving: the HTTP API that OpenAI's clients speak, and a page, on one engine.

A request goes down this list and its events come back up::

    app.py            the application: middleware, routes, the page
    middleware.py     request ids, logs, keys, limits of bodies, headers of the page
    keys.py           keys of a file, and whether a request has one
    chat.py           POST /v1/chat/completions
    responses.py      POST /v1/responses
    images.py         POST /v1/images/generations
    completions.py    POST /v1/completions
    operations.py     GET /v1/models, /health, /ready, /metrics
    endpoint.py       what these four do: an endpoint is the schema of its body and its writer
    chunks.py         what the two older ones write in the same way
    schema.py         what the bodies of requests have in common
    prompts.py        messages and input items as documents, within limits
    remote_images.py  images by URL, from the hosts that are allowed
    filters/          what judges requests and answers
    service.py        the engine's thread, and the items of its answers
    answer.py         what an answer consists of, in which order, and after which filters
    event_stream.py   server-sent events
    errors.py         every error in OpenAI's shape
    server.py         the process: start, ready, stop
    ray.py            instead of it, many such processes, which Ray Serve starts and replaces
    study.py          another application: raters compare the answers of two models
    study_page/       its page
    page/             the page, as files that a browser reads: no build step, no library
"""

from pardalis.serve.app import create_app
from pardalis.serve.config import ServeConfig
from pardalis.serve.server import listen, serve
from pardalis.serve.service import Service

__all__ = ["ServeConfig", "Service", "create_app", "listen", "serve"]
