"""A visitor's chats in the browser: nothing that was kept is lost, and whatever can't be kept is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page

from tests.e2e.chats_page import Site

# A turn a row: the chat's row and its two messages, as chat/tree.py writes them.
ROWS = """window.rows = (id, turn = 0, text = 'word', changed = 1e9) => {
  const node = (name, parent, role, content) =>
    ({ id: name, parent, at: turn, message: { role, content }, vote: 0, edited: false });
  const before = turn ? `a${turn - 1}` : '';
  return {
    chat: { id, title: `Chat ${id}`, made: 1, changed, pinned: false, leaf: `a${turn}` },
    messages: [node(`q${turn}`, before, 'user', text), node(`a${turn}`, `q${turn}`, 'assistant', text)],
  };
};"""


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.shutdown()
    site.server_close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context()
    context.add_init_script(ROWS)
    yield context
    context.close()


def tab(context: BrowserContext, site: Site) -> Page:
    page = context.new_page()
    page.goto(site.url)
    return page


def do(page: Page, script: str, *given: Any) -> Any:
    """Run `script` on the page with `store`; a rejection comes back as its sentence."""
    code = f"(given) => (async (store) => {{ {script} }})(tune2chat.store).catch((error) => error.message)"
    return page.evaluate(code, list(given))


def test_chats_come_back_as_they_were_put(context: BrowserContext, site: Site) -> None:
    page = tab(context, site)
    do(page, "for (const turn of [0, 1]) await store.put(rows('one', turn));")
    do(page, "await store.put(rows('two', 0, 'x', 2e9));")
    page.reload()
    assert do(page, "return store.read('one')") == page.evaluate(
        "({ ...rows('one', 1), messages: [...rows('one', 0).messages, ...rows('one', 1).messages] })"
    )
    listed = [{"id": "two", "title": "Chat two", "made": 1, "changed": 2e9, "pinned": False, "messages": 2}]
    listed += [{"id": "one", "title": "Chat one", "made": 1, "changed": 1e9, "pinned": False, "messages": 4}]
    assert do(page, "return store.list()") == listed
    assert do(page, "return store.read('three')") is None
    assert do(page, "return (await store.ready).user") == ""


def test_a_title_and_a_pin_that_a_person_chose_outlast_the_next_turn(
    context: BrowserContext, site: Site
) -> None:
    page = tab(context, site)
    do(page, "await store.put(rows('one')); await store.put(rows('two', 0, 'x', 2e9));")
    do(page, "await store.change('one', { title: 'Mine' }); await store.change('one', { pinned: true });")
    do(page, "await store.put(rows('one', 1));")
    chats = do(page, "return store.list()")
    assert [(c["id"], c["title"], c["pinned"]) for c in chats] == [
        ("one", "Mine", True),
        ("two", "Chat two", False),
    ]
    read = do(page, "return store.read('one')")["chat"]
    assert (read["title"], read["pinned"]) == ("Mine", True)


def test_what_was_removed_can_come_back_until_it_is_forgotten(context: BrowserContext, site: Site) -> None:
    page = tab(context, site)
    do(page, "for (const id of ['one', 'two', 'three']) await store.put(rows(id));")
    do(page, "for (const id of ['one', 'two', 'three']) await store.remove(id);")
    assert do(page, "return [await store.list(), await store.read('one'), (await store.room()).used]") == [
        [],
        None,
        0,
    ]
    do(page, "await store.restore('one'); await store.forget(['one', 'two']);")
    assert do(page, "return store.restore('two')") == "This chat was deleted, perhaps in another tab."
    page.reload()  # a moment later: another tab may still offer to undo
    do(page, "await store.restore('three');")
    assert {c["id"] for c in do(page, "return store.list()")} == {"one", "three"}
    do(page, "await store.remove('three');")
    page.add_init_script("const now = Date.now; Date.now = () => now() + 3_600_000;")
    page.reload()
    assert do(page, "return store.restore('three')") == "This chat was deleted, perhaps in another tab."
    assert len(do(page, "return (await store.read('one')).messages")) == 2


def test_a_reply_to_a_chat_that_is_gone_leaves_no_half_of_it(context: BrowserContext, site: Site) -> None:
    page = tab(context, site)
    do(page, "await store.put(rows('one')); await store.remove('one'); await store.put(rows('one', 1));")
    assert do(page, "return store.list()") == []
    do(page, "await store.forget(['one']);")
    assert "deleted" in do(page, "await store.put(rows('one', 2));")
    assert do(page, "return store.list()") == []
    do(page, "await store.put(rows('one'));")  # whole, as from a file
    assert len(do(page, "return store.list()")) == 1


def test_search_finds_words_in_titles_and_messages(context: BrowserContext, site: Site) -> None:
    page = tab(context, site)
    texts = {
        "a": "Grüße aus Köln 😀" + " und so weiter" * 30,
        "b": "x" * 500 + " needle " + "y" * 500,
        "c": "mine",
    }
    for name, text in texts.items():
        do(page, "await store.put(rows(given[0], 0, given[1]));", name, text)
    found = {
        text: do(page, "return store.search(given[0])", text)
        for text in ("GRÜSSE", "grüße köln", "NEEDLE", "c")
    }
    assert [[c["id"] for c in chats] for chats in found.values()] == [[], ["a"], ["b"], ["a", "b", "c"]]
    assert "needle" in found["NEEDLE"][0]["found"]
    assert len(found["NEEDLE"][0]["found"]) < 140
    assert do(page, "return store.search('weiter grüße zu')") == []
    assert do(page, "await store.remove('b'); return store.search('needle')") == []


def test_two_tabs_hear_of_each_other_and_one_writes(context: BrowserContext, site: Site) -> None:
    one, two = tab(context, site), tab(context, site)
    do(one, "window.free = await store.lock('x'); await store.put(rows('x'));")
    two.wait_for_function("heard.length > 0")
    assert two.evaluate("heard") == ["x"]
    assert one.evaluate("heard") == []
    assert do(two, "return store.lock('x')") is False
    assert do(two, "return typeof await store.lock('y')") == "function"
    one.evaluate("free()")
    assert do(two, "return typeof await store.lock('x')") == "function"
    assert do(one, "return store.lock('x')") is False
    two.close()
    one.wait_for_function("async () => (window.free = await tune2chat.store.lock('x')) !== false")


def test_a_tab_that_is_killed_frees_its_chat(context: BrowserContext, site: Site) -> None:
    one, two = tab(context, site), tab(context, site)
    assert do(one, "return typeof await store.lock('x')") == "function"
    assert do(two, "return store.lock('x')") is False
    with one.expect_event("crash"), pytest.raises(Error):
        one.goto("chrome://crash")
    two.wait_for_function("async () => (await tune2chat.store.lock('x')) !== false")
