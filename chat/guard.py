"""What is refused before the app sees it: foreign pages, unknown hosts, bodies and crowds too large.

Gradio protects its own routes only by a password, if there is one. A page of another site can send requests
to this one through a visitor's browser, also under a name that it lets point to this machine (DNS rebinding).
So the name that a request came by has to be one of ours, a page that asks has to be our own, and a body is
JSON, which a foreign page can't send unasked. A program sends no `Origin`, and is let through.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

HOSTS = "TUNE2CHAT_HOSTS"  # other names that the page is reached by, with commas between
LARGEST = 9 * 2**20  # bytes of a body: a saved chat, which Gradio takes up to 8 MB of
READ = 4 * LARGEST  # of one that is too long: a client that is still writing doesn't see the answer
PATIENCE_S = 60  # for all of a body
CROWD = 512  # requests at a time; a page holds two, and one more while it is answered
LOCAL = frozenset({"localhost"})
WRITES = ("POST", "PUT", "PATCH", "DELETE")
# The two forms that Gradio's own page sends; all else that has a body is JSON.
FORMS = {"multipart/form-data": "/upload", "application/x-www-form-urlencoded": "/login"}


class Refused(Exception):
    """A request that goes no further: an HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Guard:
    """ASGI middleware around the app, which is reached by `names`, by addresses, or by any name at all."""

    def __init__(self, app: Any, names: frozenset[str], any_host: bool = False) -> None:
        self._app, self._names, self._any_host, self._open = app, names, any_host, 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._open += 1
        try:
            if self._open > CROWD:
                raise Refused(503, f"{CROWD} requests are open already; try again in a moment")
            if not self._any_host:
                self._check_host(headers)
            self._check_origin(headers)
            if scope.get("method") in WRITES:
                _check_type(scope["path"], headers)
                receive = await _whole(receive, headers)
            await self._app(scope, receive, send)
        except Refused as refused:
            await _answer(refused, scope, send)
        finally:
            self._open -= 1

    def _check_host(self, headers: dict[str, str]) -> None:
        """A name that isn't ours may be a foreign page's, which points to this machine."""
        name = _name(f"//{headers.get('host', '')}")
        if not name or not (_is_address(name) or name in self._names or name.endswith(".localhost")):
            cure = f"; if that is right, start the app with {HOSTS}={name[:100]}" if name else ""
            raise Refused(403, f"this page isn't known as {name[:100]!r}{cure}")

    def _check_origin(self, headers: dict[str, str]) -> None:
        origin = headers.get("origin")
        if origin is None or urlsplit(origin).netloc.lower() == headers["host"].lower():
            return
        if _name(origin) not in self._names - LOCAL:  # behind a proxy that changes the Host
            raise Refused(403, f"a page of {origin[:100]} may not use this one")


def names_of(host: str | None) -> frozenset[str]:
    """The names by which a page that is served on `host` is reached: this machine's, a Space's, and HOSTS."""
    own = socket.gethostname().lower()
    given = [host or "", os.environ.get("SPACE_HOST", ""), os.environ.get(HOSTS, "")]
    found = {name.strip().lower() for names in given for name in names.split(",")} - {""}
    return LOCAL | found | {own, f"{own}.local"}


def _name(url: str) -> str:
    """The host of an address, without port and brackets; empty if there is none."""
    with suppress(ValueError):
        return (urlsplit(url).hostname or "").rstrip(".")
    return ""


def _is_address(name: str) -> bool:
    """Whether it is an IP address: no name that somebody could let point here."""
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def _check_type(path: str, headers: dict[str, str]) -> None:
    """A foreign page can send text and forms without asking; JSON it can't."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or (kind in FORMS and path.endswith(FORMS[kind])):
        return
    if kind or headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise Refused(415, f"the body is {kind[:100] or 'of no type'}; send application/json")


async def _whole(receive: Receive, headers: dict[str, str]) -> Receive:
    """Read a body to its end, within bounds; return a `receive` that gives it, and what comes after it."""
    said = headers.get("content-length", "0")
    if not said.isdecimal() or int(said) > READ:
        raise Refused(413, f"the body has {said[:20]} bytes; at most {LARGEST:,} are taken")
    body, read, ended = bytearray(), 0, False
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not ended and read <= READ:
                message = await receive()
                if message["type"] != "http.request":
                    return _again(message, receive)
                part, ended = message.get("body", b""), not message.get("more_body", False)
                read += len(part)
                if read <= LARGEST:
                    body += part
    except TimeoutError:
        raise Refused(408, f"the body wasn't there after {PATIENCE_S} seconds") from None
    if read > LARGEST:
        raise Refused(413, f"the body is longer than the {LARGEST:,} bytes that are taken")
    return _again({"type": "http.request", "body": bytes(body), "more_body": False}, receive)


def _again(first: Message, receive: Receive) -> Receive:
    waiting = [first]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


async def _answer(refused: Refused, scope: Message, send: Send) -> None:
    """The sentence as Gradio's page shows errors: JSON with `detail`."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": refused.sentence[:100]})
        return
    body = json.dumps({"detail": refused.sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.status in (408, 413):
        headers.append((b"connection", b"close"))  # the rest of the body is nothing that follows
    if refused.status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
