"""What a person does on the page, and sees there."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Error, Locator, Page, expect

WAIT_MS = 120_000  # a reply on a machine that does other things too
ENDED = re.compile(r"seed \d+")
# The status has changed and names a seed, and the chat, which is drawn a moment later, no longer changes.
ENDED_ANEW = """(before) => {
  const now = document.querySelector('#status').innerText;
  const chat = document.querySelector('#talk').innerText;
  if (window.seen !== chat) [window.seen, window.since] = [chat, Date.now()];
  return now !== before && /seed \\d+/.test(now) && Date.now() - window.since > 400;
}"""


class Person:
    """One browser tab with the chat in it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.trouble: list[str] = []
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: self.trouble.append(str(error)))
        page.on("console", self._listen)
        self.menu = page.get_by_role("combobox", name="Model")
        self.box = page.locator("#box textarea")
        self.status = page.locator("#status")
        self.questions = page.locator("#chat .user .message-content")
        self.replies = page.locator("#talk .bot .message-content")
        self.chats = page.locator("#chats li")
        self.open()

    def _listen(self, message: Any) -> None:
        if message.type == "error":
            self.trouble.append(message.text)

    def open(self) -> None:
        self.page.goto(self.url)
        self._loaded()

    def reload(self) -> None:
        try:
            self.page.reload()
        except Error as error:  # the page, which has noticed that its app is another, loads itself meanwhile
            if "ERR_ABORTED" not in str(error):
                raise
            self.page.wait_for_load_state()
            self.page.reload()
        self.trouble.clear()  # requests of the page before, which were cut off
        self._loaded()

    def _loaded(self) -> None:
        """Wait until the page's scripts know which chat this tab shows."""
        expect(self.page.locator("body")).to_have_attribute("data-ready", re.compile("."), timeout=WAIT_MS)

    def button(self, name: str) -> Locator:
        """Find a button of the page that has this name, outside the messages."""
        parts = self.page.locator("#chats, #right, #votes, #box").get_by_role("button", name=name, exact=True)
        return parts.or_(self.page.locator("#continue, #redo").get_by_text(name, exact=True)).first

    def unfold(self, name: str) -> None:
        """Open the settings, and the part of them that has this name."""
        if "open" not in (self.page.locator("#right").get_attribute("class") or ""):
            self.page.locator("#right .toggle-button").click()
        self.page.locator("#right").get_by_role("button", name=name).click()

    def icon(self, name: str) -> Locator:
        """Find the last of the small buttons in the chat that have this name."""
        return self.page.locator("#chat").get_by_role("button", name=name, exact=True).last

    def set(self, name: str, value: float) -> None:
        if "open" not in (self.page.locator("#right").get_attribute("class") or ""):
            self.page.locator("#right .toggle-button").click()
        field = self.page.get_by_label(f"number input for {name}")
        field.fill(str(value))
        field.press("Tab")

    def choose(self, model: str) -> None:
        self.menu.click()
        self.page.get_by_role("option", name=re.compile(rf"^\W*{model} ")).click()
        expect(self.status).to_contain_text(f"{model} is ready", timeout=WAIT_MS)

    def begin(self, text: str) -> None:
        """Send `text`, and don't wait for the reply."""
        self.box.fill(text)
        self.button("Send").click()

    def send(self, text: str) -> str:
        """Send `text` and return the reply."""
        return self.whole_turn(lambda: self.begin(text))

    def whole_turn(self, act: Callable[[], None]) -> str:
        """Do what starts a reply, wait until it is complete, and return it."""
        before = self.status.inner_text()
        act()
        # The seed is another one for each reply, so no two of them end with the same words.
        self.page.wait_for_function(ENDED_ANEW, arg=before)
        expect(self.button("Send")).to_be_visible(timeout=WAIT_MS)
        return self.replies.last.inner_text()

    def ended(self) -> None:
        expect(self.status).to_have_text(ENDED, timeout=WAIT_MS)
        expect(self.button("Send")).to_be_visible(timeout=WAIT_MS)

    def stop_when(self, text: str) -> None:
        """Press Stop as soon as the status has `text`."""
        expect(self.status).to_contain_text(text, timeout=WAIT_MS)
        self.stop()

    def stop(self) -> None:
        # Forced: the check that nothing moves takes longer than the reply on a busy machine.
        self.button("Stop").click(force=True)

    def prompt_tokens(self) -> int:
        """Read from the status how long the last prompt was."""
        found = re.search(r"prompt ([\d,]+) token", self.status.inner_text())
        assert found, self.status.inner_text()
        return int(found[1].replace(",", ""))
