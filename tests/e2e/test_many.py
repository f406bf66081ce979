"""Several people and a program at once, and what a program gets for values that can't be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import Browser, expect

from chat.kept_routes import KeptRoutes
from chat.model_host import Host
from chat.page_html import HEAD_JS
from chat.reply import Sessions
from chat.screen import build_demo
from core.in_process import InProcessEngine
from core.registry import load_registry
from tests.e2e.person import WAIT_MS, Person
from tests.e2e.serve import App, models

IN_PROCESS = pytest.mark.parametrize("app", ["in-process"], indirect=True)


@pytest.fixture
def client(app: App) -> Iterator[Client]:
    client = Client(app.url, verbose=False)
    yield client
    client.close()


@IN_PROCESS
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"max_tokens": 5000}, "max tokens is 5000"),
        ({"top_p": 0}, "top p is 0"),
        ({"seed": -3}, "seed is -3"),
        ({"model": "nobody"}, "No model is called 'nobody'"),
        ({"message": " "}, "message is empty"),
        ({"history": [{"role": "tool", "content": "x"}]}, "role is 'tool'"),
    ],
)
def test_a_value_out_of_range_gets_a_sentence(client: Client, values: dict[str, object], said: str) -> None:
    with pytest.raises(AppError, match=said):
        client.predict(**({"message": "Hi.", "max_tokens": 2} | values), api_name="/chat")


@IN_PROCESS
def test_a_chat_that_the_page_saved_is_gone_on_with(client: Client) -> None:
    system = {"role": "system", "content": "Be brief."}
    ask = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
    answer = {"role": "assistant", "content": "Hello.", "reasoning_content": "They greet."}
    history = [system, ask, answer]
    values = {"message": "And now?", "api_name": "/chat"}
    said = client.predict(**values, history=history, max_tokens=4, temperature=0)
    assert said
    saved = {"model": "Small", "sampling": {"max_tokens": 4, "temperature": 0}, "messages": history}
    assert client.predict(**values, history=saved) == said


@pytest.fixture
def inside(embedded_model: Path, tmp_path: Path) -> Iterator[tuple[Host, str]]:
    """Serve the page from this process, where the engine's own counter can be read."""
    (tmp_path / "models.json").write_text(json.dumps(models(embedded_model)))
    host = Host(load_registry(tmp_path / "models.json"), "in-process")
    demo = build_demo(Sessions(host))
    _, url, _ = demo.launch(
        server_name="127.0.0.1",
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        head=f"<script>{HEAD_JS}</script>",
        app_kwargs={"routes": KeptRoutes(None, lambda _: "").routes()},
    )
    yield host, url
    demo.close(verbose=False)
    host.close()


def test_two_people_and_a_program_at_once_never_enter_the_model_twice(
    browser: Browser, inside: tuple[Host, str]
) -> None:
    host, url = inside
    client = Client(url, verbose=False)
    people = [Person(browser.new_context().new_page(), url) for _ in range(2)]
    for person in people:
        person.set("Max tokens", 12)
    alone = [person.send(f"Name a {what}.") for person, what in zip(people, ("fish", "bird"), strict=True)]
    asked = {"message": "Name a tree.", "max_tokens": 12, "temperature": 0}
    program = client.predict(**asked, api_name="/chat")
    job = client.submit(**asked, api_name="/chat")
    for person in people:
        person.icon("Retry").click()
        expect(person.button("Stop")).to_be_visible(timeout=WAIT_MS)
    # Greedy replies differ when two of them meet inside the model; these are as they were alone.
    assert job.result(timeout=WAIT_MS / 1000) == program
    for person, before in zip(people, alone, strict=True):
        expect(person.button("Send")).to_be_visible(timeout=WAIT_MS)
        person.ended()
        expect(person.replies).to_have_text([before], timeout=WAIT_MS)
        assert not person.trouble
        person.page.context.close()
    client.close()
    with host.use("Small") as model:
        assert isinstance(model.engine, InProcessEngine)
        assert model.engine.most_entered == 1


@IN_PROCESS
def test_who_waits_for_the_model_can_stop_waiting(browser: Browser, app: App) -> None:
    first, second = (Person(browser.new_context().new_page(), app.url) for _ in range(2))
    first.set("Max tokens", 2000)
    first.begin("Write a long story about a lighthouse keeper and the sea.")
    expect(first.status).to_contain_text("Writing", timeout=WAIT_MS)
    second.begin("Hello.")
    expect(second.status).to_contain_text("Waiting for the model: place 1 of 1 in line", timeout=WAIT_MS)
    second.stop()
    expect(second.status).to_contain_text("Stopped while other replies came first", timeout=WAIT_MS)
    expect(second.button("Send")).to_be_visible(timeout=WAIT_MS)
    expect(second.box).to_have_value("Hello.")
    expect(first.button("Stop")).to_be_visible()
    first.stop()
    first.ended()
    for person in (first, second):
        person.page.context.close()
