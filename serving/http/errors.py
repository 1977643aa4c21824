"""What goes wrong, in the shape of OpenAI's API: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from draftgym.decoding.errors import DraftgymError
from draftgym.serving.batching.batcher import QueueFull

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
"""OpenAI's types of errors by status; other mistakes of a request are `invalid_request_error`."""

CODES = {
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    429: "rate_limit_exceeded",
    500: "internal_error",
    503: "unavailable",
}
"""Codes of errors that have no narrower one."""


class ErrorFacts(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """What every request gets that cannot be served."""

    error: ErrorFacts


class Json(JSONResponse):
    """JSON, also of text that is no Unicode: halves of characters stay escapes."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return as_json(content)


def as_json(content: Any) -> bytes:
    """Compact UTF-8; what UTF-8 cannot hold becomes JSON's own escapes."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


class ApiError(HTTPException):
    """A request that gets an error for an answer.

    Args:
        status: Of HTTP.
        message: What is wrong and what to do, without paths of this host.
        param: Which field of the request it is about.
        code: What programs tell it by.
        headers: Of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.param, self.code = param, code


def body_of(error: HTTPException) -> dict[str, Any]:
    """The answer's body."""
    status = error.status_code
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    facts = {
        "message": str(error.detail),
        "type": kind,
        "param": getattr(error, "param", None),
        "code": getattr(error, "code", None) or CODES.get(status),
    }
    return {"error": facts}


def answer_to(error: HTTPException) -> Response:
    """The answer."""
    return Json(body_of(error), error.status_code, headers=error.headers)


def refusal(error: DraftgymError, param: str | None = None) -> ApiError:
    """A mistake that the user can mend, found behind the web side."""
    return ApiError(400, "; ".join(filter(None, (error.problem, error.remedy))), param)


def too_many(error: QueueFull) -> ApiError:
    """There is no room in the queue."""
    after = max(1, math.ceil(error.retry_after))
    message = f"too many texts wait already; try again in {after} s"
    return ApiError(429, message, headers={"Retry-After": str(after)})


def _wrong_fields(problems: Sequence[Any]) -> ApiError:
    """The first fields of a request that cannot be read."""
    if problems and problems[0]["type"] == "json_invalid":
        reason = problems[0].get("ctx", {}).get("error", "")
        message = f"the body is not JSON that can be read: {reason}"
        return ApiError(400, message, code="invalid_json")
    if problems and tuple(problems[0]["loc"]) == ("body",) and problems[0]["type"] != "missing":
        message = "the body is no JSON object; send one, with Content-Type: application/json"
        return ApiError(400, message, code="invalid_json")
    told = []
    for one in problems[:3]:
        where = ".".join(_place(one))
        told.append(f"{where}: {one['msg']}" if where else str(one["msg"]))
    param = next((name for one in problems[:1] for name in _place(one)), None)
    return ApiError(400, "; ".join(told) or "the request cannot be read", param)


def _place(problem: Mapping[str, Any]) -> list[str]:
    """Where it is, without pydantic's names for what else would be allowed there."""
    place = [str(part) for part in problem["loc"] if part != "body"]
    return [part for part in place if re.fullmatch(r"\w+", part)]


def add_error_handlers(app: FastAPI) -> None:
    """Gives every error of an app OpenAI's shape, those of FastAPI and Starlette included."""

    @app.exception_handler(HTTPException)
    async def known(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404 and not isinstance(error, ApiError):
            error = ApiError(404, f"there is nothing at {request.scope['path']}")
        return answer_to(error)

    @app.exception_handler(RequestValidationError)
    async def unreadable(request: Request, error: RequestValidationError) -> Response:
        return answer_to(_wrong_fields(error.errors()))

    @app.exception_handler(DraftgymError)
    async def mendable(request: Request, error: DraftgymError) -> Response:
        return answer_to(refusal(error))

    @app.exception_handler(QueueFull)
    async def full(request: Request, error: QueueFull) -> Response:
        return answer_to(too_many(error))

    @app.exception_handler(Exception)
    async def ours(request: Request, error: Exception) -> Response:
        return answer_to(ApiError(500, "the server failed; its log says why"))
