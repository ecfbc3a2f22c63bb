"""Every error as the OpenAI object `{"error": {message, type, param, code}}`."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from cascade.serve.ticket import Busy, Cancelled, TooLate
from cascade.tensors import NoPictureError

_LOG: Final = logging.getLogger("cascade.serve")
_ONCE: Final = {"x-should-retry": "false"}  # the official client repeats a 5xx twice, unasked
_TYPES: Final[Mapping[int, str]] = {429: "rate_limit_error"}
_HINTS: Final[Mapping[int, tuple[str, str]]] = {
    400: ("invalid_json", "The body is no JSON that this server reads."),
    404: ("not_found", "There is nothing at this address; see /openapi.json for what there is."),
    405: ("method_not_allowed", "This address does not take this method; see /openapi.json."),
    413: ("body_too_large", "The body is larger than this server reads; send less."),
}
"""Code and sentence of what the frameworks refuse."""

_CODES: Final[Mapping[str, str]] = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "json_invalid": "invalid_json",
}


class Unsupported(ValueError):
    """A field, or a value of one, that the OpenAI Images API has and this server has not."""


class ErrorObject(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """The answer to a request that was refused or failed."""

    error: ErrorObject


class Problem(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Say what was wrong in one sentence.

        Args:
            param: the field of the body that was.
            retry_after: seconds.
        """
        super().__init__(message)
        kind = "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")
        self.status = status
        self.error = ErrorObject(message=message, type=kind, param=param, code=code)
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after)))

    def body(self) -> dict[str, Any]:
        """Return what the client reads."""
        return {"error": self.error.model_dump()}

    def response(self) -> Response:
        """Return the answer."""
        # In ASCII: what a client sent, and is told again, may be no valid Unicode.
        content = json.dumps(self.body())
        return Response(content, self.status, self.headers, media_type="application/json")


def problem_of(error: Exception) -> Problem:
    """Say why a picture was not drawn; what a client should not read goes to the log alone."""
    match error:
        case Problem():
            return error
        case Busy(of_client=True):
            message = "Too many of your pictures wait already; ask again later."
            return Problem(429, message, "rate_limit_exceeded", retry_after=error.retry_after)
        case Busy():
            message = "Too many pictures wait already; ask again later."
            return Problem(503, message, "server_busy", retry_after=error.retry_after)
        case TooLate():
            message = "The picture was not done in time; ask for fewer pictures or steps, or later."
            return Problem(504, message, "deadline_exceeded", headers=_ONCE)
        case Cancelled():
            return Problem(409, "The request was cancelled.", "cancelled", headers=_ONCE)
        case NoPictureError():
            return Problem(422, str(error), "no_picture")
    _LOG.error("failed", exc_info=error)
    return Problem(500, "The server failed; its log says why.", "internal_error", headers=_ONCE)


def install(app: FastAPI) -> None:
    """Let an application answer every error so."""
    app.add_exception_handler(Problem, _told)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _failed)


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, hint = _HINTS.get(error.status_code, (None, f"{error.detail}."))
    return Problem(error.status_code, hint, code, headers=error.headers).response()


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return invalid(error.errors()).response()


async def _failed(request: Request, error: Exception) -> Response:
    """Answer for a fault of ours; the server logs its traceback."""
    message = "The server failed; its log says why."
    headers = _ONCE | {"x-request-id": str(request.scope.get("state", {}).get("id", ""))}
    return Problem(500, message, "internal_error", headers=headers).response()


def invalid(faults: Sequence[Mapping[str, Any]]) -> Problem:
    """Say what is wrong with a body; the first of several faults."""
    fault = faults[0]
    where = [str(part) for part in fault["loc"] if part not in ("body", "path", "query", "header")]
    # A union's members stand in pydantic's location too: a setting's name is the first part.
    name = where[0] if where else None
    code = _CODES.get(fault["type"], "invalid_value")
    if code == "invalid_json":
        return Problem(400, f"The body is no JSON ({fault['ctx']['error']}).", code)
    if name is None:
        message = "The body must be a JSON object, sent as content-type application/json."
        return Problem(400, message, "invalid_json")
    if code == "unknown_parameter":
        return Problem(400, f"Unknown parameter: '{name}'.", code, name)
    if code == "missing_required_parameter":
        return Problem(400, f"Missing required parameter: '{name}'.", code, name)
    told = str(fault["msg"]).removeprefix("Value error, ")
    if isinstance(fault.get("ctx", {}).get("error"), Unsupported):
        return Problem(400, told, "unsupported_parameter", name)
    told = told.replace("Input should", "it should", 1).rstrip(".")
    return Problem(400, f"Invalid value for '{name}': {told}.", code, name)
