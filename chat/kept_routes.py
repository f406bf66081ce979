"""Kept chats for the page's own scripts: listed, searched, renamed, deleted, and a visitor's taken in.

| request | answer |
|---|---|
| `GET /chats` | `{"user", "chats", "bytes"}`; of a visitor, who has none here, all empty |
| `GET /chats?search=TEXT` | the same, of the chats that have it, with `found` |
| `POST /chats` | takes `{"chats": [{"chat", "messages"}]}` in; `{"taken"}` says how many |
| `DELETE /chats` | deletes everything for good |
| `GET /chats/ID` | `{"chat", "messages"}` |
| `PATCH /chats/ID` | changes `{"title", "pinned"}`, one of them or both |
| `DELETE /chats/ID`, `POST /chats/ID/restore` | deletes a chat, and has it back |

JSON in and out; what went wrong is `{"detail"}`, a sentence. Gradio's password covers its own routes only, so
who asks is found here, for each request. Foreign pages and kinds of bodies are refused before (`chat.guard`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from chat.guard import LARGEST
from chat.kept import Kept, NoSuchChat
from chat.kept_file import NotKept
from chat.tree import Title, Tree, reason_of
from core.errors import ChatError

MAX_CHATS = 5_000  # of a visitor, that come along at once

Body = TypeVar("Body", bound=BaseModel)
_STATUS = {NoSuchChat: 404, NotKept: 507}  # of the sentences; all others are about the request: 400


class _Change(BaseModel):
    model_config = ConfigDict(extra="forbid")

    title: Annotated[Title, Field(pattern=r"\S")] | None = None
    pinned: StrictBool | None = None


class _Rows(BaseModel):
    model_config = ConfigDict(extra="forbid")

    chat: dict[str, Any]
    messages: list[Any]


class _Brought(BaseModel):
    model_config = ConfigDict(extra="forbid")

    chats: list[_Rows] = Field(max_length=MAX_CHATS)


@dataclass(frozen=True)
class Asked:
    """A request: of whom, about which chat, and what it says."""

    user: str
    chat: str
    search: str
    body: bytes


class KeptRoutes:
    """The routes, for `launch(app_kwargs={"routes": ...})`. `user_of` says who asks: empty is a visitor.

    Without `kept` there are only visitors.
    """

    def __init__(self, kept: Kept | None, user_of: Callable[[Request], str]) -> None:
        self._kept, self._user_of = kept, user_of

    def routes(self) -> list[Route]:
        served: list[tuple[str, str, Callable[[Kept, Asked], Any]]] = [
            ("/chats", "GET", _list),
            ("/chats", "POST", _take_in),
            ("/chats", "DELETE", lambda kept, asked: kept.clear(asked.user)),
            ("/chats/{chat}", "GET", lambda kept, asked: kept.read(asked.user, asked.chat).rows()),
            ("/chats/{chat}", "PATCH", _change),
            ("/chats/{chat}", "DELETE", lambda kept, asked: kept.remove(asked.user, asked.chat)),
            ("/chats/{chat}/restore", "POST", lambda kept, asked: kept.restore(asked.user, asked.chat)),
        ]
        return [Route(path, self._endpoint(serve), methods=[method]) for path, method, serve in served]

    def _endpoint(self, serve: Callable[[Kept, Asked], Any]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                user = self._user_of(request) if self._kept else ""
                if not user or self._kept is None:
                    return _of_a_visitor(request)
                body = await _body(request)
                search = request.query_params.get("search", "")
                asked = Asked(user, request.path_params.get("chat", ""), search, body)
                answer = await asyncio.to_thread(serve, self._kept, asked)
                return _json(answer or {})
            except ChatError as error:
                return _json({"detail": str(error)}, _STATUS.get(type(error), 400))
            except Exception as error:  # noqa: BLE001 (the log says where, without any text of a chat)
                last = traceback.extract_tb(error.__traceback__)[-1:]
                where = ", ".join(f"{frame.filename}:{frame.lineno}" for frame in last)
                logging.getLogger(__name__).error("%s at %s", type(error).__name__, where)
                return _json({"detail": "Something went wrong here; the log of the app says where."}, 500)

        return endpoint


def _list(kept: Kept, asked: Asked) -> dict[str, Any]:
    found = kept.search(asked.user, asked.search) if asked.search.strip() else kept.list(asked.user)
    return {"user": asked.user, "chats": found, "bytes": kept.bytes_of(asked.user)}


def _take_in(kept: Kept, asked: Asked) -> dict[str, int]:
    brought = _read(_Brought, asked.body)
    trees = [Tree.read(rows.chat, rows.messages) for rows in brought.chats]
    return {"taken": kept.take_in(asked.user, trees)}


def _change(kept: Kept, asked: Asked) -> None:
    change = _read(_Change, asked.body)
    kept.change(asked.user, asked.chat, title=change.title, pinned=change.pinned)


def _of_a_visitor(request: Request) -> Response:
    """Nothing of theirs is here. What their browser has deleted lies in its files until it is told to clear
    them."""
    if request.url.path == "/chats" and request.method == "GET":
        return _json({"user": "", "chats": [], "bytes": 0})
    if request.url.path == "/chats" and request.method == "DELETE":
        cleared = _json({})
        cleared.headers["Clear-Site-Data"] = '"storage"'
        return cleared
    return _json({"detail": "Sign in first: the chats of visitors are kept in their browsers only."}, 401)


async def _body(request: Request) -> bytes:
    """The body. Raises ChatError for one that is too long."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST:
            raise ChatError(f"At most {LARGEST:,} bytes are taken at once. Send fewer chats.")
    return bytes(body)


def _read(kind: type[Body], body: bytes) -> Body:
    """What the body says. Raises ChatError."""
    try:
        return kind.model_validate(json.loads(body))
    except ValidationError as error:
        raise ChatError(f"The request isn't what it should be: {reason_of(error)}.") from None
    except (ValueError, RecursionError):
        raise ChatError("The body is no JSON.") from None


def _json(value: Any, status: int = 200) -> Response:
    return JSONResponse(value, status, {"cache-control": "no-store"})
