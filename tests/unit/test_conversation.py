"""A chat as a turn needs it: its prompt, what can be continued, and what another model makes of it."""

from __future__ import annotations

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


def test_a_question_without_a_reply_is_replaced_by_the_next() -> None:
    chat = talk("a", "b", "c")
    chat.say("d")
    assert texts(chat) == ["a", "b", "d"]


def test_an_empty_message_changes_nothing() -> None:
    chat = talk("a", "b", "c")
    with pytest.raises(ChatError, match="empty"):
        chat.say(" \n")
    assert texts(chat) == ["a", "b", "c"]


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
    chat.adapters = {"pirate": 1.0}
    chat.use_model("large")
    assert (chat.left_out, chat.tokens, chat.adapters) == (0, 0, {})


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
