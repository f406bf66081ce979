"""Several tabs of one browser, and a browser without room: no chat is lost silently."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, expect

from tests.e2e.person import WAIT_MS, Person
from tests.e2e.serve import App
from tests.e2e.store import put_chat

pytestmark = pytest.mark.parametrize("app", ["llama-server"], indirect=True)


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context()
    yield context
    context.close()


def say(person: Person, text: str) -> None:
    put_chat(person, [{"role": "user", "content": text}, {"role": "assistant", "content": f"Re: {text}"}])
    expect(person.questions).to_have_text([text], timeout=WAIT_MS)


def test_each_tab_has_its_chat_and_the_last_one_comes_back(context: BrowserContext, app: App) -> None:
    one, two = Person(context.new_page(), app.url), Person(context.new_page(), app.url)
    say(one, "first")
    say(two, "second")
    one.reload()
    expect(one.questions).to_have_text(["first"], timeout=WAIT_MS)
    two.reload()
    expect(two.questions).to_have_text(["second"], timeout=WAIT_MS)
    new = Person(context.new_page(), app.url)
    expect(new.questions).to_have_count(0)
    for person in (new, one, two):
        assert not person.trouble
        with person.page.expect_event("close"):  # the unload, which only begins here, notes when
            person.page.close(run_before_unload=True)
    again = Person(context.new_page(), app.url)
    expect(again.questions).to_have_text(["second"], timeout=WAIT_MS)


def test_a_duplicated_tab_goes_its_own_way(context: BrowserContext, app: App) -> None:
    one = Person(context.new_page(), app.url)
    say(one, "first")
    with context.expect_page() as opened:  # a window that a page opens has a copy of its session storage
        one.page.evaluate("(url) => { window.open(url); }", app.url)
    two = Person(opened.value, app.url)
    expect(two.questions).to_have_text(["first"], timeout=WAIT_MS)
    say(two, "second")
    one.reload()
    expect(one.questions).to_have_text(["first"], timeout=WAIT_MS)


def test_a_chat_beyond_the_browsers_room_loses_its_oldest_turns_and_the_page_says_so(
    context: BrowserContext, app: App
) -> None:
    person = Person(context.new_page(), app.url)
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": f"{i} " + "x" * 400_000} for i in range(4)]
    put_chat(person, messages)
    expect(person.page.locator("#chat")).to_contain_text("2 messages dropped", timeout=WAIT_MS)
    person.reload()
    expect(person.page.locator("#chat")).to_contain_text("2 messages dropped", timeout=WAIT_MS)
    assert person.questions.count() == 1


def test_a_browser_that_is_full_is_told_of(context: BrowserContext, app: App) -> None:
    person = Person(context.new_page(), app.url)
    say(person, "first")
    person.page.evaluate(
        """() => {
      let more = 'x'.repeat(1 << 20);
      for (let n = 0; more; n++) try { localStorage['other' + n] = more; } catch { more = more.slice(1); }
    }""".replace("more.slice(1)", "more.slice(more.length >> 1 || 1)")
    )
    person.set("Max tokens", 4)
    person.send("A longer question than the one before it. " * 3)
    told = person.page.get_by_role("alert").filter(has_text="no room left")
    expect(told).to_be_visible(timeout=WAIT_MS)
