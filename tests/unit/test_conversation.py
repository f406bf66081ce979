"""A chat as the page keeps it: what can be done with it, and what comes back from a browser."""

from __future__ import annotations

import json

import pytest

from chat.conversation import Conversation, Message
from core.errors import ChatError


def talk(*texts: str) -> Conversation:
    """Make a chat of alternating questions and replies."""
    roles = ("user", "assistant")
    return Conversation.model_validate(
        {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]}
    )


def texts(conversation: Conversation) -> list[str]:
    return [message.content for message in conversation.messages]


def test_what_was_stored_is_read_back() -> None:
    chat = talk("a", "b")
    chat.left_out, chat.tokens, chat.model = 1, 7, "m"
    assert Conversation.read(json.loads(json.dumps(chat.store()))) == chat


@pytest.mark.parametrize(
    "stored",
    [
        None,
        "text",
        [1],
        {"messages": 3},
        {"messages": [{"role": "system", "content": "x"}]},
        {"unknown": 1},
        {"sampling": {"temperature": 9}},
        {"left_out": -1},
    ],
)
def test_what_is_not_a_chat_of_ours_becomes_an_empty_one(stored: object) -> None:
    assert Conversation.read(stored) == Conversation()


def test_a_question_without_a_reply_is_replaced_by_the_next() -> None:
    chat = talk("a", "b", "c")
    chat.say("d")
    assert texts(chat) == ["a", "b", "d"]


def test_an_empty_message_changes_nothing() -> None:
    chat = talk("a", "b", "c")
    with pytest.raises(ChatError, match="empty"):
        chat.say(" \n")
    assert texts(chat) == ["a", "b", "c"]


def test_retry_takes_the_reply_back_and_undo_the_question_too() -> None:
    chat = talk("a", "b", "c", "d")
    chat.retry()
    assert texts(chat) == ["a", "b", "c"]
    chat.retry()  # there was no reply: the question is answered all the same
    assert texts(chat) == ["a", "b", "c"]
    assert chat.undo() == "c"
    assert chat.undo() == "a"
    for action in (chat.retry, chat.undo):
        with pytest.raises(ChatError, match="nothing to"):
            action()


def test_an_edit_takes_back_what_came_after_it() -> None:
    chat = talk("a", "b", "c", "d")
    chat.edit(0, "e")
    assert texts(chat) == ["e"]


@pytest.mark.parametrize(("index", "text"), [(1, "x"), (4, "x"), (-2, "x"), (0, " ")])
def test_an_edit_that_can_not_be_leaves_the_chat_as_it_was(index: int, text: str) -> None:
    chat = talk("a", "b", "c", "d")
    with pytest.raises(ChatError):
        chat.edit(index, text)
    assert texts(chat) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("reason", "content", "can"),
    [("length", "x", True), ("cancelled", "x", True), ("stop", "x", False), ("cancelled", "", False)],
)
def test_only_a_reply_that_was_cut_can_be_continued(reason: str, content: str, can: bool) -> None:
    chat = talk("a")
    assert not chat.can_continue()
    chat.messages.append(
        Message.model_validate({"role": "assistant", "content": content, "finish_reason": reason})
    )
    assert chat.can_continue() is can


def test_another_model_sees_the_whole_chat_again() -> None:
    chat = talk("a", "b", "c")
    chat.use_model("small")
    chat.left_out, chat.tokens = 2, 500
    chat.use_model("small")
    assert (chat.left_out, chat.tokens) == (2, 500)
    chat.use_model("large")
    assert (chat.left_out, chat.tokens) == (0, 0)


def test_a_part_of_a_reply_counts_as_more_than_before() -> None:
    before, chat = talk("a", "b"), talk("a", "b")
    chat.say("c")
    assert not chat.has_more_than(before)  # refused now, the chat is as it was
    chat.messages.append(Message(role="assistant", content="d"))
    assert chat.has_more_than(before)
    assert not chat.has_more_than(chat)


def test_the_prompt_begins_with_the_system_message_if_there_is_one() -> None:
    chat = talk("a")
    chat.system_prompt = "  "
    assert chat.prompt() == [{"role": "user", "content": "a"}]
    chat.system_prompt = "Be kind."
    assert chat.prompt()[0] == {"role": "system", "content": "Be kind."}


def test_a_thought_is_kept_apart_from_the_answer_and_goes_with_it() -> None:
    chat = talk("a", "<think>\nso</think>\n\nyes", "b", "I <think> not</think>")
    assert chat.messages[1].reply() == ("so", "yes", False)
    assert chat.prompt()[1] == {"role": "assistant", "content": "yes", "reasoning_content": "so"}
    assert chat.prompt()[3] == {"role": "assistant", "content": "I <think> not</think>"}
    assert Conversation.read(json.loads(json.dumps(chat.store()))) == chat


def test_a_reply_that_was_cut_inside_its_thought_can_be_continued() -> None:
    chat = talk("a", "<think>so")
    chat.messages[-1].finish_reason = "length"
    assert chat.messages[-1].reply() == ("so", "", True)
    assert chat.can_continue()


def test_thoughts_fold_in_exports() -> None:
    chat = talk("a", "<think>so</details>!</think>yes")
    chat.model = "m"
    folded = "<details>\n<summary>Thought</summary>\n\nso&lt;/details>!\n\n</details>"
    assert chat.to_markdown() == f"# Chat with m\n\n## You\n\na\n\n## m\n\n{folded}\n\nyes\n"
    saved = json.loads(chat.to_json())["messages"][1]
    assert saved == {"role": "assistant", "content": "yes", "reasoning_content": "so</details>!"}


def test_the_oldest_turns_go_first_where_the_browser_has_no_room() -> None:
    chat = talk(*("x" * 1000 for _ in range(9)))
    chat.left_out = 2
    chat.shorten(5000)
    assert (len(chat.messages), chat.dropped, chat.left_out) == (3, 6, 0)
    chat.shorten(10)
    assert (len(chat.messages), chat.dropped) == (1, 8)  # the last question stays
    chat.shorten()
    assert chat.dropped == 8
    chat.clear()
    assert chat.dropped == 0
