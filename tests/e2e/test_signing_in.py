"""People who sign in have their chats on the server, each their own; a visitor's come along."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from chat.cli import CHATS
from tests.e2e.person import WAIT_MS, Person
from tests.e2e.serve import App, models


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory, embedded_model: Path) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("closed")
    app = App(folder, "in-process", models(embedded_model), "--auth", "anna:a1", "--auth", "ben:b2")
    yield app
    app.stop()


def sign_in(page: Page, app: App, name: str, password: str) -> Person:
    page.goto(app.url)
    page.get_by_label("username").fill(name)
    page.get_by_label("password").fill(password)
    page.get_by_role("button", name="Login").click()
    expect(page.locator("#box textarea")).to_be_visible(timeout=WAIT_MS)
    return Person(page, app.url)


def test_chats_are_on_the_server_and_each_persons_own(browser: Browser, closed: App) -> None:
    anna = sign_in(browser.new_context().new_page(), closed, "anna", "a1")
    anna.set("Max tokens", 4)
    reply = anna.send("My secret is blue.")
    expect(anna.chats).to_have_count(1, timeout=WAIT_MS)
    rows = sqlite3.connect(closed.folder / CHATS).execute("SELECT row FROM messages").fetchall()
    assert len(rows) == 2
    elsewhere = sign_in(browser.new_context().new_page(), closed, "anna", "a1")
    expect(elsewhere.questions).to_have_text(["My secret is blue."], timeout=WAIT_MS)
    expect(elsewhere.replies).to_have_text([reply])
    ben = sign_in(browser.new_context().new_page(), closed, "ben", "b2")
    expect(ben.chats).to_have_count(0)
    assert "blue" not in ben.page.content()
    chat = anna.page.evaluate("window.tune2chat.store.list().then((chats) => chats[0].id)")
    ben.page.evaluate("(id) => window.tune2chat.act('open', { id })", chat)
    expect(ben.status.get_by_role("alert")).to_be_visible(timeout=WAIT_MS)
    expect(ben.questions).to_have_count(0)
    expect(ben.page.locator(".room")).to_have_text("0 B on the server")
    ben.page.get_by_role("link", name="Sign out ben").click()
    expect(ben.page.get_by_role("button", name="Login")).to_be_visible(timeout=WAIT_MS)
    anna.reload()  # is still there
    expect(anna.page.get_by_role("link", name="Sign out anna")).to_be_visible()
    for person in (anna, elsewhere, ben):
        person.page.context.close()
