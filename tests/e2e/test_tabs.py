"""Several tabs of one browser: each shows a chat, all know all of them, and none is lost silently."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, expect

from tests.e2e.person import WAIT_MS, Person
from tests.e2e.serve import App
from tests.e2e.store import put_chat

pytestmark = pytest.mark.parametrize("app", ["llama-server"], indirect=True)


# A chat larger than all the room there is.
FILL = """async () => {
  const noise = Array.from({ length: 60_000 }, Math.random).join('');
  const chat = { id: 'large', title: 'Large', pinned: false, made: 0, changed: 0 };
  for (let n = 0; n < 5 && !window.tune2chat.store.fault; n++)
    await window.tune2chat.store
      .put({ chat, messages: [{ id: `m${n}`, parent: '', message: { content: noise } }] })
      .catch(() => {});
}"""


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield context
    context.close()


def say(person: Person, text: str) -> None:
    put_chat(person, [{"role": "user", "content": text}, {"role": "assistant", "content": f"Re: {text}"}])
    expect(person.questions).to_have_text([text], timeout=WAIT_MS)


def test_each_tab_has_its_chat_and_the_last_one_comes_back(context: BrowserContext, app: App) -> None:
    one, two = Person(context.new_page(), app.url), Person(context.new_page(), app.url)
    say(one, "first")
    say(two, "second")
    expect(one.chats).to_have_count(2, timeout=WAIT_MS)  # they hear of each other
    one.reload()
    expect(one.questions).to_have_text(["first"], timeout=WAIT_MS)
    two.reload()
    expect(two.questions).to_have_text(["second"], timeout=WAIT_MS)
    new = Person(context.new_page(), app.url)
    expect(new.questions).to_have_count(0)
    for person in (new, one, two):
        assert not person.trouble
        person.page.close()
    again = Person(context.new_page(), app.url)
    expect(again.questions).to_have_text(["second"], timeout=WAIT_MS)


def test_one_chat_in_two_tabs_is_the_same_in_both(context: BrowserContext, app: App) -> None:
    one = Person(context.new_page(), app.url)
    say(one, "first")
    two = Person(context.new_page(), app.url)
    two.chats.get_by_role("button", name="first").first.click()
    expect(two.questions).to_have_text(["first"], timeout=WAIT_MS)
    one.set("Max tokens", 2000)
    one.begin("Tell me a long story of the sea.")
    expect(one.status).to_contain_text("Writing", timeout=WAIT_MS)
    expect(two.status).to_contain_text("Writing", timeout=WAIT_MS)
    two.stop()
    one.ended()
    two.ended()
    expect(two.questions).to_have_text(["first", "Tell me a long story of the sea."], timeout=WAIT_MS)
    assert one.replies.last.inner_text() == two.replies.last.inner_text()


def test_what_the_browser_has_no_room_for_is_told(context: BrowserContext, app: App) -> None:
    page = context.new_page()
    limit = context.new_cdp_session(page)
    # Before the first row: Chromium remembers for half a minute how much room there is.
    limit.send("Storage.overrideQuotaForOrigin", {"origin": app.url, "quotaSize": 1_000_000})
    person = Person(page, app.url)
    say(person, "first")
    person.set("Max tokens", 4)
    person.page.evaluate(FILL)
    told = person.page.locator("#kept")
    expect(told).to_contain_text("no room left", timeout=WAIT_MS)
    assert len(person.send("Is this kept?")) > 1
    limit.send("Storage.overrideQuotaForOrigin", {"origin": app.url})
    person.page.evaluate("window.tune2chat.store.forget(['large'])")
    person.send("Another one.")
    expect(told).to_be_hidden(timeout=WAIT_MS)
    person.reload()
    expect(person.questions).to_have_text(["first", "Is this kept?", "Another one."], timeout=WAIT_MS)
