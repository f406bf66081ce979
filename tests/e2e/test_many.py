"""Several people and a program at once, and what a program gets for values that can't be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import Browser, expect

from tests.e2e.person import WAIT_MS, Person
from tests.e2e.serve import App

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
def test_two_people_and_a_program_are_all_answered_by_one_model(
    browser: Browser, app: App, client: Client
) -> None:
    people = [Person(browser.new_context().new_page(), app) for _ in range(2)]
    for person in people:
        person.set("Max tokens", 12)
    alone = [person.send(f"Name a {what}.") for person, what in zip(people, ("fish", "bird"), strict=True)]
    asked = {"message": "Name a tree.", "max_tokens": 12, "temperature": 0}
    program = client.predict(**asked, api_name="/chat")
    job = client.submit(**asked, api_name="/chat")
    for person in people:
        person.button("Retry").click()
    # Greedy replies differ when two of them meet inside the model; these are as they were alone.
    assert job.result(timeout=WAIT_MS / 1000) == program
    for person, before in zip(people, alone, strict=True):
        expect(person.button("Send")).to_be_visible(timeout=WAIT_MS)
        person.ended()
        expect(person.replies).to_have_text([before], timeout=WAIT_MS)
        assert not person.trouble
        person.page.context.close()


@IN_PROCESS
def test_who_waits_for_the_model_can_stop_waiting(browser: Browser, app: App) -> None:
    first, second = (Person(browser.new_context().new_page(), app) for _ in range(2))
    first.set("Max tokens", 2000)
    first.begin("Write a long story about a lighthouse keeper and the sea.")
    expect(first.status).to_contain_text("Writing", timeout=WAIT_MS)
    second.begin("Hello.")
    expect(second.status).to_contain_text("Waiting for the model", timeout=WAIT_MS)
    second.stop()
    second.ended()
    expect(first.button("Stop")).to_be_visible()
    first.stop()
    first.ended()
    for person in (first, second):
        person.page.context.close()
