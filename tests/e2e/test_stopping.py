"""Stop, a reload and a killed engine: the engine falls idle, and nothing that was said is lost."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.e2e.person import WAIT_MS, Person
from tests.e2e.serve import App

IDLE_S = 1.0  # what the page promises
SLACK_S = 2.0  # for measuring it on a machine that does other things too
LONG = "The quick brown fox jumps over the lazy dog. " * 600  # some 6,000 tokens


def test_stop_during_a_reply_keeps_what_was_written(person: Person, app: App) -> None:
    person.set("Max tokens", 2000)
    person.begin("Write a long story about a lighthouse keeper and the sea.")
    person.stop_when("Writing")
    assert app.idle_after(10) <= IDLE_S + SLACK_S
    person.ended()
    assert "Stopped" in person.status.inner_text()
    partial = person.replies.last.inner_text()
    assert partial
    first = person.prompt_tokens()
    person.reload()
    expect(person.replies).to_have_text([partial], timeout=WAIT_MS)
    person.set("Max tokens", 4)
    person.send("Go on.")
    assert person.prompt_tokens() > first + len(partial.split())  # the next prompt has the partial reply


def test_stop_while_the_prompt_is_read(person: Person, app: App) -> None:
    person.begin(LONG)
    person.stop_when("Reading the prompt")
    assert app.idle_after(10) <= IDLE_S + SLACK_S
    person.ended()
    assert "Stopped" in person.status.inner_text()
    assert person.replies.count() == 0
    expect(person.questions).to_have_count(1)
    person.button("Undo").click()
    expect(person.box).to_have_value(LONG)


def test_a_reload_during_a_reply_stops_the_engine_and_keeps_the_chat(person: Person, app: App) -> None:
    person.set("Max tokens", 2000)
    person.begin("Write a long story about a lighthouse keeper and the sea.")
    expect(person.status).to_contain_text("Writing", timeout=WAIT_MS)
    saved = person.page.evaluate("localStorage.getItem('tune2chat')")
    person.page.wait_for_function("(saved) => localStorage.getItem('tune2chat') !== saved", arg=saved)
    person.reload()
    assert app.idle_after(30) < 30
    expect(person.questions).to_have_count(1, timeout=WAIT_MS)
    assert person.replies.last.inner_text()
    expect(person.button("Continue")).to_be_visible()


@pytest.mark.parametrize("app", ["llama-server"], indirect=True)
def test_a_killed_engine_is_named_and_the_turn_can_be_retried(person: Person, app: App) -> None:
    person.set("Max tokens", 2000)
    person.begin("Write a long story about a lighthouse keeper and the sea.")
    expect(person.status).to_contain_text("Writing", timeout=WAIT_MS)
    app.engine_process().kill()
    expect(person.page.get_by_role("alert")).to_contain_text("process stopped", timeout=WAIT_MS)
    expect(person.questions).to_have_count(1)
    assert person.replies.last.inner_text()
    person.set("Max tokens", 4)
    assert person.whole_turn(person.button("Retry").click)
    assert person.replies.count() == 1
