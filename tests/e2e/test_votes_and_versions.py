"""What stands at a message, its votes and versions, by mouse and by keyboard."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.e2e.person import WAIT_MS, Person
from tests.e2e.store import put_chat

pytestmark = pytest.mark.parametrize("app", ["llama-server"], indirect=True)

VOTES = """async () => {
  const [chat] = (await window.tune2chat.store.list()).filter(({ title }) => title === 'first');
  return (await window.tune2chat.store.read(chat.id)).messages.map(({ vote }) => vote);
}"""


def say(person: Person, text: str) -> None:
    put_chat(person, [{"role": "user", "content": text}, {"role": "assistant", "content": f"Re: {text}"}])
    expect(person.replies).to_have_text([f"Re: {text}"], timeout=WAIT_MS)


def test_a_vote_is_seen_at_its_reply_and_at_no_other(person: Person) -> None:
    say(person, "second")
    say(person, "first")
    good, bad = person.icon("Good reply"), person.icon("Bad reply")
    expect(person.page.get_by_role("button", name="Good reply")).to_have_count(1)
    good.click()
    expect(good).to_have_attribute("aria-pressed", "true", timeout=WAIT_MS)
    person.chats.get_by_role("button", name="second", exact=True).click()
    expect(person.replies).to_have_text(["Re: second"], timeout=WAIT_MS)
    expect(good).to_have_attribute("aria-pressed", "false", timeout=WAIT_MS)
    person.chats.get_by_role("button", name="first", exact=True).click()
    expect(good).to_have_attribute("aria-pressed", "true", timeout=WAIT_MS)
    person.reload()
    expect(good).to_have_attribute("aria-pressed", "true", timeout=WAIT_MS)
    bad.focus()
    person.page.keyboard.press("Enter")
    expect(bad).to_have_attribute("aria-pressed", "true", timeout=WAIT_MS)
    expect(good).to_have_attribute("aria-pressed", "false")
    expect(bad).to_be_focused()
    assert person.page.evaluate(VOTES) == [0, -1]
    person.page.keyboard.press("Enter")
    expect(bad).to_have_attribute("aria-pressed", "false", timeout=WAIT_MS)
    assert person.page.evaluate(VOTES) == [0, 0]


def test_versions_are_gone_through_by_keyboard(person: Person) -> None:
    person.set("Max tokens", 4)
    person.send("Name a fish.")
    for _ in range(2):
        person.whole_turn(person.icon("Retry").click)
    place = person.page.locator("#chat .more span").last
    expect(place).to_have_text("3/3", timeout=WAIT_MS)
    person.icon("Version before").focus()
    for text in ("2/3", "1/3"):
        person.page.keyboard.press("Enter")
        expect(place).to_have_text(text, timeout=WAIT_MS)
    expect(person.icon("Version after")).to_be_focused()
    person.page.keyboard.press("Enter")
    expect(place).to_have_text("2/3", timeout=WAIT_MS)
    expect(person.icon("Version after")).to_be_focused()
