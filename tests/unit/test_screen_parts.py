"""The page's texts: what is shown literally, what folds, and what a status says."""

from __future__ import annotations

from typing import Any

import pytest

from chat import page_html as parts
from chat.context import TurnState
from chat.conversation import Message
from chat.markup import JOINER
from chat.tree import Tree
from core.engine import Stats

J = JOINER


def chat(*messages: tuple[str, str], left_out: int = 0) -> Tree:
    tree = Tree()
    for role, content in messages:
        tree.add(Message.model_validate({"role": role, "content": content}))
    tree.chat.left_out = left_out
    return tree


def shown(tree: Tree, window: int = 40) -> tuple[list[tuple[Any, ...]], list[int]]:
    """What the chatbot has, and for each the place of its message in the branch."""
    displayed, origin = parts.display(tree, window)
    places = [node.id for node in tree.branch()]
    messages = [(m["role"], m["content"][0]["text"], m["metadata"].get("title")) for m in displayed]
    return messages, [places.index(name) for name in origin]


def test_messages_are_shown_in_order_with_where_they_come_from() -> None:
    messages, origin = shown(chat(("user", "a"), ("assistant", "<i>"), ("user", "c")))
    assert messages == [("user", "a", None), ("assistant", f"<{J}i>", None), ("user", "c", None)]
    assert origin == [0, 1, 2]


def test_thinking_folds_while_it_goes_on_and_afterwards() -> None:
    tree = chat(("user", "a"), ("assistant", "<think>hm"))
    (growing,) = parts.message_parts(tree.branch()[1], writing=True)
    assert growing["metadata"] == {"title": "Thinking…", "status": "pending"}
    assert shown(tree)[0][1:] == [("assistant", "hm", "Thought, cut short")]
    messages, origin = shown(chat(("user", "a"), ("assistant", "<think>hm</think>b"), ("user", "c")))
    assert messages[1:3] == [("assistant", "hm", "Thought"), ("assistant", "b", None)]
    assert origin == [0, 1, 1, 2]  # so that an edit of "c" finds message 2


def test_a_note_stands_where_the_models_view_begins() -> None:
    messages, origin = shown(chat(("user", "a"), ("assistant", "b"), ("user", "c"), left_out=2))
    assert [title for _, _, title in messages] == [None, None, "✂ 2 messages left out", None]
    assert origin == [0, 1, 1, 2]


def test_a_long_chat_is_shown_from_its_end_and_without_what_is_being_written() -> None:
    tree = chat(*[("user", "q"), ("assistant", "a")] * 50)
    assert shown(tree)[1] == list(range(60, 100))
    last = tree.branch()[-1].id
    assert last not in parts.display(tree, 40, [last])[1]


def test_each_row_of_the_chatbot_knows_its_message_and_those_beside_it() -> None:
    tree = chat(("user", "a"), ("assistant", "<think>hm</think>b"))
    question, reply = (node.id for node in tree.branch())
    other = tree.add(Message(role="assistant", content="c"), question).id
    displayed, origin = parts.display(tree)
    assert parts.marks(tree, displayed, origin) == [
        {"id": question, "versions": [question], "vote": None},
        {"id": other, "versions": [reply, other], "vote": 0},
    ]


def test_the_status_tells_waiting_reading_and_writing_apart() -> None:
    assert "Waiting" in parts.progress_html(TurnState())
    assert "50 % of 1,000 tokens" in parts.progress_html(TurnState(prompt_tokens=1000, prompt_done=500))
    writing = parts.progress_html(TurnState(prompt_tokens=9, generated_tokens=1))
    assert "1 token<" in writing
    assert 'aria-hidden="true"' in writing


def test_the_statistics_of_a_reply() -> None:
    stats = Stats(prompt_tokens=1200, cached_tokens=1000, generated_tokens=1, finish_reason="length", seed=5)
    stats.first_token_s, stats.prompt_per_s, stats.generated_per_s = 0.5, 300.4, 20.26
    html = parts.stats_html(stats)
    for text in (
        "Cut at the length limit",
        "1 token at 20.3/s",
        "first after 0.50 s",
        "prompt 1,200 tokens, 1,000 cached, read at 300/s",
        "seed 5",
    ):
        assert text in html
    assert "Stopped · 0 tokens · prompt 3" in parts.stats_html(Stats(3, finish_reason="cancelled"))


def test_what_comes_from_outside_is_escaped() -> None:
    for html in (
        parts.error_html("<b>"),
        parts.note_html("<b>"),
        parts.download_html("<b>", 1, None),
        parts.broken_html({"<b>": "<b>"}),
    ):
        assert "<b><" not in html.replace("<p><b>&", "")
        assert "&lt;b&gt;" in html


@pytest.mark.parametrize(
    ("tokens", "level"), [(10, "bar "), (80, "bar high"), (95, "bar full"), (150, "100 %")]
)
def test_the_gauge_warns_before_the_context_is_full(tokens: int, level: str) -> None:
    assert level in parts.gauge_html(tokens, 100)


def test_a_download_of_unknown_size_and_an_empty_file_have_no_share() -> None:
    assert "%" not in parts.download_html("m", 5, None)
    assert "%" not in parts.download_html("m", 0, 0)
    assert "(50 %)" in parts.download_html("m", 5_000_000, 10_000_000)


def test_a_structured_reply_is_a_tree_and_its_names_and_texts_are_escaped() -> None:
    tree = chat(("user", "a"), ("assistant", '{"<b>": ["<i>", {"deep": {"deeper": 1}}], "empty": []}'))
    tree.chat.json_schema = {"type": "object"}
    (shown,) = parts.message_parts(tree.branch()[1], structured=True)
    (component,) = shown["content"]
    html = component.value
    assert "<b>&lt;b&gt;</b>" in html
    assert "&lt;i&gt;" in html
    assert html.count("<details open>") == 2
    assert html.count("<details>") == 2
    for cut in ('{"a": ', "5", "text"):
        tree.branch()[1].message.content = cut
        assert parts.message_parts(tree.branch()[1], structured=True)[0]["content"] == parts.text_part(cut)
