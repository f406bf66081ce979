"""The list of chats as a person uses it: by mouse, by keyboard, and with titles that mean harm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.chats_page import Site

DAY_S = 86_400
# Chats of [id, title, days ago, pinned, text], kept at once.
FILL = """(chats) => Promise.all(chats.map(([id, title, days, pinned, text]) => tune2chat.store.put({
  chat: { id, title, made: 1, changed: Date.now() / 1000 - days * 86400, pinned, leaf: 'm' },
  messages: [{ id: 'm', parent: '', at: 1, message: { role: 'user', content: text ?? 'word' } }],
})))"""


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.shutdown()
    site.server_close()


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 360, "height": 700})
    page = context.new_page()
    page.set_default_timeout(20_000)
    trouble: list[str] = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.goto(site.url)
    yield page
    context.close()
    assert not trouble, trouble


def show(page: Page, *chats: tuple[Any, ...]) -> None:
    page.evaluate(FILL, [[*chat, *(None, 0, False, None)[len(chat) - 1 :]] for chat in chats])
    page.evaluate("show()")
    expect(page.locator("#root li")).to_have_count(len(chats))


def titles(page: Page) -> list[str]:
    return page.locator("#root li .title").all_inner_texts()


def test_chats_are_grouped_by_date_pinned_first(page: Page) -> None:
    show(
        page,
        ("a", "Old", 400),
        ("b", "Month", 20),
        ("c", "Week", 5),
        ("d", "", 1),
        ("e", "Now", 0),
        ("f", "Kept", 90, True),
    )
    groups = page.locator("#root h2").all_inner_texts()
    assert groups[:-1] == ["Pinned", "Today", "Yesterday", "Previous 7 days", "Previous 30 days"]
    assert groups[-1].split()[1].isdigit()
    assert titles(page) == ["Kept", "Now", "New chat", "Week", "Month", "Old"]
    page.get_by_role("button", name="Week", exact=True).click()
    page.get_by_role("button", name="New chat", exact=True).first.click()
    assert page.evaluate("done") == ["open c", "fresh"]


def test_rename_pin_and_delete_by_mouse(page: Page) -> None:
    show(page, ("a", "One", 1), ("b", "Two", 2))
    page.get_by_role("button", name="More: Two").click()
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("Title of this chat").fill("  Second   one ")
    page.keyboard.press("Enter")
    expect(page.locator("#root li .title")).to_have_text(["One", "Second one"])
    page.get_by_role("button", name="More: Second one").click()
    page.get_by_role("button", name="Pin").click()
    expect(page.locator("#root li .title")).to_have_text(["Second one", "One"])
    page.get_by_role("button", name="More: One").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#root li .title")).to_have_text(["Second one"])
    expect(page.get_by_role("status")).to_have_text("Deleted: One")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#root li .title")).to_have_text(["Second one", "One"])
    assert page.evaluate("done") == ["removed a"]


def test_titles_are_text(page: Page) -> None:
    evil = "<img src=x onerror=\"document.title='hacked'\"><b>bold</b>"
    show(page, ("a", evil, 0, False, "find " + evil))
    assert titles(page) == [evil]
    page.get_by_label("Search chats").fill("find")
    expect(page.locator("#root small")).to_have_text("find " + evil)
    assert page.locator("#root :is(img, b)").count() == 0
    assert page.title() == "Chats"
