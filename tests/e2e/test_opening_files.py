"""Files of chats that are opened on the page, whole exports of other programs among them, and text files."""

from __future__ import annotations

import io
import json
import re
import zipfile
from base64 import b64encode
from random import Random
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.person import WAIT_MS, Person
from tests.e2e.serve import App
from tests.e2e.store import put_chat

pytestmark = pytest.mark.parametrize("app", ["llama-server"], indirect=True)

DROP = """([where, ...files]) => {
  const data = new DataTransfer();
  for (const [name, bytes] of files) data.items.add(new File([new Uint8Array(bytes)], name));
  const target = document.querySelector(where);
  target.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }));
}"""
LISTED = "window.tune2chat.store.list()"
SEARCH = "(text) => window.tune2chat.store.search(text)"


def of_chatgpt(number: int, text: str) -> dict[str, Any]:
    """A chat as ChatGPT exports it."""
    said = {"q": ("root", "user", f"question {number}"), "a": ("q", "assistant", text)}
    mapping: dict[str, Any] = {"root": {"id": "root", "parent": None, "message": None, "children": ["q"]}}
    for name, (parent, role, words) in said.items():
        content = {"content_type": "text", "parts": [words]}
        message = {"id": name, "author": {"role": role}, "content": content, "metadata": {}}
        mapping[name] = {"id": name, "parent": parent, "message": message, "children": []}
    return {"title": f'Chat "{number}" [{{', "mapping": mapping, "current_node": "a", "create_time": number}


def export(count: int, size: int) -> list[Any]:
    """Chats of `size` characters each, in which brackets and quotes are told from those of JSON."""
    return [of_chatgpt(n, (f'\\"]}}{{[ {n} ' * size)[:size] + f" end{n}.") for n in range(count)]


def upload(person: Person, name: str, data: bytes) -> None:
    if not person.button("Open a file").is_visible():
        person.unfold("Save and open")
    with person.page.expect_file_chooser() as opened:
        person.button("Open a file").click()
    opened.value.set_files({"name": name, "mimeType": "application/octet-stream", "buffer": data})


def drop(person: Person, where: str, *files: tuple[str, bytes]) -> None:
    person.page.evaluate(DROP, [where, *([name, list(data)] for name, data in files)])


def test_an_export_of_many_megabytes_comes_in_piece_by_piece(person: Person) -> None:
    chats: list[Any] = export(160, 80_000)
    chats.insert(80, of_chatgpt(999, "x" * 6_000_000))
    chats.insert(80, {"mapping": 3})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("picture.png", bytes(100_000))
        archive.writestr("conversations.json", json.dumps(chats, indent=1))
        archive.writestr("user.json", "{}")
    upload(person, "export.zip", packed.getvalue())
    expect(person.status).to_contain_text("160 chats came in", timeout=WAIT_MS)
    expect(person.status).to_contain_text("chats of more than 5.5 MB left out (1)")
    expect(person.status).to_contain_text("entries of a kind that isn't known here (1)")
    expect(person.questions).to_have_text(["question 0"])
    listed = person.page.evaluate(LISTED)
    assert sorted(chat["made"] for chat in listed) == list(range(160))
    assert len(person.page.evaluate(SEARCH, "end159.")) == 1


def test_a_chat_in_lines_stays_whole_where_a_piece_ends(person: Person) -> None:
    lines: list[dict[str, Any]] = []
    for chat in range(3):
        lines.append({"type": "session", "harness": "llama.cpp", "id": f"c{chat}", "name": f"Chat {chat}"})
        for number in range(10):
            about: dict[str, Any] = {
                "id": f"{chat}-{number}",
                "parent": f"{chat}-{number - 1}" if number else None,
            }
            role = "assistant" if number % 2 else "user"
            message = about | {"role": role, "content": "word " * 50_000}
            lines.append({"type": "message", "message": message})
    upload(person, "llama.jsonl", "\n".join(map(json.dumps, lines)).encode())
    expect(person.status).to_have_text("3 chats came in.", timeout=WAIT_MS)
    assert [chat["messages"] for chat in person.page.evaluate(LISTED)] == [10, 10, 10]


