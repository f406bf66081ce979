"""Two replies compared, replies held to a schema, files in the box, long chats, a model in the address."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from chat.formats import read_chats
from tests.e2e.person import WAIT_MS, Person
from tests.e2e.serve import App
from tests.e2e.store import put_chat
from tests.e2e.test_page import download

pytestmark = pytest.mark.parametrize("app", ["llama-server"], indirect=True)

SCHEMA = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
DROP = """([name, text]) => {
  const data = new DataTransfer();
  data.items.add(new File([text], name));
  const target = document.querySelector('#box textarea');
  target.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


def test_two_replies_are_compared_blind_and_the_vote_is_kept(person: Person) -> None:
    person.set("Max tokens", 6)
    person.set("Temperature", 1)
    person.unfold("Compare two replies")
    person.begin("Name a fish.")
    person.ended()
    person.page.get_by_label("Ask both").check()
    person.page.get_by_label("Blind").check()
    person.begin("Name a tree.")
    expect(person.status).to_contain_text("Choose whom to compare with", timeout=WAIT_MS)
    person.page.get_by_role("combobox", name="Compare with").click()
    person.page.get_by_role("option", name="Tiny").click()
    person.begin("Name a tree.")
    better = person.button("Right is better")
    expect(better).to_be_visible(timeout=WAIT_MS)
    expect(person.status).to_have_text("Which reply is better? Whose they are is told after the vote.")
    sides = person.page.locator("#live [data-testid=block-label]")
    expect(sides).to_have_text(["A", "B"])
    right = person.page.locator("#live .bot .message-content").last.inner_text()
    person.reload()
    expect(sides).to_have_text(["A", "B"], timeout=WAIT_MS)
    expect(person.page.locator("#live .bot .message-content").last).to_have_text(right)
    expect(person.replies).to_have_count(3)  # the first one, and the two
    better.click()
    expect(person.status).to_contain_text("The chat goes on with the right one", timeout=WAIT_MS)
    expect(person.replies).to_have_count(2, timeout=WAIT_MS)
    assert person.replies.last.inner_text() == right
    expect(person.page.locator("#chat .more span")).to_have_count(1)
    person.unfold("Save and open")
    saved = download(person, person.button("Save as JSON").click, "chat.json")
    (tree,) = read_chats(saved.encode())  # the texts are alike: one file, one seed
    assert sorted(node.vote for node in tree.nodes.values()) == [-1, 0, 0, 0, 1]
    person.reload()
    expect(person.replies).to_have_count(2, timeout=WAIT_MS)


def test_a_reply_with_a_schema_is_shown_as_a_tree(person: Person) -> None:
    person.unfold("Structured replies")
    schema = person.page.get_by_label("JSON schema")
    schema.fill("{")
    schema.press("Tab")
    person.begin("What colour is the sky?")
    expect(person.status).to_contain_text("The JSON schema is not JSON", timeout=WAIT_MS)
    person.page.wait_for_timeout(1000)
    assert "The JSON schema is not JSON" in person.status.inner_text()  # it stays
    schema.fill(json.dumps(SCHEMA))
    schema.press("Tab")
    person.begin("What colour is the sky?")
    person.ended()
    tree = person.page.locator("#chat .json")
    expect(tree).to_contain_text("colour", timeout=WAIT_MS)
    person.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tree.get_by_role("button", name="Copy JSON").click()
    copied = person.page.evaluate("navigator.clipboard.readText()")
    assert json.loads(copied)["colour"] in ("red", "blue")
    person.reload()
    expect(tree).to_contain_text("colour", timeout=WAIT_MS)
    person.unfold("Structured replies")
    expect(schema).to_have_value(json.dumps(SCHEMA, indent=2))


def test_a_text_file_becomes_part_of_the_message_and_is_counted_first(person: Person) -> None:
    person.box.fill("Sum this up:")
    person.page.evaluate(DROP, ["notes.txt", "The sea is blue.\n```\ncode\n```\n"])
    expect(person.status).to_contain_text("The message has", timeout=WAIT_MS)
    text = person.box.input_value()
    assert text == "Sum this up:\nnotes.txt:\n````\nThe sea is blue.\n```\ncode\n```\n````\n"
    expect(person.questions).to_have_count(0)
    person.page.evaluate(DROP, ["picture.png", "\0PNG"])
    expect(person.page.locator("#kept")).to_have_text("picture.png is not a text file.", timeout=WAIT_MS)
    assert person.box.input_value() == text


def test_a_long_chat_is_shown_from_its_end_and_answers_as_quickly(person: Person) -> None:
    messages = [
        {"role": role, "content": f"{role} {number} " + "word " * 80}
        for number in range(200)
        for role in ("user", "assistant")
    ]
    put_chat(person, messages, model="Tiny")  # whose context holds few of them
    expect(person.questions).to_have_count(20, timeout=WAIT_MS)
    assert person.menu.input_value().startswith("Tiny")
    expect(person.questions.last).to_contain_text("user 199")
    assert person.page.evaluate("document.querySelector('#talk').scrollTop") > 0
    person.page.get_by_role("button", name="Show earlier messages").click()
    expect(person.questions).to_have_count(40, timeout=WAIT_MS)
    person.set("Max tokens", 4)
    person.send("And now?")
    expect(person.questions).to_have_count(40)


def test_a_model_in_the_address_begins_a_chat_with_it(person: Person, app: App) -> None:
    person.page.goto(f"{app.url}/?model=Tiny")
    person.trouble.clear()  # requests of the page before, which were cut off
    expect(person.page.get_by_label("System message")).to_have_value("Be brief.", timeout=WAIT_MS)
    assert "Tiny" in person.menu.input_value()
