"""The model menu, and what a context can't hold."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.e2e.person import WAIT_MS, Person

pytestmark = pytest.mark.parametrize("app", ["llama-server"], indirect=True)


def test_the_menu_says_what_fits_and_broken_entries_are_shown_with_their_reason(person: Person) -> None:
    person.menu.click()
    options = person.page.get_by_role("option")
    expect(options).to_have_count(2)
    expect(options.first).to_contain_text(re.compile(r"Small · [\d.]+ MB · fits · on this disk"))
    person.page.keyboard.press("Escape")
    person.unfold("Left out of the menu: 2")
    broken = person.page.locator("#broken")
    expect(broken).to_contain_text("no-such-file.gguf")
    expect(broken).to_contain_text("did you mean 'n_ctx'?")


def test_another_model_goes_on_with_the_chat_and_brings_its_settings(person: Person) -> None:
    person.set("Max tokens", 4)
    person.send("Say hello.")
    person.choose("Tiny")
    expect(person.page.get_by_label("System message")).to_have_value("Be brief.")
    expect(person.questions).to_have_text(["Say hello."])
    person.set("Max tokens", 4)
    person.send("Again.")
    expect(person.page.locator("#gauge")).to_contain_text("of 512 tokens")
    expect(person.replies).to_have_count(2)
    person.choose("Small")


def test_turns_that_no_longer_fit_drop_out_and_the_page_marks_where(person: Person) -> None:
    person.choose("Tiny")
    person.set("Max tokens", 4)
    for number in range(3):
        person.send(f"Message {number}: " + "one two three four five " * 35)
    note = person.page.locator("#chat").get_by_text(re.compile(r"\d messages left out"))
    expect(note).to_have_count(1)
    assert person.prompt_tokens() < 512
    expect(person.questions).to_have_count(3)
    person.reload()
    expect(note).to_have_count(1, timeout=WAIT_MS)
    person.choose("Small")
    expect(note).to_have_count(0)  # all of the chat fits again


def test_a_message_larger_than_the_context_is_refused_with_both_numbers(person: Person) -> None:
    person.choose("Tiny")
    text = "one two three " * 300
    person.begin(text)
    alert = person.status.get_by_role("alert")
    expect(alert).to_contain_text(re.compile(r"has [\d,]+ tokens .* context is 512"), timeout=WAIT_MS)
    expect(person.box).to_have_value(text)
    expect(person.questions).to_have_count(0)
    person.begin("x" * 1_000_000)
    expect(alert).to_contain_text("1,000,000 bytes", timeout=WAIT_MS)
    expect(person.button("Send")).to_be_visible()
    person.choose("Small")


def test_an_empty_message_is_refused_and_nothing_is_sent(person: Person) -> None:
    person.box.fill("  ")
    person.box.press("Enter")
    expect(person.status.get_by_role("alert")).to_contain_text("empty", timeout=WAIT_MS)
    expect(person.questions).to_have_count(0)
