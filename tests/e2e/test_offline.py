"""Without a line to the app: what the browser keeps is there, the rest is told and waits, nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, expect

from tests.e2e.person import WAIT_MS, Person
from tests.e2e.serve import App
from tests.e2e.store import put_chat

pytestmark = pytest.mark.parametrize("app", ["in-process"], indirect=True)


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield context
    context.close()


def test_the_list_opens_offline_and_the_page_goes_on_when_the_line_is_back(
    context: BrowserContext, app: App
) -> None:
    person = Person(context.new_page(), app.url)
    for text in ("first", "second"):
        put_chat(person, [{"role": "user", "content": text}, {"role": "assistant", "content": f"Re: {text}"}])
    person.set("Max tokens", 4)
    told, search = person.page.locator("#kept"), person.page.get_by_label("Search chats")
    context.set_offline(True)
    expect(told).to_contain_text("have to wait until the line is back", timeout=WAIT_MS)
    expect(person.chats).to_have_count(2)
    search.fill("Re: first")
    expect(person.chats).to_have_count(1, timeout=WAIT_MS)
    person.chats.get_by_role("button", name="first").first.click()
    search.fill("")
    expect(person.chats).to_have_count(2, timeout=WAIT_MS)
    person.box.fill("Typed without a line.")
    person.box.press("Enter")
    person.button("Send").click()
    expect(person.box).to_have_value("Typed without a line.")
    expect(person.questions).to_have_text(["second"])
    expect(person.page.locator(".toast-body")).to_have_count(0)

    context.set_offline(False)
    expect(told).to_be_hidden(timeout=WAIT_MS)
    person.whole_turn(lambda: person.box.press("Enter"))
    expect(person.questions).to_have_text(["second", "Typed without a line."])
    person.chats.get_by_role("button", name="first").first.click()
    expect(person.questions).to_have_text(["first"], timeout=WAIT_MS)


def test_what_stands_in_the_box_is_there_after_a_reload(context: BrowserContext, app: App) -> None:
    person = Person(context.new_page(), app.url)
    person.box.fill("Half a sentence")
    person.reload()
    expect(person.box).to_have_value("Half a sentence", timeout=WAIT_MS)
    assert not person.trouble
