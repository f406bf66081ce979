"""What the page looks like, and what it is for keys, screen readers and other programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.person import WAIT_MS, Person
from tests.e2e.serve import App
from tests.e2e.store import put_chat

pytestmark = pytest.mark.parametrize("app", ["llama-server"], indirect=True)

HOSTILE = "<|im_end|> <b>x</b> <script>window.ran=1</script> <img src=x onerror='window.ran=1'> &lt; </s>"
RICH = "**bold** and `a<b`\n\n```python\nprint('<i>')\n```\n\n$$x^2$$"
UNNAMED = """() => [...document.querySelectorAll('button, input, textarea, [role=option], [role=slider]')]
  .filter((e) => e.getClientRects().length)
  .filter((e) => !(e.ariaLabel || e.innerText.trim() || e.title || [...(e.labels ?? [])].some(
    (label) => label.innerText.trim())))
  .map((e) => e.outerHTML.slice(0, 200))"""


def test_html_and_control_tokens_are_seen_as_they_were_typed_and_nothing_runs(person: Person) -> None:
    put_chat(person, [message("user", HOSTILE), message("assistant", HOSTILE)])
    for shown in (person.questions, person.replies):
        expect(shown).to_have_count(1, timeout=WAIT_MS)
        assert shown.inner_text().replace("\u2060", "").strip() == HOSTILE
    assert person.page.evaluate("window.ran") is None


def test_a_copied_message_has_no_invisible_characters(person: Person) -> None:
    person.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    put_chat(person, [message("user", HOSTILE), message("assistant", "Yes.")])
    expect(person.questions).to_have_count(1, timeout=WAIT_MS)
    person.page.get_by_role("button", name="Copy message").first.click()
    person.page.wait_for_function(
        "(text) => navigator.clipboard.readText().then((copied) => copied === text)", arg=HOSTILE
    )


def test_markdown_code_and_formulas_are_drawn_and_thinking_folds(person: Person) -> None:
    reply = f"<think>Hidden at first.</think>{RICH}"
    put_chat(person, [message("user", "Think."), message("assistant", reply)])
    chat = person.page.locator("#chat")
    expect(chat.locator("strong")).to_have_text("bold", timeout=WAIT_MS)
    expect(chat.locator("pre")).to_contain_text("print('<i>')")
    expect(chat.locator("code").first).to_have_text("a<b")
    expect(chat.locator(".copy_code_button")).to_have_count(1)
    expect(chat.locator(".katex").first).to_be_visible()
    thought = chat.get_by_text("Hidden at first.")
    expect(thought).not_to_be_visible()
    chat.get_by_text("Thought").click()
    expect(thought).to_be_visible()


def test_a_chat_survives_a_restart_of_the_app(person: Person, app: App) -> None:
    person.set("Max tokens", 4)
    reply = person.send("Say hello.")
    app.stop()
    app.start()
    person.open()
    expect(person.replies).to_have_text([reply], timeout=WAIT_MS)
    person.trouble.clear()  # the connection that broke


def test_the_keyboard_alone_sends_and_retries(person: Person) -> None:
    person.set("Max tokens", 4)
    person.box.focus()
    keys = person.page.keyboard
    keys.type("Say")
    keys.press("Shift+Enter")
    keys.type("hello.")
    person.whole_turn(lambda: keys.press("Enter"))
    assert person.questions.inner_text().split() == ["Say", "hello."]
    focused = "document.activeElement.ariaLabel"
    person.box.focus()
    for _ in range(30):
        keys.press("Shift+Tab")
        if person.page.evaluate(focused) == "Retry":
            break
    person.whole_turn(lambda: keys.press("Enter"))
    assert person.replies.count() == 1


def test_every_control_has_a_name_and_only_the_status_is_announced(person: Person) -> None:
    put_chat(person, [message("user", "Hi."), message("assistant", "Hello.")])
    expect(person.replies).to_have_count(1, timeout=WAIT_MS)
    assert person.page.evaluate(UNNAMED) == []
    expect(person.status).to_have_attribute("aria-live", "polite")
    expect(person.page.locator("#chat [role=log]")).to_have_attribute("aria-live", "off")
    person.set("Max tokens", 2000)
    person.begin("Write a long story about a lighthouse keeper and the sea.")
    expect(person.status.locator("[aria-hidden=true]")).to_contain_text("Writing", timeout=WAIT_MS)
    assert person.page.evaluate(UNNAMED) == []
    person.stop()
    person.ended()
    expect(person.status.locator("[aria-hidden]")).to_have_count(0)


def test_a_narrow_window_holds_everything(browser: Browser, app: App, tmp_path: Path) -> None:
    person = Person(browser.new_page(viewport={"width": 360, "height": 640}), app.url)
    put_chat(person, [message("user", "Hi. " * 200), message("assistant", RICH)])
    expect(person.replies).to_have_count(1, timeout=WAIT_MS)
    for locator in (person.box, person.button("Send"), person.menu):
        expect(locator).to_be_in_viewport(ratio=1)
    width, height = person.page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    )
    assert (width, height) == (360, 640)
    assert len(person.page.screenshot(path=tmp_path / "narrow.png")) > 5_000
    assert not person.trouble
    person.page.close()


def test_the_page_follows_the_systems_dark_mode_and_remembers_a_choice(browser: Browser, app: App) -> None:
    person = Person(browser.new_page(color_scheme="dark"), app.url)
    body = person.page.locator("body")
    expect(body).to_have_class("dark")
    person.set("Max tokens", 4)  # opens the settings
    person.page.get_by_role("button", name="Dark / light").click()
    expect(body).not_to_have_class("dark")
    person.reload()
    expect(body).not_to_have_class("dark")
    person.page.close()


def test_the_chat_is_saved_as_markdown_and_as_json(person: Person) -> None:
    put_chat(
        person,
        [message("user", HOSTILE), message("assistant", RICH)],
        model="Small",
        system_prompt="Be kind.",
    )
    expect(person.replies).to_have_count(1, timeout=WAIT_MS)
    person.unfold("Save and open")
    saved = download(person, person.button("Save as JSON").click, "chat.json")
    text = download(person, person.button("Save as Markdown").click, "chat.md")
    assert (
        text == f"# Chat with Small\n\n## System\n\nBe kind.\n\n## You\n\n{HOSTILE}\n\n## Small\n\n{RICH}\n"
    )

    person.button("New chat").click()
    expect(person.questions).to_have_count(0, timeout=WAIT_MS)
    upload(person, saved)
    expect(person.questions).to_have_count(1, timeout=WAIT_MS)
    assert json.loads(download(person, person.button("Save as JSON").click, "chat.json")) == json.loads(saved)
    upload(person, '{"messages": "none"}')
    expect(person.status.get_by_role("alert")).to_contain_text("No chat could be read", timeout=WAIT_MS)
    expect(person.questions).to_have_count(1)
    person.reload()
    expect(person.questions).to_contain_text("window.ran=1", timeout=WAIT_MS)


def test_a_chat_that_was_renamed_is_saved_under_its_new_name(person: Person) -> None:
    put_chat(person, [message("user", "Old name?"), message("assistant", "Yes.")])
    expect(person.chats).to_have_count(1, timeout=WAIT_MS)
    person.chats.get_by_role("button", name="Old name?", exact=True).focus()
    person.page.keyboard.press("F2")
    person.page.keyboard.type("New name")
    person.page.keyboard.press("Enter")
    expect(person.chats).to_contain_text("New name", timeout=WAIT_MS)
    person.unfold("Save and open")
    saved = json.loads(download(person, person.button("Save as JSON").click, "chat.json"))
    assert saved["chats"][0]["chat"]["title"] == "New name"


def test_hebrew_and_arabic_run_from_the_right_and_code_does_not(person: Person) -> None:
    hebrew, arabic = "\u05e9\u05dc\u05d5\u05dd, OK", "\u0645\u0631\u062d\u0628\u0627"
    table, code = f"|{hebrew}|b|\n|-|-|\n|1|2|", "```\nx = 1\n```"
    reply = f"<think>{arabic}</think>{hebrew}\n\nEnglish.\n\n- {arabic}\n\n{table}\n\n{code}"
    put_chat(person, [message("user", hebrew), message("assistant", reply)])
    chat, direction = person.page.locator("#chat"), "(e) => getComputedStyle(e).direction"
    expect(chat.locator("pre")).to_have_count(1, timeout=WAIT_MS)
    chat.get_by_text("Thought").click()
    for text, count, way in ((hebrew, 3, "rtl"), (arabic, 2, "rtl"), ("English.", 1, "ltr")):
        expect(chat.get_by_text(text, exact=True)).to_have_count(count)
        for found in chat.get_by_text(text, exact=True).all():
            assert found.evaluate(direction) == way, text
    for part, way in (("ul", "rtl"), ("table", "rtl"), ("pre", "ltr")):
        assert chat.locator(part).evaluate(direction) == way, part
    for text, way in ((hebrew, "rtl"), ("English", "ltr")):
        person.box.fill(text)
        assert person.box.evaluate(direction) == way


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def upload(person: Person, text: str) -> None:
    with person.page.expect_file_chooser() as opened:
        person.button("Open a file").click()
    opened.value.set_files({"name": "chat.json", "mimeType": "application/json", "buffer": text.encode()})


def download(person: Person, act: Callable[[], None], name: str) -> str:
    with person.page.expect_download() as started:
        act()
    assert started.value.suggested_filename == name
    return Path(started.value.path()).read_text(encoding="utf-8")
