"""Clients that mean harm: what they send is refused or bounded, and meanwhile others are served."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import cache

import psutil
import pytest
from openai import OpenAI

from chat import connections
from tests.integration.running_app import App, copy_app

CHAT = "/v1/chat/completions"
HEAD = "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
HEAD += "Content-Length: {length}\r\n\r\n"
SERVED_S = 20  # on a machine that does other things too; it takes 0.3
# Of those who also have to be written to; `make test-all` has a thousand.
WRITTEN_TO = 1000 if os.environ.get("TUNE2CHAT_TEST_ALL") == "1" else 400


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    app = App(copy_app(tmp_path_factory.mktemp("hostile")), "--engine", "in-process")
    app.wait_until_it_answers()
    yield app
    log = app.end(signal.SIGTERM)
    assert "Traceback" not in log
    assert "secret-canary" not in log


def port(app: App) -> int:
    return int(app.url.rsplit(":", 1)[1])


def line_to(app: App, sent: bytes) -> socket.socket:
    line = socket.create_connection(("127.0.0.1", port(app)), timeout=30)
    with suppress(ConnectionError):  # it was ended at once
        line.sendall(sent)
    return line


def status_of(app: App, method: str, path: str, body: bytes | None = None, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port(app), timeout=60)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, given)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    assert b"Traceback" not in text
    assert b"root:" not in text
    return response.status


def others_are_served(app: App) -> None:
    """The page, and a reply for the official client, in a time that nobody notices."""
    began = time.monotonic()
    assert status_of(app, "GET", "/") == 200
    with OpenAI(base_url=f"{app.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        reply = client.chat.completions.create(
            model="", messages=[{"role": "user", "content": "secret-canary"}], max_tokens=3
        )
        assert reply.usage
        assert reply.usage.completion_tokens > 0
    assert time.monotonic() - began < SERVED_S


def silent(app: App) -> socket.socket:
    return line_to(app, b"")


def half_a_head(app: App) -> socket.socket:
    return line_to(app, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")


def half_a_body(app: App) -> socket.socket:
    return line_to(app, HEAD.format(path=CHAT, length=1000).encode() + b'{"mess')


def open_page(app: App) -> socket.socket:
    """What a page holds open, by which Gradio knows that it is there."""
    return line_to(app, b"GET /gradio_api/heartbeat/x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")


def reads_nothing(app: App) -> socket.socket:
    """Asks for more than fits between the two, and reads none of it."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.settimeout(30)
    line.connect(("127.0.0.1", port(app)))
    with suppress(ConnectionError):
        line.sendall(f"GET /{script(app.url)} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode() * 5)
    return line


@cache
def script(url: str) -> str:
    """The largest file of the page."""
    with urllib.request.urlopen(url, timeout=60) as page:
        return re.search(r'src="\./(assets/index-[\w-]+\.js)"', page.read().decode())[1]  # type: ignore[index]


@pytest.mark.parametrize("kind", [silent, half_a_head, half_a_body, open_page, reads_nothing])
def test_a_thousand_open_connections_leave_others_served(
    app: App, kind: Callable[[App], socket.socket]
) -> None:
    with ExitStack() as stack:
        for _ in range(1000 if kind is not reads_nothing else WRITTEN_TO):
            stack.enter_context(kind(app))
        others_are_served(app)
        memory = psutil.Process(app.process.pid).memory_info().rss
        assert memory < 1.5e9
    others_are_served(app)


def test_hundreds_of_requests_at_once_are_answered_or_refused(app: App) -> None:
    """More than wait in line, by far: each is told at once, and none is left without an answer."""
    body = json.dumps({"messages": [{"role": "user", "content": "secret-canary"}], "max_tokens": 1}).encode()
    with ExitStack() as stack:
        sent = HEAD.format(path=CHAT, length=len(body)).encode() + body
        lines = [stack.enter_context(line_to(app, sent)) for _ in range(WRITTEN_TO)]
        statuses = [int(line.recv(1000).split()[1]) for line in lines]
    assert set(statuses) <= {200, 429, 503}  # the line is full, and before it the room for requests
    assert 429 in statuses
    assert 200 in statuses
    others_are_served(app)


def test_who_is_slow_is_let_go(app: App) -> None:
    with half_a_head(app) as line:
        line.settimeout(4 * connections.ASK_S)
        assert line.recv(1000) == b""
    with half_a_head(app) as line, pytest.raises((BrokenPipeError, ConnectionResetError)):
        line.sendall(b"a" * 100_000_000)  # a head without an end, as far as the server can know


def test_what_stands_behind_a_request_is_bounded_while_that_is_answered(app: App) -> None:
    body = json.dumps(
        {"messages": [{"role": "user", "content": "secret-canary"}], "max_tokens": 300}
    ).encode()
    asked = HEAD.format(path=CHAT, length=len(body)).encode() + body
    for more in (b"GET / HTTP/1.1\r\nX: ", HEAD.format(path=CHAT, length=10**7).encode()):
        with line_to(app, asked + more) as line, pytest.raises((BrokenPipeError, ConnectionResetError)):
            line.sendall(b"a" * 100_000_000)
    others_are_served(app)


@pytest.mark.parametrize(
    ("status", "method", "path", "headers"),
    [
        (403, "POST", CHAT, {"Host": "evil.example", "Content_Type": "application/json"}),
        (403, "POST", CHAT, {"Origin": "http://evil.example", "Content_Type": "application/json"}),
        (403, "GET", "/v1/models", {"Origin": "null"}),
        (403, "GET", "/metrics", {"Host": "rebound.example"}),
        (415, "POST", CHAT, {"Content_Type": "text/plain"}),
        (415, "POST", CHAT, {"Content_Type": "application/x-www-form-urlencoded"}),
        (401, "GET", "/v1/models", {"X_Forwarded_For": "8.8.8.8"}),
        (401, "POST", CHAT, {"Via": "1.1 proxy", "Content_Type": "application/json"}),
    ],
)
def test_pages_names_and_proxies_that_are_not_ours_are_refused_in_openais_shape(
    app: App, status: int, method: str, path: str, headers: dict[str, str]
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port(app), timeout=60)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, b"{}" if method == "POST" else None, given)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    assert response.status == status
    assert answer["error"]["message"]


