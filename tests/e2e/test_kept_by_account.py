"""Who signs in takes along what the browser kept, and then has it on the server."""

from __future__ import annotations

from playwright.sync_api import BrowserContext, Route

from tests.e2e.chats_page import Site, do, tab


def test_a_visitors_chats_come_along_at_sign_in(context: BrowserContext, site: Site) -> None:
    page = tab(context, site)
    do(page, "for (const id of ['a', 'b', 'c']) await store.put(rows(id));")
    do(page, "await store.change('a', { pinned: true });")
    do(page, "await store.remove('c'); await store.put(rows('huge', 0, 'x'.repeat(2_000_000)));")
    site.user, site.refused = "someone", "b"
    page.reload()
    assert do(page, "return (await store.ready).user") == "someone"
    assert sorted(site.trees) == ["a", "huge"]
    assert site.trees["a"]["chat"]["pinned"] is True
    assert [c["id"] for c in do(page, "return store.list()")] == ["a", "huge"]
    stays = "A chat from before you signed in stays in this browser: This chat is too large."
    assert page.evaluate("tune2chat.store.fault") == stays
    site.user, site.trees = "", {}
    page.reload()
    assert [c["id"] for c in do(page, "return store.list()")] == ["b"]


def test_what_another_tab_says_during_the_sign_in_is_not_lost(context: BrowserContext, site: Site) -> None:
    old = tab(context, site)
    do(old, "await store.put(rows('a'));")
    site.user = "someone"
    new = context.new_page()

    def answer(route: Route) -> None:
        if route.request.method == "POST":
            do(old, "await store.put(rows('a', 1));")
        route.continue_()

    new.route("**/chats", answer)
    new.goto(site.url)
    do(new, "await store.ready;")
    assert len(site.trees["a"]["messages"]) == 2
    assert len(do(old, "return (await store.read('a')).messages")) == 4
    new.unroute("**/chats")
    new.reload()
    do(new, "await store.ready;")
    assert len(site.trees["a"]["messages"]) == 4
    assert do(old, "return store.list()") == []


def test_who_can_not_be_known_is_a_visitor_who_is_told(context: BrowserContext, site: Site) -> None:
    page = context.new_page()
    page.route("**/chats", lambda route: route.fulfill(status=503, body="busy"))
    page.goto(site.url)
    do(page, "await store.put(rows('a'));")
    assert len(do(page, "return store.list()")) == 1
    assert page.evaluate("tune2chat.store.fault").startswith("The app answers with an error (503).")


def test_who_signed_in_keeps_chats_on_the_server(context: BrowserContext, site: Site) -> None:
    page = tab(context, site)
    tree = page.evaluate("rows('a')")
    site.user, site.trees = "someone", {"a": tree, "b": {**tree, "chat": {**tree["chat"], "id": "b"}}}
    one, two = tab(context, site), tab(context, site)
    do(one, "await store.ready;")
    do(two, "await store.change('a', { title: 'Mine' }); await store.remove('b');")
    one.wait_for_function("heard.length === 2")
    assert [(c["id"], c["title"]) for c in do(one, "return store.list()")] == [("a", "Mine")]
    do(one, "await store.restore('b');")
    assert [c["id"] for c in do(one, "return store.search('word')")] == ["a", "b"]
    assert do(one, "return store.read('a')") == {"chat": {"id": "a"}}
    assert do(one, "return (await store.room()).used") > 100
    assert do(one, "return (await indexedDB.databases()).length") == 1
    site.user = ""  # as after a restart of the app
    assert do(one, "return store.list()").startswith("You are signed out")
    assert do(one, "return store.change('a', { pinned: true })").startswith("You are signed out")
    site.user = "someone"
    do(one, "await store.clear();")
    assert site.trees == {}
    context.set_offline(True)
    assert "does not answer" in do(one, "return store.list()")
