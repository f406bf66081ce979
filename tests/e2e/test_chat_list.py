"""The list of chats as a person uses it: by mouse, by keyboard, and with titles that mean harm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.e2e.chats_page import Site

DAY_S = 86_400
# Chats of [id, title, days ago, pinned, text], kept at once.
FILL = """(chats) => Promise.all(chats.map(([id, title, days, pinned, text]) => tune2chat.store.put({
  chat: { id, title, made: 1, changed: Date.now() / 1000 - days * 86400, pinned, leaf: 'm' },
  messages: [{ id: 'm', parent: '', at: 1, message: { role: 'user', content: text ?? 'word' } }],
})))"""


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


def test_days_are_those_of_the_persons_clock(browser: Browser, site: Site) -> None:
    """Half an hour after midnight, the day after one of 23 hours."""
    context = browser.new_context(timezone_id="America/New_York")
    page = context.new_page()
    page.clock.set_fixed_time("2026-03-09T00:30:00-04:00")
    page.goto(site.url)
    group = """(at) => [...tune2chat.rows.grouped([{ changed: Date.parse(at) / 1000 }]).keys()][0]"""
    times = {
        "2026-03-09T00:10:00-04:00": "Today",
        "2026-03-10T00:10:00-04:00": "Today",  # another machine's clock is ahead
        "2026-03-08T00:10:00-05:00": "Yesterday",
        "2026-03-07T23:50:00-05:00": "Previous 7 days",
        "2026-03-02T00:10:00-05:00": "Previous 7 days",
        "2026-03-01T23:50:00-05:00": "Previous 30 days",
        "2026-02-01T12:00:00-05:00": "February 2026",
        "2025-03-09T12:00:00-04:00": "March 2025",
    }
    assert {at: page.evaluate(group, at) for at in times} == times
    assert page.evaluate("[...tune2chat.rows.grouped([{ changed: 1e300 }]).keys()]") == ["Today"]
    assert page.evaluate("[0, 999, 1000, 1500, 2e6, 12345678, 3e9].map(tune2chat.rows.bytes)") == [
        *("0 B", "999 B", "1 kB", "1.5 kB", "2 MB", "12 MB", "3 GB")
    ]
    context.close()


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


def test_everything_by_keyboard(page: Page) -> None:
    show(page, ("a", "One", 0), ("b", "Two", 1), ("c", "Three", 2))
    focused = page.locator("#root :focus")
    page.get_by_label("Search chats").focus()
    page.keyboard.press("Tab")  # one row is in the order of Tab
    expect(focused).to_have_text("One")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")  # the last one
    expect(focused).to_have_text("Three")
    page.keyboard.press("F2")
    page.keyboard.type("Third")
    page.keyboard.press("Escape")
    expect(focused).to_have_text("Three")
    page.keyboard.press("F2")
    page.keyboard.type("Third")
    page.keyboard.press("Enter")
    expect(page.locator("#root li .title")).to_have_text(["One", "Two", "Third"])
    expect(focused).to_have_text("Third")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")  # the menu
    page.keyboard.press("ArrowDown")
    expect(focused).to_have_text("Pin")
    page.keyboard.press("Escape")
    expect(focused).to_have_attribute("aria-label", "More: Third")
    page.keyboard.press("Enter")
    page.keyboard.press("End")
    page.keyboard.press("Enter")  # Delete
    expect(focused).to_have_text("Two")
    page.keyboard.press("Home")
    page.keyboard.press("Delete")
    expect(page.get_by_role("status")).to_have_text("2 chats deleted")
    expect(focused).to_have_text("Two")
    page.keyboard.press("Control+z")
    expect(page.locator("#root li .title")).to_have_text(["One", "Two", "Third"])
    page.keyboard.press("Enter")
    assert page.evaluate("done").count("open a") == 1
    page.keyboard.press("ArrowUp")
    expect(page.get_by_label("Search chats")).to_be_focused()
    page.keyboard.press("ArrowDown")
    for left in (2, 1, 0):
        page.keyboard.press("Delete")
        expect(page.locator("#root li")).to_have_count(left)
    expect(page.get_by_label("Search chats")).to_be_focused()


def test_what_is_deleted_is_gone_after_ten_seconds(page: Page) -> None:
    page.clock.install()
    show(page, ("a", "One", 0), ("b", "Two", 0))
    page.get_by_role("button", name="One", exact=True).focus()
    page.keyboard.press("Delete")
    undo = page.get_by_role("button", name="Undo")
    expect(undo).to_be_visible()
    undo.focus()  # whoever is about to press it has time
    page.clock.fast_forward(60_000)
    expect(undo).to_be_visible()
    page.get_by_label("Search chats").focus()
    page.clock.fast_forward(9_000)
    expect(undo).to_be_visible()
    page.clock.fast_forward(1_500)
    expect(undo).to_be_hidden()
    gone = "tune2chat.store.restore('a').catch((error) => error.message)"
    assert page.evaluate(gone) == "This chat was deleted, perhaps in another tab."


def test_everything_is_deleted_after_a_second_question(page: Page) -> None:
    show(page, ("a", "One", 0), ("b", "Two", 0))
    page.evaluate("list.current('a')")
    page.get_by_role("button", name="Delete everything").click()
    expect(page.get_by_text("Delete all chats, for good?")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#root li")).to_have_count(2)
    page.get_by_role("button", name="Delete everything").click()
    page.get_by_role("group", name="Delete everything?").get_by_text("Delete everything").click()
    expect(page.get_by_text("No chats yet.")).to_be_visible()
    expect(page.get_by_text("0 B in this browser")).to_be_visible()
    assert page.evaluate("done") == ["removed a"]
    page.reload()
    assert page.evaluate("tune2chat.store.list()") == []


def test_search_shows_where_and_the_newest_question_wins(page: Page) -> None:
    chats = [(f"c{n}", f"Chat {n}", n, False, f"number {n} " + "lorem ipsum " * 2000) for n in range(60)]
    show(page, *chats, ("last", "Other", 99, False, "before the needle after"))
    box, rows = page.get_by_label("Search chats"), page.locator("#root li")
    box.press_sequentially("number 1", delay=5)
    box.fill("needle")
    expect(rows).to_have_count(1)
    expect(rows.locator("mark")).to_have_text("needle")
    expect(page.get_by_role("status")).to_have_text("1 chat found")
    page.wait_for_timeout(500)  # an older answer would come now
    expect(rows).to_have_count(1)
    page.evaluate(FILL, [["new", "A needle", 0, False, "x"]])
    expect(rows).to_have_count(2)
    box.fill("nothing of this")
    expect(page.get_by_text("Nothing found.")).to_be_visible()
    box.press("Escape")
    expect(rows).to_have_count(62)
    expect(page.get_by_role("status")).to_have_text("")


def test_two_tabs_show_the_same(page: Page, site: Site) -> None:
    show(page, ("a", "One", 0))
    other = page.context.new_page()
    other.goto(site.url)
    show(other, ("b", "Two", 1), ("a", "One", 0))
    page.get_by_role("button", name="More: One").click()
    page.get_by_role("button", name="Rename").click()
    other.evaluate("tune2chat.store.change('b', { title: 'Second' })")
    expect(other.get_by_role("button", name="Second", exact=True)).to_be_visible()
    expect(page.get_by_label("Title of this chat")).to_have_value("One")  # not torn away
    page.keyboard.type("First")
    page.keyboard.press("Enter")
    for tab in (page, other):
        expect(tab.locator("#root li .title")).to_have_text(["First", "Second"])


def test_what_the_browser_can_not_keep_is_told_in_the_list(page: Page) -> None:
    page.add_init_script("Object.defineProperty(window, 'indexedDB', { value: undefined });")
    page.reload()
    page.evaluate("show()")
    expect(page.get_by_role("alert")).to_contain_text("This browser keeps nothing for this page")


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_axe_finds_nothing_serious_and_360_pixels_are_enough(page: Page, mode: str) -> None:
    show(
        page,
        ("a", "A long title " * 20, 0, True, "needle " * 99),
        ("b", "مرحبا كيف", 1),
        ("c", "x" * 300, 40),
    )
    page.evaluate(f"document.body.className = '{mode}'; list.current('a')")
    assert page.locator("#root [title]").first.get_attribute("title") == ("A long title " * 20).strip() + " "

    def check() -> None:
        bad = [v for v in Axe().run(page).response["violations"] if v["impact"] in ("serious", "critical")]
        assert not bad, bad
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(
            "document.querySelector('#root').scrollWidth <= document.querySelector('#root').clientWidth"
        )

    check()
    page.locator("#root .more").first.click()
    check()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Delete everything").click()
    check()
    page.get_by_label("Search chats").fill("needle")
    expect(page.locator("#root mark")).to_be_visible()
    page.locator("#root li").first.hover()
    check()


def test_a_thousand_chats_are_drawn_at_once(page: Page) -> None:
    page.evaluate("document.querySelector('main').style.height = '600px'")
    page.evaluate(
        FILL, [[f"c{n}", f"Chat number {n} about something", n / 3, n < 5, None] for n in range(1000)]
    )
    page.evaluate("show()")
    expect(page.locator("#root li")).to_have_count(1000)
    taken = page.evaluate("""async () => {
      const chats = await tune2chat.store.list(), panel = document.querySelector('#root .panel');
      const { grouped, section } = tune2chat.rows, taken = [];
      for (let n = 0; n < 5; n++) {
        panel.replaceChildren();
        panel.getBoundingClientRect();
        const before = performance.now();
        panel.replaceChildren(...[...grouped(chats, '')].map((group) => section(group, '')));
        panel.getBoundingClientRect();
        taken.push(performance.now() - before);
      }
      return taken;
    }""")
    assert min(taken) < 100, taken
    page.evaluate("list.current('c900')")
    expect(page.locator("#root [aria-current]")).to_be_in_viewport()
