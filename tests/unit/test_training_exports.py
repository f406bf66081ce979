"""What goes out of a chat to be trained on, and that training reads it as it is."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from chat import formats
from chat.formats import to_preferences_jsonl, to_training_jsonl
from chat.tree import Tree
from core.errors import ChatError
from tests.unit.branched_chat import replied, said, tree
from train.data import load_examples
from train.examples import Loaded
from train.sections import Data


def load(text: str, tmp_path: Path, preferences: bool = False) -> Loaded:
    """Let training read it; nothing may be left out, changed or not used."""
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    loaded = load_examples(Data(path=str(path)), 0, preferences)
    assert not loaded.left_out | loaded.changed | loaded.noticed | loaded.not_used
    return loaded


def test_training_reads_what_goes_out_thoughts_and_all(tmp_path: Path) -> None:
    made = tree()
    made.add(said("And who read it?"))  # which has no answer yet
    [example] = load(to_training_jsonl([made]), tmp_path).examples
    assert example.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who wrote it?"},
        {"role": "assistant", "content": "Seneca.", "reasoning_content": "An old text."},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "In Rome."},
    ]
    assert not example.untrained


def test_replies_that_were_disliked_or_cut_are_context_only(tmp_path: Path) -> None:
    made, alone, empty = tree(), Tree(), Tree()
    by_text = {node.message.content: node for node in made.nodes.values()}
    by_text["Seneca."].vote = -1
    alone.add(said("a"))
    alone.add(replied("cut", finish_reason="length"))
    empty.add(said("a"))
    empty.add(replied("whole"))
    empty.add(said("b"))
    empty.add(replied("", reasoning_content="only thought"))
    empty.add(said("c"))
    empty.add(replied("later"))
    loaded = load(to_training_jsonl([made, alone, Tree(), empty]), tmp_path)
    first, last = loaded.examples
    assert first.untrained == {2}
    assert [turn["content"] for turn in last.messages] == ["a", "whole"]


def test_training_reads_votes_and_edits_as_preferences(tmp_path: Path) -> None:
    loaded = load(to_preferences_jsonl([tree()]), tmp_path, preferences=True)
    pairs = []
    for example in loaded.examples:
        assert example.rejected
        assert example.messages[:-1] == example.rejected.messages[:-1]
        assert example.messages[0] == {"role": "system", "content": "Be brief."}
        pairs.append((example.messages[-2]["content"], example.messages[-1], example.rejected.messages[-1]))
    seneca = {"role": "assistant", "content": "Seneca.", "reasoning_content": "An old text."}
    assert pairs == [
        ("Who wrote it?", seneca, {"role": "assistant", "content": "Me."}),
        (
            "Where?",
            {"role": "assistant", "content": "In Rome."},
            {"role": "assistant", "content": "In Rom."},
        ),
    ]


@pytest.mark.parametrize(
    ("replies", "pairs"),
    [
        ([("a", 0, False), ("b", 0, False)], []),
        ([("a", 1, False), ("b", 0, False)], []),
        ([("a", 1, False), ("b", 1, False)], []),
        ([("a", 1, False), ("b", -1, False)], [("a", "b")]),
        ([("a", -1, False), ("b", 1, False)], [("b", "a")]),
        ([("a", 0, False), ("b", 0, True)], [("b", "a")]),
        ([("a", -1, False), ("b", 0, True)], [("b", "a")]),
        ([("a", 0, False), ("b", -1, True)], []),
        ([("a", 1, False), ("b", 0, True)], []),
        ([("a", 0, False), ("b", 0, False), ("c", 0, True)], [("c", "b")]),
        ([("a", 0, False), ("b", 0, True), ("c", 0, False)], [("b", "a")]),
        ([("a", 1, False), ("b", 1, False), ("c", -1, False)], [("a", "c"), ("b", "c")]),
        ([("a", 1, False), ("a \n", -1, False)], []),
        ([("a", 1, False), ("", -1, False)], []),
    ],
)
def test_a_pair_has_a_reply_that_was_liked_and_one_that_was_not(
    replies: list[tuple[str, Any, bool]], pairs: list[tuple[str, str]], tmp_path: Path
) -> None:
    made = Tree()
    question = made.add(said("q"))
    for text, vote, edited in replies:
        made.add(replied(text), question.id, vote=vote, edited=edited)
    text = to_preferences_jsonl([made])
    rows = [json.loads(line) for line in text.splitlines()]
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows] == pairs
    if pairs:
        assert len(load(text, tmp_path, preferences=True).examples) == len(pairs)


def test_rows_that_grow_without_bound_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has all that was said before it: of 20,000 messages, that could be a hundred gigabytes."""
    monkeypatch.setattr(formats, "MAX_EXPORT", 100_000)
    made = Tree()
    for _ in range(100):
        question = made.add(said("x" * 100))
        made.add(replied("bad"), vote=-1)
        made.add(replied("good"), question.id, vote=1)
    with pytest.raises(ChatError, match="Export fewer"):
        to_preferences_jsonl([made])


def test_a_thousand_votes_on_one_question_are_a_thousand_pairs_at_most() -> None:
    made = Tree()
    question = made.add(said("q"))
    for n in range(2_000):
        made.add(replied(f"reply {n}"), question.id, vote=(1, -1)[n % 2])
    began = time.process_time()
    assert len(to_preferences_jsonl([made]).splitlines()) == 1_000
    assert time.process_time() - began < 5