SAID = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "word " * 1_200_000}]
MANY = json.dumps(export(80, 80_000)).encode()


def test_what_can_not_come_in_says_why_and_what_came(person: Person) -> None:
    told = person.page.locator("#kept")
    upload(person, "one.json", json.dumps(SAID).encode())
    expect(told).to_contain_text("one.json: Of one chat at most 5.5 MB are taken", timeout=WAIT_MS)
    upload(person, "large.json", json.dumps([{"messages": SAID}]).encode())
    expect(told).to_contain_text("large.json: Of one chat at most 5.5 MB are taken", timeout=WAIT_MS)
    upload(person, "cut.json", MANY[: len(MANY) * 9 // 10])
    expect(told).to_contain_text(re.compile(r"ends in the middle of a chat\. \d\d chats of it came in"))
    for data in (b"PK\x03\x04" + bytes(99), packed_one()[:-30]):
        upload(person, "broken.zip", data)
        expect(told).to_contain_text("broken.zip: This ZIP file is damaged", timeout=WAIT_MS)
    upload(person, "other.zip", packed_one("notes.txt"))
    expect(told).to_contain_text("no conversations.json")
    upload(person, "none.json", b"{}")
    expect(person.status.get_by_role("alert")).to_contain_text("No chat could be read", timeout=WAIT_MS)
    expect(told).to_be_hidden()


def packed_one(name: str = "conversations.json") -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, MANY)
    return packed.getvalue()


def test_where_the_browser_is_full_it_says_so_and_keeps_what_came(browser: Browser, app: App) -> None:
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    limit = page.context.new_cdp_session(page)
    limit.send("Storage.overrideQuotaForOrigin", {"origin": app.url, "quotaSize": 3_500_000})
    person = Person(page, app.url)
    noise = [of_chatgpt(n, b64encode(Random(n).randbytes(60_000)).decode()) for n in range(80)]
    upload(person, "export.json", json.dumps(noise).encode())
    told = page.locator("#kept")
    expect(told).to_contain_text(re.compile(r"no room left.* \d+ chats of it came in"), timeout=WAIT_MS)
    assert 0 < len(page.evaluate(LISTED)) < 80
    page.context.close()


def test_a_chat_too_large_to_be_opened_stays_and_says_so(person: Person) -> None:
    put_chat(person, [{"role": "user", "content": "word " * 1_700_000}])
    told = person.page.locator("#kept")
    expect(told).to_contain_text("more than can be opened", timeout=WAIT_MS)
    person.set("Max tokens", 4)
    person.send("And now?")
    person.chats.last.locator(".title").click()
    expect(told).to_contain_text("more than can be opened")
    expect(person.chats).to_have_count(2)


def test_text_of_any_encoding_is_taken_wherever_it_is_dropped(person: Person) -> None:
    told = person.page.locator("#kept")
    drop(person, "#talk", ("wide.txt", "Grüße".encode("utf-16")), ("<b>.txt", b""))
    expect(person.status).to_contain_text("The message has", timeout=WAIT_MS)
    assert person.box.input_value() == "wide.txt:\n```\nGrüße\n```\n<b>.txt:\n```\n\n```\n"
    before = person.box.input_value()
    bad = [(f"{n}.bin", b"\x00\xff") for n in range(5)]
    drop(person, "#box", *bad, ("large.txt", b"x" * 1_000_000), ("last.txt", b"last"))
    expect(told).to_contain_text("0.bin is not a text file.", timeout=WAIT_MS)
    expect(told).to_contain_text("And 3 more.")
    assert person.box.input_value() == f"{before}last.txt:\n```\nlast\n```\n"
    person.box.press("End")
    person.box.press_sequentially("x")
    expect(told).to_be_hidden()
