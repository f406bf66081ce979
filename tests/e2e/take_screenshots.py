"""Takes the README's pictures from the real app: python -m tests.e2e.take_screenshots"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, expect, sync_playwright

from tests.e2e.person import Person
from tests.e2e.serve import ROOT, App

QUESTION = "Write a Python function that reverses a string, and show how to call it."
PICTURES = {
    "light": {"viewport": {"width": 1200, "height": 760}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1200, "height": 760}, "color_scheme": "dark"},
    "narrow": {"viewport": {"width": 360, "height": 720}, "color_scheme": "light"},
}


def take(browser: Browser, app: App, name: str) -> None:
    person = Person(browser.new_page(**PICTURES[name]), app.url)
    person.send(QUESTION)
    expect(person.page.locator("#chat pre")).to_be_visible()
    person.page.mouse.move(0, 0)
    person.page.screenshot(path=ROOT / "docs" / "images" / f"chat-{name}.png", animations="disabled")
    person.page.close()


def main() -> None:
    entries = json.loads((ROOT / "models.json").read_text())
    for entry in entries.values():
        entry["sampling"] = {"temperature": 0.0, "max_tokens": 300, "seed": 1}
    (ROOT / "docs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        app = App(Path(folder), "auto", entries)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for name in PICTURES:
            take(browser, app, name)
        browser.close()
        app.stop()


if __name__ == "__main__":
    main()
