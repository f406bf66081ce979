"""Stop, a reload and a killed engine: the engine falls idle, and nothing that was said is lost."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

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
    expect(person.page.locator("#chat .user")).to_contain_text("The quick brown fox")


def test_a_page_that_is_reloaded_takes_up_the_reply_that_still_runs(person: Person, app: App) -> None:
    person.set("Max tokens", 2000)
    person.begin("Write a long story about a lighthouse keeper and the sea.")
    expect(person.status).to_contain_text("Writing", timeout=WAIT_MS)
    expect(person.chats).to_have_count(1, timeout=WAIT_MS)
    before = person.replies.last.inner_text()
    person.reload()
    expect(person.status).to_contain_text("Writing", timeout=WAIT_MS)
    expect(person.replies.last).to_contain_text(before.split()[0], timeout=WAIT_MS)
    person.stop()
    person.ended()
    assert len(person.replies.last.inner_text()) > len(before)
    expect(person.button("Continue")).to_be_visible()


def test_a_reply_that_no_page_waits_for_is_stopped_and_what_it_wrote_is_there(
    browser: Browser, app: App
) -> None:
    context = browser.new_context()
    person = Person(context.new_page(), app.url)
    person.set("Max tokens", 4000)
    person.begin("Write a long story about a lighthouse keeper and the sea.")
    expect(person.status).to_contain_text("Writing", timeout=WAIT_MS)
    expect(person.chats).to_have_count(1, timeout=WAIT_MS)
    person.page.close()
    assert app.idle_after(60) < 60
    again = Person(context.new_page(), app.url)
    expect(again.questions).to_have_count(1, timeout=WAIT_MS)
    assert again.replies.last.inner_text()
    context.close()


@pytest.mark.parametrize("app", ["llama-server"], indirect=True)
def test_a_killed_engine_is_named_and_the_turn_can_be_retried(person: Person, app: App) -> None:
    person.set("Max tokens", 2000)
    person.begin("Write a long story about a lighthouse keeper and the sea.")
    expect(person.status).to_contain_text("Writing", timeout=WAIT_MS)
    app.engine_process().kill()
    expect(person.status.get_by_role("alert")).to_contain_text("process stopped", timeout=WAIT_MS)
    expect(person.questions).to_have_count(1)
    assert person.replies.last.inner_text()
    person.set("Max tokens", 4)
    assert person.whole_turn(person.icon("Retry").click)
    assert person.replies.count() == 1
