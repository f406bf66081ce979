"""The page /runs of a real server: it is behind the password of the chat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from chat.gradio_import import gr, loops_closed
from chat.runs_page import add_runs_page
from core.registry import load_registry


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    with loops_closed():
        demo = gr.Blocks(analytics_enabled=False)
        add_runs_page(demo, load_registry(tmp_path / "models.json"))
        demo.queue()
        _, url, _ = demo.launch(auth=("me", "secret"), prevent_thread_lock=True, quiet=True, ssr_mode=False)
    with httpx.Client(base_url=url) as client:
        yield client
    demo.server_app.stop_event.set()
    demo.close(verbose=False)


def test_a_password_of_the_chat_is_asked_for_here_too(client: httpx.Client) -> None:
    shown = client.get("/runs").text
    assert '"auth_required":true' in shown
    assert "Back to the chat" not in shown
    asked = {"data": [], "fn_index": 0, "session_hash": "x"}
    assert client.post("/gradio_api/queue/join", json=asked).status_code == 401
    assert client.post("/login", data={"username": "me", "password": "secret"}).status_code == 200
    assert "Back to the chat" in client.get("/runs").text
