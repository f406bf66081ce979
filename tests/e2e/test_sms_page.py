"""The page /sms in a real browser: features, a likelihood with its calibration, the words that moved it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Page, expect

from chat.sms_page import CALIBRATION
from tests.e2e.person import WAIT_MS
from tests.e2e.serve import App

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SLOW_MS = 4 * WAIT_MS  # a dozen prompts, on a busy machine
MEASURED = {
    **{"synthetic": True, "model": "Small", "rows": 40, "slope": 0.0, "intercept": 0.0},
    "bins": [[0.42, 0.375, 40]],
}


@pytest.fixture(scope="module")
def sms_app(tmp_path_factory: pytest.TempPathFactory, embedded_model: Path) -> Iterator[App]:
    entry = {"sources": [{"path": str(embedded_model)}], "n_ctx": 512}
    app = App(tmp_path_factory.mktemp("sms"), "in-process", {"Small": entry})
    yield app
    app.stop()


@pytest.fixture
def sms_page(browser: Browser, sms_app: App) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    trouble: list[str] = []
    page.on("dialog", lambda dialog: trouble.append(dialog.message))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.goto(f"{sms_app.url}/sms")
    expect(page.get_by_role("heading", name="Will this message sell?")).to_be_visible(timeout=WAIT_MS)
    yield page
    context.close()
    assert not trouble, trouble


def judge(page: Page, message: str) -> None:
    page.get_by_label("Message", exact=True).fill(message)
    page.get_by_role("button", name="Judge").click()


def row(page: Page, name: str) -> str:
    return (
        page.locator("#judged tr")
        .filter(has=page.get_by_role("rowheader", name=name, exact=True))
        .inner_text()
    )


def test_a_message_is_judged_and_its_calibration_shown_once_it_was_measured(
    sms_page: Page, sms_app: App
) -> None:
    page = sms_page
    expect(page.get_by_text("synthetic", exact=True)).to_be_visible()
    message = "Lumovi: 20% off <img src=x onerror=alert(1)> tea!"
    judge(page, message)
    expect(page.get_by_text("all of them")).to_be_visible(timeout=SLOW_MS)
    assert row(page, "discount").split() == ["discount", "percent"]
    assert row(page, "size").split() == ["size", "20"]
    assert row(page, "characters").split() == ["characters", str(len(message))]
    assert "%" in row(page, "as the model says it")
    assert not page.locator("#judged img").count()
    words = page.get_by_role("group", name="What each word adds").get_by_role("rowheader")
    assert words.all_inner_texts() == message.split()
    expect(page.get_by_text("isn't calibrated: nothing was measured here yet")).to_be_visible()
    path = sms_app.folder / CALIBRATION
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(MEASURED))
    judge(page, "Come and see.")
    expect(page.get_by_text("on 40 synthetic messages")).to_be_visible(timeout=SLOW_MS)
    assert row(page, "calibrated").split() == ["calibrated", "50.0%"]
    assert row(page, "42%").split() == ["42%", "38%", "40"]
    expect(page.get_by_text("all of them")).to_be_visible(timeout=SLOW_MS)  # until then a click does nothing
    path.write_text(json.dumps(MEASURED | {"model": "Another"}))
    judge(page, "Come again.")
    expect(page.get_by_text("the calibration of Another, not of Small")).to_be_visible(timeout=SLOW_MS)


def test_the_model_is_asked_of_what_the_rules_are_unsure(sms_page: Page) -> None:
    judge(sms_page, "Delivery is on us.")
    expect(sms_page.get_by_text("all of them")).to_be_visible(timeout=SLOW_MS)
    by_model = sms_page.locator("#judged tr").filter(has_text="the model's word, as the rules are unsure")
    assert by_model.get_by_role("rowheader").all_inner_texts() == ["discount", "size"]
    assert len(row(sms_page, "deadline").split()) == 2


def test_no_message_is_said_in_a_sentence(sms_page: Page) -> None:
    judge(sms_page, "   ")
    expect(sms_page.get_by_text("Write a message of 1 to 1,000 characters")).to_be_visible()
