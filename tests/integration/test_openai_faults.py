"""What OpenAI's API says to who has no key, and to what is no request; and how it ends."""

from __future__ import annotations

import json
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.integration.openai_app import KEY, OTHER, QUESTION, end, raw, serve
from tests.integration.running_app import App, copy_app


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    app = serve(tmp_path_factory.mktemp("api"), "in-process")
    yield app
    end(app)


def test_only_who_has_a_key_is_answered(app: App) -> None:
    for key, status in ((OTHER, 200), ("key-of-on", 401), (f"{KEY},{OTHER}", 401), ("", 401)):
        for path in ("/v1/models", "/metrics", "/v1/nothing"):
            wanted = 404 if status == 200 and "nothing" in path else status
            assert raw(app, "GET", path, key=key)[0] == wanted, (key, path)
    assert raw(app, "GET", "/health", key="") == (200, {"status": "ok"})
    assert raw(app, "POST", "/v1/chat/completions", key="")[0] == 401


def test_bodies_and_routes_that_are_none(app: App) -> None:
    chat = "/v1/chat/completions"
    for body in (
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b'{"messages": NaN}',
        b"[" * 50_000,
        b'{"a": 1, "\\ud800": 2}',
    ):
        assert raw(app, "POST", chat, body)[0] == 400, body[:20]
    surrogate = json.dumps({"model": "\ud800", "messages": QUESTION}).encode()
    assert raw(app, "POST", chat, surrogate)[0] == 404
    for method, path, status in (
        *(("GET", chat, 405), ("DELETE", "/v1/models", 405), ("PUT", "/health", 405), ("GET", "/v1", 404)),
        *(("GET", "/v1/embeddings", 404), ("GET", "/v1/../etc/passwd", 404), ("GET", "/v1/models/x/y", 404)),
    ):
        assert raw(app, method, path)[0] == status, path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_end_of_the_app_ends_open_streams_and_says_so(tmp_path: Path, number: signal.Signals) -> None:
    app = App(copy_app(tmp_path), "--engine", "in-process")
    app.wait_until_it_answers()
    body = json.dumps({"messages": QUESTION, "max_tokens": 4000, "stream": True}).encode()
    request = urllib.request.Request(
        f"{app.url}/v1/chat/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        while b"content" not in response.readline():
            pass
        began = time.monotonic()
        app.process.send_signal(number)
        rest = response.read().decode()
    assert "[DONE]" not in rest
    assert '"error"' in rest.split("data: ")[-1]
    app.process.wait(30)
    assert time.monotonic() - began < 10
    assert "Traceback" not in app.log.read_text()


SPACE = {"SPACE_ID": "someone/chat", "SPACE_HOST": "someone-chat.hf.space"}
ROUTES = [("GET", "/v1/models"), ("GET", "/v1/models/x"), ("GET", "/metrics"), ("GET", "/v1/nothing")]
ROUTES += [("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("DELETE", "/v1/models")]


@pytest.mark.parametrize(
    ("where", "keys"),
    [("password", ""), ("space", ""), ("password on a space", ""), ("password on a space", KEY)],
)
def test_neither_a_password_nor_a_space_opens_the_api_without_a_key(
    tmp_path: Path, where: str, keys: str
) -> None:
    """Gradio's password covers its own routes only, and a Space's proxy may come from anywhere."""
    password = ["--auth", "ann:secret"] if "password" in where else []
    variables = (SPACE if "space" in where else {}) | ({"TUNE2CHAT_API_KEYS": keys} if keys else {})
    app = App(copy_app(tmp_path), "--engine", "in-process", *password, **variables)
    app.wait_until_it_answers()
    with closing(httpx.Client(base_url=app.url, timeout=60)) as client:
        if password:
            assert client.get("/config").status_code == 401
            assert client.post("/login", data={"username": "ann", "password": "secret"}).status_code == 200
            assert client.get("/config").status_code == 200, "signed in from here on"
        for method, path in ROUTES:
            for headers in ({}, {"Authorization": "Bearer secret"}, {"X-Forwarded-For": "127.0.0.1"}):
                sent = {"json": {}} if method == "POST" else {}
                refused = client.request(method, path, headers=headers, **sent)
                assert refused.status_code == 401, (method, path, headers)
                assert refused.json()["error"]["code"] == "invalid_api_key"
        assert client.get("/health").status_code == 200
        with_key = client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"})
        assert with_key.status_code == (200 if keys else 401)
    assert "Traceback" not in app.end(signal.SIGTERM)
