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
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

HOSTS = "TUNE2CHAT_HOSTS"  # other names that the page is reached by, with commas between
LARGEST = 9 * 2**20  # bytes of a body: a saved chat, which Gradio takes up to 8 MB of
READ = 4 * LARGEST  # of one that is too long: a client that is still writing doesn't see the answer
PATIENCE_S = 60  # for all of a body
BODIES, BODIES_BYTES = 64, 64 * 2**20  # on their way at a time; then those go that take longest
CROWD = 512  # requests at a time; a page holds two, and one more while it is answered
PAGES = 256  # of them, streams by which a page says that it is open
PAGE = "/gradio_api/heartbeat/"
API = ("/v1", "/health", "/metrics")  # whose errors have OpenAI's shape
LOCAL = frozenset({"localhost"})
WRITES = ("POST", "PUT", "PATCH", "DELETE")
# The forms that Gradio's own page and clients send; all else that has a body is JSON.
FORMS = {"multipart/form-data": ("/upload", "/login"), "application/x-www-form-urlencoded": ("/login",)}


class Refused(Exception):
    """A request that goes no further: an HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Guard:
    """ASGI middleware around the app, which is reached by `names`, by addresses, or by any name at all."""

    def __init__(self, app: Any, names: frozenset[str], any_host: bool = False) -> None:
        self._app, self._names, self._any_host = app, names, any_host
        self._open = self._pages = 0
        self._bodies: dict[asyncio.Timeout, int] = {}  # bytes of those on their way, the oldest first

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            if not self._any_host:
                self._check_host(headers)
            self._check_origin(headers)
            if scope.get("method") in WRITES:
                _check_type(scope["path"], headers)
                receive = await self._whole(receive, headers)  # who writes slowly is none of the crowd yet
            with self._among_others(PAGE in scope["path"]):
                await self._app(scope, receive, send)
        except Refused as refused:
            await _answer(refused, scope, send)

    @contextmanager
    def _among_others(self, is_page: bool) -> Iterator[None]:
        """Count the request. Pages that are only open leave others served. Raises Refused."""
        if self._open >= CROWD or (is_page and self._pages >= PAGES):
            raise Refused(503, f"{self._open} requests are open already; try again in a moment")
        self._open += 1
        self._pages += is_page
        try:
            yield
        finally:
            self._open -= 1
            self._pages -= is_page

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

    async def _whole(self, receive: Receive, headers: dict[str, str]) -> Receive:
        """Read a body to its end, within bounds; return a `receive` that gives it, and then what follows."""
        said = headers.get("content-length", "0")
        if not said.isdecimal() or int(said) > READ:
            raise Refused(413, f"the body has {said[:20]} bytes; at most {LARGEST:,} are taken")
        body, read, ended = bytearray(), 0, False
        try:
            async with asyncio.timeout(PATIENCE_S) as patience:
                self._bodies[patience] = 0
                while not ended and read <= READ:
                    message = await receive()
                    if message["type"] != "http.request":
                        return _again(message, receive)
                    part, ended = message.get("body", b""), not message.get("more_body", False)
                    read += len(part)
                    if read <= LARGEST:
                        body += part
                    self._bodies[patience] = len(body)
                    self._let_the_slowest_go(patience)
        except TimeoutError:
            raise Refused(408, "the body came too slowly; send the request again") from None
        finally:
            self._bodies.pop(patience, None)
        if read > LARGEST:
            raise Refused(413, f"the body is longer than the {LARGEST:,} bytes that are taken")
        return _again({"type": "http.request", "body": bytes(body), "more_body": False}, receive)

    def _let_the_slowest_go(self, newest: asyncio.Timeout) -> None:
        """End the oldest of too many bodies: who sends one at once never waits for it that long."""
        while len(self._bodies) > BODIES or sum(self._bodies.values()) > BODIES_BYTES:
            oldest = next(iter(self._bodies))
            if oldest is newest:
                return
            del self._bodies[oldest]
            oldest.reschedule(asyncio.get_running_loop().time())


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


def _again(first: Message, receive: Receive) -> Receive:
    waiting = [first]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


async def _answer(refused: Refused, scope: Message, send: Send) -> None:
    """The sentence as Gradio's page shows errors, JSON with `detail`, or as clients of OpenAI's API do."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": refused.sentence[:100]})
        return
    kind = "server_error" if refused.status >= 500 else "invalid_request_error"
    error = {"message": refused.sentence, "type": kind, "param": None, "code": None}
    told = {"error": error} if scope["path"].startswith(API) else {"detail": refused.sentence}
    body = json.dumps(told).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.status in (408, 413):
        headers.append((b"connection", b"close"))  # the rest of the body is nothing that follows
    if refused.status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
