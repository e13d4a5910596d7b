"""Every error in the shape that OpenAI's clients read: ``{"error": {"message", "type", ...}}``."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pardalis.errors import (
    BundleError,
    ConfigError,
    DataError,
    PardalisError,
    QueueFullError,
    RequestError,
)

logger = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class APIError(Exception):
    """A request is refused.

    Args:
        param: name of the field at fault.
        code: for programs, where the status does not say it.
    """

    def __init__(
        self, message: str, status: int = 400, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code

    @property
    def body(self) -> dict[str, Any]:
        fallback = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, fallback),
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": "1"} if self.status in (429, 503) else {}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)

    @staticmethod
    def of(error: Exception, names: Mapping[str, str] | None = None) -> "APIError":
        """Return what a client is told about an error.

        Args:
            names: what the client calls the options of generation, by their own names.
        """
        match error:
            case APIError():
                return error
            case QueueFullError():
                return APIError(str(error), 429, code="queue_full")
            case RequestError() | DataError():
                own, _, rest = str(error).partition(" ")
                theirs = (names or {}).get(own)
                return APIError(f"{theirs} {rest}" if theirs else str(error), param=theirs)
            case PardalisError() if not isinstance(error, ConfigError | BundleError):
                return APIError(str(error), 500)
        # What the operator has to correct names files of this machine.
        return APIError("The server failed; its log has the reason.", 500)


def install(app: FastAPI) -> None:
    """Answer all errors of an application in this shape."""

    async def known(_: Request, error: Exception) -> JSONResponse:
        return APIError.of(error).response()

    async def unknown(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return APIError.of(error).response()

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _of_validation(error.errors()).response()

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse(
            APIError(_of_status(error), error.status_code).body, error.status_code, error.headers
        )

    app.add_exception_handler(APIError, known)
    app.add_exception_handler(PardalisError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unknown)


def _of_status(error: HTTPException) -> str:
    match error.status_code:
        case 404:
            return "There is nothing at this path; /docs lists the paths."
        case 405:
            return "This path does not take this method; /docs lists what each path takes."
        case 400:
            return "The body cannot be read as JSON; send a JSON object in UTF-8."
    return f"{error.detail}."


def _of_validation(errors: Sequence[Any]) -> APIError:
    """Return the first error of a body: what was found where, and what is needed."""
    first = errors[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it is broken")
        return APIError(f"The body is no JSON: {reason}.", code="invalid_json")
    place = [str(part) for part in first["loc"] if part != "body"]
    param = _dotted(first["loc"]) or None
    if not place:
        return APIError("The body must be a JSON object, sent as application/json.")
    if first["type"] == "extra_forbidden":
        return APIError(
            f"{param} is not supported; leave it out.", param=param, code="unsupported_parameter"
        )
    message = str(first["msg"])
    message = message.removeprefix("Value error, ")
    return APIError(f"{param}: {message[:1].lower()}{message[1:]}.".replace("..", "."), param=param)


def _dotted(place: Sequence[Any]) -> str:
    """Return a place in a body as a client would write it: messages[0].content."""
    text = ""
    for part in place[1:] if place and place[0] == "body" else place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
