"""A visitor's chats in the browser: nothing that was kept is lost, and whatever can't be kept is told."""

from __future__ import annotations

import pytest
from playwright.sync_api import BrowserContext, Error

from tests.e2e.chats_page import Site, do, page_of, tab

NO_ROOM, KEEPS_NOTHING = "This browser has no room left", "This browser keeps nothing for this page"
# A step more of the database, as a later version of the script has.
LATER = ("  ];\n  const PATIENCE", "    (db) => db.createObjectStore('later'),\n  ];\n  const PATIENCE")


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


def test_an_older_file_adds_what_is_missing_and_changes_nothing(context: BrowserContext, site: Site) -> None:
    page = tab(context, site)
    do(page, "await store.put(rows('one', 0, 'old')); window.file = await store.read('one');")
    do(page, "await store.put(rows('one', 0, 'new', 2e9)); await store.put(rows('one', 1, 'more', 2e9));")
    do(page, "await store.change('one', { title: 'Mine' });")
    here = do(page, "return store.read('one')")
    do(page, "file.messages.push({ ...file.messages[0], id: 'other' }); await store.put(file, true);")
    both = do(page, "return store.read('one')")
    assert both["chat"] == here["chat"]
    assert both["messages"][:-1] == here["messages"]
    assert [row["id"] for row in both["messages"]] == ["q0", "a0", "q1", "a1", "other"]
    do(page, "await store.put(rows('one', 0, 'newest', 3e9), true);")
    newest = do(page, "return store.read('one')")
    assert newest["messages"][1]["message"]["content"] == "newest"
    do(page, "window.odd = rows('one', 0, 'x', 4e9); odd.messages[1].parent = '';")
    assert "already" in do(page, "await store.put(odd, true);")
    assert do(page, "return store.read('one')") == newest


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


def test_a_full_browser_says_so_and_loses_nothing(context: BrowserContext, site: Site) -> None:
    page = tab(context, site)
    session = context.new_cdp_session(page)
    # Before the first row: Chromium remembers for half a minute how much room there is.
    session.send("Storage.overrideQuotaForOrigin", {"origin": site.url, "quotaSize": 1_000_000})
    page.add_script_tag(content="window.noise = (n) => Array.from({ length: n / 20 }, Math.random).join('');")
    do(page, "window.text = noise(100_000); await store.put(rows('a', 0, text)); await store.put(rows('b'));")
    assert NO_ROOM in do(page, "await store.put(rows('a', 1, noise(900_000)));")
    assert NO_ROOM in page.evaluate("tune2chat.store.fault")
    assert do(page, "return (await store.read('a')).messages[0].message.content === text") is True
    fill = "for (let n = 0; n < 200; n++) await store.put(rows(`fill${given[0]}`, n, noise(given[0])));"
    assert all(NO_ROOM in do(page, fill, size) for size in (20_000, 1_000, 10))
    assert NO_ROOM in do(page, "await store.change('b', { title: 'b'.repeat(200) });")
    do(page, "await store.remove('b');")  # there is no room even for the mark
    listed = {c["id"] for c in do(page, "return store.list()")}
    assert "a" in listed
    assert "b" not in listed
    assert NO_ROOM in page.evaluate("tune2chat.store.fault")
    session.send("Storage.overrideQuotaForOrigin", {"origin": site.url})
    do(page, "await store.restore('b'); await store.put(rows('a', 2));")  # what was refused comes along
    kept = do(
        page, "return Promise.all(['a', 'b'].map(async (id) => (await store.read(id)).messages.length))"
    )
    assert kept == [6, 2]
    page.wait_for_function("async () => (await tune2chat.store.list()) && !tune2chat.store.fault")


@pytest.mark.parametrize("how", ["blocked", "absent"])
def test_a_browser_that_keeps_nothing_says_so(context: BrowserContext, site: Site, how: str) -> None:
    page = tab(context, site)
    if how == "absent":
        page.add_init_script("Object.defineProperty(window, 'indexedDB', { value: undefined });")
        page.reload()
        frame = page.main_frame
    else:  # a page in a frame of its own origin has neither storage nor locks
        page.set_content(f"<iframe sandbox='allow-scripts' src='{site.url}/'></iframe>")
        page.frames[1].wait_for_function("window.tune2chat?.store")
        frame = page.frames[1]
    for act in ("list()", "put(rows('a'))", "read('a')", "room()"):
        said = frame.evaluate(f"tune2chat.store.{act}.catch((error) => error.message)")
        assert KEEPS_NOTHING in said
    assert KEEPS_NOTHING in frame.evaluate("tune2chat.store.fault")
    assert frame.evaluate("tune2chat.store.lock('a').then((free) => typeof free)") == "function"


def test_a_later_version_upgrades_and_the_tab_of_this_one_says_so(
    context: BrowserContext, site: Site
) -> None:
    old = tab(context, site)
    do(old, "await store.put(rows('a'));")
    site.page = page_of(LATER)
    new = tab(context, site)
    assert len(do(new, "return store.list()")) == 1
    newer = "The chats in this browser are those of a newer version of this page. Reload it."
    old.wait_for_function("tune2chat.store.fault")
    assert old.evaluate("tune2chat.store.fault") == newer
    assert do(old, "return store.put(rows('a', 1))") == newer
    assert len(do(new, "return (await store.read('a')).messages")) == 2


def test_a_tab_that_holds_the_database_is_told_of(context: BrowserContext, site: Site) -> None:
    other = context.new_page()
    other.goto(site.url + "/empty")
    other.evaluate("""new Promise((done) => {
      const request = indexedDB.open('tune2chat', 1);
      request.onupgradeneeded = () => {
        request.result.createObjectStore('chats', { keyPath: 'id' });
        request.result.createObjectStore('messages', { keyPath: ['chat', 'id'] });
      };
      request.onsuccess = () => done((window.held = request.result) && 1);
    })""")
    site.page = page_of(LATER)
    page = tab(context, site)
    assert "Another tab holds the chats" in do(page, "return store.list()")
    other.close()
    page.wait_for_function("async () => !(await tune2chat.store.list().catch(() => [0])).length")
    do(page, "await store.put(rows('a'));")
    assert page.evaluate("tune2chat.store.fault") == ""