def test_no_file_is_read_by_a_path(app: App) -> None:
    up = "/..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd"
    for path in (
        *(f"/v1/models{up}", f"/v1{up}", f"/health{up}", "/v1/models//etc/passwd", f"/file={up}"),
        *("/gradio_api/file=/etc/passwd", f"/gradio_api/file{up}", f"/static{up}", f"/assets{up}"),
        *("/gradio_api/file=models.json", "/gradio_api/file=app.py", "/gradio_api/runs", "/openapi.json"),
        *("/monitoring", "/docs", "/redoc"),
    ):
        assert status_of(app, "GET", path) in (401, 403, 404), path


def test_bodies_of_any_kind_are_answered(app: App) -> None:
    """Extreme values and shapes: a sentence of 4xx, and the app lives on."""
    deep = b'{"messages": ' + b"[" * 100_000
    huge = json.dumps({"messages": [{"role": "user", "content": "a" * 8_000_000}]}).encode()
    many = json.dumps({"messages": [{"role": "user", "content": "a"}] * 100_000 + ["b"]}).encode()
    wide = json.dumps({"messages": [{"role": "user", "content": "a"}]} | {f"k{i}": i for i in range(50_000)})
    stop = json.dumps({"messages": [{"role": "user", "content": "a"}], "stop": ["x" * 10**6] * 5})
    for body in (
        deep,
        huge,
        many,
        wide.encode(),
        stop.encode(),
        b"\x00" * 1000,
        b'{"seed": 1e999, "messages": []}',
    ):
        assert status_of(app, "POST", CHAT, body, Content_Type="application/json") in (400, 413), body[:40]
    others_are_served(app)
