"""A chat's model gives it a title after its first turn: for visitors, and for people who signed in."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.person import WAIT_MS, Person
from tests.e2e.serve import App, models
from tests.e2e.test_signing_in import sign_in
from tests.integration.scripted_gguf import scripted

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


@pytest.mark.parametrize("auth", [(), ("--auth", "anna:a1")], ids=["visitor", "signed in"])
def test_a_chat_gets_a_title_which_a_person_may_change(
    request: pytest.FixtureRequest,
    auth: tuple[str, ...],
    browser: Browser,
    embedded_model: Path,
    tmp_path: Path,
) -> None:
    file = tmp_path / "scripted.gguf"
    scripted(embedded_model, file, ["Title", ":", " Water", " in", " winter"], TEMPLATE, [])
    app = App(tmp_path, "in-process", models(file), "--titles", "on", *auth)
    request.addfinalizer(app.stop)
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    person = sign_in(page, app, "anna", "a1") if auth else Person(page, app.url)
    person.send("What do whales do?")
    expect(person.chats).to_have_text(["Water in winter⋯"], timeout=WAIT_MS)
    person.chats.get_by_role("button", name="Water in winter", exact=True).focus()
    page.keyboard.press("F2")
    page.keyboard.type("Mine")
    page.keyboard.press("Enter")
    expect(person.chats).to_have_text(["Mine⋯"], timeout=WAIT_MS)
    person.send("And in summer?")
    person.reload()
    expect(person.questions).to_have_count(2, timeout=WAIT_MS)
    expect(person.chats).to_have_text(["Mine⋯"])
    assert not person.trouble
    page.context.close()
