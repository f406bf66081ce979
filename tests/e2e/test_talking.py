"""Sending, streaming, retrying, editing, undoing and continuing, on both engines."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.e2e.person import WAIT_MS, Person

# Notes how long the last reply is whenever the chat changes.
WATCH = """() => {
  window.lengths = new Set();
  const look = () => {
    const replies = document.querySelectorAll('#talk .bot .message-content');
    if (replies.length) window.lengths.add(replies[replies.length - 1].innerText.trim().length);
  };
  new MutationObserver(look).observe(document.querySelector('#talk'),
                                     { subtree: true, childList: true, characterData: true });
}"""


def test_a_reply_grows_on_the_page_and_can_be_continued_where_it_was_cut(person: Person) -> None:
    person.page.evaluate(WATCH)
    first = person.send("Count from one to fifty in words, one number a line.")
    lengths = person.page.evaluate("[...window.lengths].filter((length) => length > 0).length")
    assert lengths >= 3, "the reply came in one piece"
    assert "Cut at the length limit" in person.status.inner_text()
    longer = person.whole_turn(person.button("Continue").click)
    assert longer.startswith(first.rstrip())
    assert len(longer) > len(first)
    assert person.replies.count() == 1


def test_retry_answers_the_last_question_again_and_undo_gives_it_back(person: Person) -> None:
    person.set("Max tokens", 8)
    question = "What is the capital of France?"
    first = person.send(question)
    # Greedy: the same question has the same answer, so nothing else was in the prompt.
    assert person.whole_turn(person.icon("Retry").click) == first
    assert person.whole_turn(person.icon("Retry").click) == first
    expect(person.questions).to_have_text([question])
    person.icon("Undo").click()
    expect(person.questions).to_have_count(0)
    expect(person.box).to_have_value(question)
    person.button("Redo").click()
    expect(person.replies).to_have_text([first], timeout=WAIT_MS)
    expect(person.button("Redo")).to_have_count(0)


def test_an_edited_question_stands_beside_the_one_before_with_all_that_followed(person: Person) -> None:
    person.set("Max tokens", 4)
    person.send("Say a colour.")
    person.send("Say <b>another</b> one.")
    person.page.locator("#chat").get_by_role("button", name="Edit", exact=True).first.click()
    person.page.get_by_label("Edited message").fill("Say a <number>.")
    person.whole_turn(person.icon("Submit").click)
    assert [text.replace("\u2060", "") for text in person.questions.all_inner_texts()] == ["Say a <number>."]
    assert person.replies.count() == 1
    versions = person.page.locator("#chat .more span")
    expect(versions).to_have_text(["2/2"])
    person.page.get_by_role("button", name="Version before").click()
    expect(person.questions).to_have_count(2, timeout=WAIT_MS)
    expect(versions).to_have_text(["1/2"])
    person.reload()
    expect(person.questions).to_have_count(2, timeout=WAIT_MS)
    person.page.get_by_role("button", name="Version after").click()
    expect(person.questions).to_have_count(1, timeout=WAIT_MS)


def test_what_is_typed_during_a_reply_stays_in_the_box(person: Person) -> None:
    person.set("Max tokens", 2000)
    person.begin("Tell me a story.")
    expect(person.button("Stop")).to_be_visible(timeout=WAIT_MS)
    person.box.fill("And then?")
    person.box.press("Enter")  # one reply at a time
    expect(person.status).to_contain_text("Writing", timeout=WAIT_MS)
    person.stop()
    person.ended()
    expect(person.box).to_have_value("And then?")
    expect(person.questions).to_have_count(1)
    person.button("New chat").click()
    expect(person.questions).to_have_count(0)
    expect(person.box).to_have_value("And then?")
    person.chats.first.get_by_role("button", name="Tell me a story.").first.click()
    expect(person.questions).to_have_count(1, timeout=WAIT_MS)
