"""Errors in the shape of OpenAI's API: a status, and `{"error": {"message", "type", "param", "code"}}`.

https://platform.openai.com/docs/guides/error-codes; the official client chooses its exception by the status,
and tries 429 and 5xx again after `Retry-After`.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse

from chat.openai_request import BadRequest
from chat.schema_reading import SchemaError
from core.errors import (
    ChatError,
    EngineDied,
    NoSuchAdapter,
    NoSuchModel,
    NoSuchToken,
    QueueFull,
    Stopped,
    TemplateError,
    TooLong,
)

INVALID, AUTHENTICATION, LIMIT, SERVER = (
    "invalid_request_error",
    "authentication_error",
    "rate_limit_error",
    "server_error",
)


@dataclass
class ApiError(Exception):
    """What a request is answered instead of a reply."""

    status: int
    message: str
    type: str = INVALID
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        parts = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": parts}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


_OURS: dict[type[ChatError], Callable[[str], ApiError]] = {  # the first that fits
    SchemaError: lambda text: ApiError(400, text, param="response_format"),
    TemplateError: lambda text: ApiError(400, text, param="messages"),
    TooLong: lambda text: ApiError(400, text, code="context_length_exceeded"),
    NoSuchToken: lambda text: ApiError(400, text, param="prompt"),
    NoSuchAdapter: lambda text: ApiError(400, text, param="adapters"),
    NoSuchModel: lambda text: ApiError(404, text, param="model", code="model_not_found"),
    QueueFull: lambda text: ApiError(429, text, LIMIT, None, "rate_limit_exceeded", {"Retry-After": "5"}),
    EngineDied: lambda text: ApiError(503, text, SERVER, None, "engine_died", {"Retry-After": "1"}),
    Stopped: lambda text: ApiError(503, text, SERVER),
    ChatError: lambda text: ApiError(500, text, SERVER),
}


def as_api_error(error: BaseException) -> ApiError:
    """How the API says that `error` happened. What isn't ours is a bug: told in the log, without the text."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BadRequest):
        return ApiError(400, str(error), param=error.param)
    for kind, make in _OURS.items():
        if isinstance(error, kind):
            return make(str(error))
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = ", ".join(f"{frame.filename}:{frame.lineno}" for frame in last)
    logging.getLogger(__name__).error("%s at %s", type(error).__name__, where)
    return ApiError(500, "Something went wrong here; the log of the app says where.", SERVER)
