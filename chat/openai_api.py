"""OpenAI's API beside the page: the same port, queue, limits and prompts, for programs.

Every route checks the key itself, as Gradio's password covers its own routes only; `/health` alone is open.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

from starlette.routing import Route

from chat.context import TurnState
from chat.guard import Message, Receive, Send
from chat.metrics import TEXT, metrics
from chat.openai_answers import Steps, chat_steps, completion_steps, find_model
from chat.openai_errors import INVALID, SERVER, ApiError, as_api_error
from chat.openai_keys import Keys
from chat.openai_reply import Shape, Step
from chat.openai_run import Ended, Run
from chat.reply import Sessions

HOLD_S = 10.0  # a reply that waits this long begins its stream, and can tell an error only in it
KEEP_OPEN_S = 10.0  # a stream in which nothing is written says so, before a proxy takes it for dead
OPEN_ROUTES = frozenset({"/health"})

Serve = Callable[[Message, Receive, Send, str], Awaitable[None]]


class Api:
    """The routes, for `launch(app_kwargs={"routes": api.routes()})`."""

    def __init__(self, sessions: Sessions, keys: Keys) -> None:
        self._sessions, self._keys = sessions, keys
        self._running: set[Run[Any]] = set()
        self._closed = False
        self.answered: Counter[tuple[str, int]] = Counter()  # by route and status

    def routes(self) -> list[Route]:
        served: list[tuple[str, str, Serve]] = [
            ("/v1/chat/completions", "POST", self._replies(chat_steps)),
            ("/v1/completions", "POST", self._replies(completion_steps)),
            ("/v1/models", "GET", self._models),
            ("/v1/models/{name:path}", "GET", self._model),
            ("/metrics", "GET", self._metrics),
            ("/health", "GET", self._health),
        ]
        found = [Route(path, _Asgi(self, path, serve), methods=[method]) for path, method, serve in served]
        known = {path: method for path, method, _ in served}
        other = [*(path for path in known if "{" not in path), "/v1", "/v1/{rest:path}"]
        return found + [
            Route(path, _Asgi(self, path, _unknown(known.get(path))), methods=None) for path in other
        ]

    def close(self) -> None:
        """End all replies: the app is ending. From any thread."""
        self._closed = True
        for run in list(self._running):
            run.stop()

    async def serve(self, route: str, serve: Serve, scope: Message, receive: Receive, send: Send) -> None:
        """Check the key, serve, and say what went wrong in the API's own shape."""
        begun = False

        async def counted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self.answered[route, message["status"]] += 1
            await send(message)

        try:
            if self._closed:
                raise ApiError(503, "The app is ending.", SERVER, headers={"Retry-After": "5"})
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            client = (scope.get("client") or ("",))[0]
            user = "" if route in OPEN_ROUTES else self._keys.user(headers, client)
            await serve(scope, receive, counted, user)
        except Exception as error:  # noqa: BLE001 (a client is told, and the log where a bug is)
            refused = as_api_error(error)
            if not begun:
                await send_json(counted, refused.body(), refused.status, refused.headers)

    def _replies(self, steps: Steps) -> Serve:
        async def serve(scope: Message, receive: Receive, send: Send, user: str) -> None:
            body, key = await _body(receive), f"{user} {secrets.token_hex(8)}"

            def make() -> Iterator[Shape | Step]:
                return steps(self._sessions, body, user, key)

            run: Run[Shape | Step] = Run(make, lambda: self._sessions.stop(key))
            self._running.add(run)
            try:
                async with run.for_client(receive):
                    shape = await run.next()
                    assert isinstance(shape, Shape)
                    await (_stream if shape.stream else _whole)(run, shape, send)
            finally:
                self._running.discard(run)

        return serve

    async def _models(self, scope: Message, receive: Receive, send: Send, user: str) -> None:
        registry = self._sessions.host.registry
        names = await asyncio.to_thread(
            lambda: [name for name, entry in registry.entries.items() if registry.locate(entry)]
        )
        await send_json(send, {"object": "list", "data": list(map(_about, names))})

    async def _model(self, scope: Message, receive: Receive, send: Send, user: str) -> None:
        name = unquote(scope["path_params"]["name"])
        found, _ = await asyncio.to_thread(find_model, self._sessions.host.registry, name)
        await send_json(send, _about(found))

    async def _metrics(self, scope: Message, receive: Receive, send: Send, user: str) -> None:
        await send_json(send, metrics(self._sessions.host.queue, self.answered), kind=TEXT)

    async def _health(self, scope: Message, receive: Receive, send: Send, user: str) -> None:
        await send_json(send, {"status": "ok"})


