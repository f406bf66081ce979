"""The app is killed at any moment: what the page said was kept is there, and a reply but for its end."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from chat.page_html import WINDOW
from tests.e2e.person import ENDED, WAIT_MS, Person
from tests.e2e.serve import App, models

SHOWN = WINDOW // 4  # of these questions at least: each has a reply, and beside it a story with its question
KILLS = 30 if os.environ.get("TUNE2CHAT_TEST_ALL") == "1" else 4


@pytest.fixture
def own(tmp_path: Path, embedded_model: Path) -> Iterator[App]:
    app = App(tmp_path, "in-process", models(embedded_model))
    yield app
    app.stop()


def test_no_turn_that_was_kept_is_lost_when_the_app_is_killed(browser: Browser, own: App) -> None:
    draw = random.Random(5)
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    person = Person(context.new_page(), own.url)
    kept: list[str] = []
    for number in range(KILLS):
        person.set("Max tokens", 6)
        person.send(f"Question {number}.")
        expect(person.page.locator("#status[data-kept]")).to_have_count(1, timeout=WAIT_MS)
        kept.append(f"Question {number}.")
        person.set("Max tokens", 2000)
        before = person.replies.count()
        person.begin(f"Write a long story about a lighthouse keeper and the sea, in {number + 9} chapters.")
        expect(person.status).to_contain_text(re.compile(r"Writing|seed"), timeout=WAIT_MS)
        time.sleep(draw.uniform(0, 4))
        begun = person.replies.count() > before and not ENDED.search(person.status.inner_text())
        written = person.replies.last.inner_text() if begun else ""
        time.sleep(2.5 if written else 0)  # what was there two seconds ago is kept
        own.process.kill()
        own.process.wait(30)
        own.log.close()
        own.start()
        person.reload()
        asked = person.questions.filter(has_text="Question")
        expect(asked.last).to_have_text(kept[-1], timeout=WAIT_MS)
        shown = [text.strip() for text in asked.all_inner_texts()]
        assert shown == kept[-len(shown) :]
        assert len(shown) >= min(SHOWN, len(kept))
        assert person.replies.last.inner_text().startswith(written[:20])
    context.close()


def test_a_page_that_outlived_its_app_opens_its_chat_again(browser: Browser, own: App) -> None:
    person = Person(browser.new_context(viewport={"width": 1280, "height": 800}).new_page(), own.url)
    person.set("Max tokens", 6)
    person.send("First.")
    own.process.kill()
    own.process.wait(30)
    own.log.close()
    own.start()
    person.page.wait_for_timeout(3000)
    person.begin("Second.")
    expect(person.status).to_contain_text("started again", timeout=WAIT_MS)
    expect(person.questions).to_have_text(["First."], timeout=WAIT_MS)
    person.send("Third.")
    expect(person.questions).to_have_text(["First.", "Third."], timeout=WAIT_MS)
    person.page.context.close()
