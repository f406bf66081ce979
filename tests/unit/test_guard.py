"""What the app refuses before any of it is asked: hosts, origins, kinds and sizes of bodies, crowds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from chat import guard
from chat.guard import CROWD, LARGEST, Guard, names_of

JSON = {"content-type": "application/json"}


async def echo(request: Request) -> JSONResponse:
    return JSONResponse({"got": len(await request.body())})


def app(names: frozenset[str] = frozenset({"localhost"}), any_host: bool = False) -> Starlette:
    routes = [
        Route(path, echo, methods=["GET", "POST", "PUT"]) for path in ("/", "/login", "/gradio_api/upload")
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, names, any_host)])


def asked(method: str = "POST", path: str = "/", body: bytes = b"{}", /, **headers: str) -> tuple[int, str]:
    given = {"host": "127.0.0.1:7860"} | {name.replace("_", "-"): value for name, value in headers.items()}
    answer = TestClient(app()).request(method, path, content=body, headers=given)
    return answer.status_code, answer.text


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:7860", "localhost", "LOCALHOST:1", "[::1]:7860", "192.168.1.5", "a.localhost", "localhost."],
)
def test_addresses_and_our_own_names_are_known(host: str) -> None:
    assert asked("GET", "/", b"", host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:7860", "localhost.evil.example", "", "[", "@"]
)
def test_other_hosts_are_refused_with_the_cure(host: str) -> None:
    status, text = asked("GET", "/", b"", host=host)
    assert status == 403
    assert "isn't known as" in text
    assert ("TUNE2CHAT_HOSTS=" in text) == ("example" in host)


def test_a_name_can_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE2CHAT_HOSTS", "chat.example, Other.example")
    monkeypatch.setenv("SPACE_HOST", "me-tune2chat.hf.space")
    names = names_of("mine.example")
    assert {"chat.example", "other.example", "me-tune2chat.hf.space", "mine.example", "localhost"} <= names
    client = TestClient(app(names))
    assert client.get("/", headers={"host": "chat.example"}).status_code == 200
    # Behind a proxy that says another Host than the browser did.
    headers = JSON | {"host": "127.0.0.1:7860", "origin": "https://chat.example"}
    assert client.post("/", json={}, headers=headers).status_code == 200


def test_a_space_is_asked_by_whatever_name_its_proxy_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_HOST", "me-tune2chat.hf.space")
    client = TestClient(app(names_of("0.0.0.0"), any_host=True))
    for origin, status in (("https://me-tune2chat.hf.space", 200), ("https://evil.example", 403)):
        headers = JSON | {"host": "pod-7.internal:7860", "origin": origin}
        assert client.post("/", json={}, headers=headers).status_code == status


JSON_ = {"content_type": "application/json"}


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:7860"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_pages_of_other_origins_are_refused(method: str, origin: str) -> None:
    status, text = asked(method, origin=origin, **JSON_)
    assert status == 403
    assert origin in text


def test_our_own_page_and_programs_may_write() -> None:
    assert asked(origin="http://127.0.0.1:7860", **JSON_)[0] == 200
    assert asked(**JSON_)[0] == 200
    assert asked(content_type="Application/JSON; charset=utf-8")[0] == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/form-data", "application/x-www-form-urlencoded", ""]
)
def test_what_foreign_pages_can_send_unasked_is_refused(kind: str) -> None:
    status, text = asked(content_type=kind)
    assert status == 415
    assert "send application/json" in text


def test_forms_of_the_page_itself_are_taken() -> None:
    assert asked("POST", "/gradio_api/upload", content_type="multipart/form-data; boundary=x")[0] == 200
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert asked("POST", "/login", content_type=kind)[0] == 200
    assert asked("POST", "/", b"")[0] == 200  # of nothing


def test_a_body_is_bounded_whatever_its_length_is_said_to_be() -> None:
    assert asked("POST", "/", b"x" * LARGEST, **JSON_) == (200, f'{{"got":{LARGEST}}}')
    assert asked("POST", "/", b"x" * (LARGEST + 1), **JSON_)[0] == 413
    assert asked("POST", "/", b"x", content_length="-1", **JSON_)[0] == 413

    def chunks() -> Any:
        yield from [b"x" * 2**20] * 10

    headers = JSON | {"host": "localhost"}
    assert TestClient(app()).post("/", content=chunks(), headers=headers).status_code == 413


def run(receive: Any, headers: dict[str, str], served: Any = None) -> list[Any]:
    """What one request is answered, message by message."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b""}
    pairs = [(name.encode(), value.encode()) for name, value in ({"host": "localhost"} | headers).items()]
    asyncio.run(Guard(served or app(), frozenset({"localhost"}))(scope | {"headers": pairs}, receive, send))
    return sent


def test_a_slow_writer_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "PATIENCE_S", 0.05)

    async def receive() -> Any:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    assert run(receive, JSON)[0]["status"] == 408


def test_a_crowd_is_told_so_and_others_are_served_afterwards() -> None:
    async def crowd() -> list[int]:
        statuses: list[int] = []
        release = asyncio.Event()

        async def waits(scope: Any, receive: Any, send: Any) -> None:
            await release.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def send(message: Any) -> None:
            statuses.extend([message["status"]] if "status" in message else [])

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        guarded = Guard(waits, frozenset())
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"127.0.0.1")]}
        open_ones = [asyncio.create_task(guarded(dict(scope), receive, send)) for _ in range(CROWD + 10)]
        await asyncio.sleep(0.05)
        assert statuses == [503] * 10
        release.set()
        await asyncio.gather(*open_ones)
        await guarded(dict(scope), receive, send)
        return statuses[10:]

    assert asyncio.run(crowd()) == [200] * (CROWD + 1)