class _Asgi:
    """A route's application. Starlette takes a function for one of a request, an object for what it is."""

    def __init__(self, api: Api, route: str, serve: Serve) -> None:
        self._api, self._route, self._serve = api, route, serve

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await self._api.serve(self._route, self._serve, scope, receive, send)


_began = int(time.time())


def _about(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _began, "owned_by": "tune2chat"}


def _unknown(method: str | None) -> Serve:
    async def serve(scope: Message, receive: Receive, send: Send, user: str) -> None:
        asked = f"{scope['method'][:20]} {scope['path'][:100]}"
        if method:
            raise ApiError(405, f"{asked}: this route takes {method}.", INVALID, headers={"Allow": method})
        raise ApiError(404, f"Unknown request URL: {asked}", INVALID, code="unknown_url")

    return serve


async def _body(receive: Receive) -> bytes:
    """The body, which the guard has read to its end, within bounds."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def _whole(run: Run[Any], shape: Shape, send: Send) -> None:
    """Answer with all of the reply."""
    state = None
    with suppress(Ended):
        while True:
            step = await run.next()
            shape.take(step)
            state = step.state
    await send_json(send, shape.whole(_ended(state)))


async def _stream(run: Run[Any], shape: Shape, send: Send) -> None:
    """Answer with the reply as it comes: server-sent events, with [DONE] at the end.

    The stream begins when the model has begun to read, so that what is wrong before has its status.
    """
    loop = asyncio.get_running_loop()
    began, wrote, begun, state = loop.time(), loop.time(), False, None

    async def write(*values: Any) -> None:
        nonlocal begun, wrote
        if not begun:
            begun = True
            await send({"type": "http.response.start", "status": 200, "headers": _STREAM})
            values = (*shape.opening(), *values)
        wrote = loop.time()
        text = "".join(f"data: {json.dumps(value)}\n\n" for value in values) or ": waiting\n\n"
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})

    try:
        with suppress(Ended):
            while True:
                try:
                    step = await run.next(KEEP_OPEN_S if begun else HOLD_S)
                except TimeoutError:
                    await write()
                    continue
                state = step.state
                now = loop.time()
                if chunk := shape.chunk(step):
                    await write(chunk)
                elif (now - wrote > KEEP_OPEN_S) if begun else (state.prompt_tokens or now - began > HOLD_S):
                    await write()
        await write(*shape.closing(_ended(state)))
        end = "data: [DONE]\n\n"
    except Exception as error:
        if not begun:
            raise
        end = f"data: {json.dumps(as_api_error(error).body())}\n\n"
    await send({"type": "http.response.body", "body": end.encode()})


_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


def _ended(state: TurnState | None) -> TurnState:
    """The last state. Raises ApiError for a reply that was stopped: no client must take it for whole."""
    if state is None or state.stats.finish_reason == "cancelled":
        raise ApiError(503, "The reply was stopped: the app is ending, or its model.", SERVER)
    return state


async def send_json(
    send: Send,
    value: Any,
    status: int = 200,
    more: dict[str, str] | None = None,
    kind: str = "application/json",
) -> None:
    body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
    headers = {"content-type": kind, "content-length": str(len(body)), **(more or {})}
    pairs = [(name.lower().encode(), text.encode("latin-1", "replace")) for name, text in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
