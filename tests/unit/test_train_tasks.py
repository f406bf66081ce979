"""The data sets that the recipes train on: fixtures of their columns and shapes, and the real quotes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import TrainError
from train.data import load_examples, lost
from train.examples import Loaded
from train.recipe import RECIPES
from train.sections import Data
from train.tasks import sms
from train.tasks.quotes import clean_author, clean_quote

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def load(path: Path | str, task: str, **options: Any) -> Loaded:
    loaded = load_examples(Data(path=str(path), task=task, **options), seed=0)  # type: ignore[arg-type]
    assert lost(loaded) == 0
    return loaded


def contents(loaded: Loaded) -> list[list[str]]:
    return [[turn["content"] for turn in example.messages] for example in loaded.examples]


@pytest.mark.parametrize(
    ("quote", "clean"),
    [
        ("“Stay  hungry.”", "Stay hungry."),
        ('"Stay hungry."', "Stay hungry."),
        ("“Stay\nhungry.", "Stay hungry."),
        ("\N{NO-BREAK SPACE}“ Stay hungry. ”", "Stay hungry."),
        ("“Small” is not “poor”", "“Small” is not “poor”"),
        ("“He said “no”.”", "He said “no”."),
        ('"No" is not "never"', '"No" is not "never"'),
        ("“Yes”, he said.", "“Yes”, he said."),
        ("“”", ""),
        ("Done", "Done"),
    ],
)
def test_quotation_marks_around_a_quote_go(quote: str, clean: str) -> None:
    assert clean_quote(quote) == clean


def test_authors_lose_commas_and_dashes_around_them() -> None:
    assert clean_author(" Jane  Austen, ") == "Jane Austen"
    assert clean_author("― Jane Austen, Emma") == "Jane Austen, Emma"
    assert clean_author("Sammy Davis Jr.") == "Sammy Davis Jr."


def test_english_quotes_become_chats() -> None:
    loaded = load(FIXTURES / "english_quotes.jsonl", "auto")
    assert loaded.layout == "quotes"
    assert loaded.rows_in == 12
    assert loaded.left_out == {"the same quote as an earlier row's": 1, "no quote": 1, "no author": 1}
    chats = contents(loaded)
    knows = "The secret of success is to know something nobody else knows.\nAuthor: Aristotle Onassis"
    assert chats[1] == ["Quote: The secret of", knows]
    assert all(reply.count("\n") == 1 and not reply.startswith(asked) for asked, reply in chats)
    assert all(reply.startswith(asked.removeprefix("Quote: ")) for asked, reply in chats)


def test_quotes_as_the_seeds_text() -> None:
    first = load(FIXTURES / "english_quotes.jsonl", "quotes", format="text").examples[0]
    assert first.messages == []
    assert first.text == "Quote: All cats love fish but fear to wet their paws.\nAuthor: Chinese Proverb"


def test_the_real_quotes() -> None:
    loaded = load(RECIPES / "quotes.jsonl", "quotes")
    assert (loaded.rows_in, len(loaded.examples)) == (262, 253)
    groups = {example.group for example in loaded.examples if "Nolan Bushnell" in str(example.messages)}
    assert groups == {"nolan bushnell"}, "an office after the comma is no other person"


def test_threads_are_joined_from_the_tree() -> None:
    loaded = load(FIXTURES / "oasst1.jsonl", "oasst1", lang=["en"])
    boil, haiku, two = loaded.examples
    assert [turn["role"] for turn in boil.messages] == ["user", "assistant"] * 3
    assert contents(loaded)[0] == [
        "How do I boil an egg?",
        "Put it in boiling water for eight minutes, then in cold water.",
        "Why in cold water?",  # the branch with more turns
        "It stops the cooking, and the shell comes off more easily.",
        "Does the age of the egg matter?",
        "Yes. Older eggs are easier to peel.",
    ]
    assert (boil.group, haiku.group, two.group) == ("t1", "t4", "t6")
    assert loaded.left_out == {
        "joined to the first message of its chat": 5 + 1 + 1,
        "in another language": 2,
        "deleted": 1,
        "the message before it isn't there": 1,
        "a reply of a lower rank, or of none": 3,
        "no reply of rank 0 to it, or in another branch": 6,
    }


def test_all_languages_unless_some_are_named() -> None:
    assert len(load(FIXTURES / "oasst1.jsonl", "auto").examples) == 4
    assert len(load(FIXTURES / "oasst1.jsonl", "oasst1", lang=["es"]).examples) == 1
    with pytest.raises(TrainError, match=r"data.lang is for the task oasst1"):
        load(FIXTURES / "english_quotes.jsonl", "quotes", lang=["en"])


def test_a_row_can_be_a_whole_tree(tmp_path: Path) -> None:
    def node(name: str, role: str, *replies: object, **more: object) -> dict[str, object]:
        return {"message_id": name, "role": role, "text": name.upper(), "replies": list(replies)} | more

    best = node("b", "assistant", node("d", "prompter", node("e", "assistant")), rank=0)
    trees = [
        node("a", "prompter", node("c", "assistant", rank=1), best),
        node("f", "prompter", node("g", "assistant"), node("h", "assistant")),
    ]
    rows = [{"message_tree_id": tree["message_id"], "tree_state": "x", "prompt": tree} for tree in trees]
    path = tmp_path / "trees.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    loaded = load(path, "auto")
    assert loaded.layout == "oasst1"
    assert contents(loaded) == [["A", "B", "D", "E"]]
    assert loaded.left_out["a reply of a lower rank, or of none"] == 3


def test_oasst1_as_the_seeds_pairs() -> None:
    """As in the notebook, also replies in branches that a chat doesn't take."""
    loaded = load(FIXTURES / "oasst1.jsonl", "oasst1", format="text", lang=["en"])
    texts = [example.text for example in loaded.examples]
    assert texts[-1] == "### Human: What is 2 + 2?### Assistant: 4"
    assert "### Human: Is that all?### Assistant: Yes." in texts
    assert len(texts) == 7


def test_a_message_that_is_its_own_ancestor_is_counted(tmp_path: Path) -> None:
    rows = "message_id,parent_id,text,role,rank,lang,message_tree_id\n"
    rows += "a,b,x,prompter,,en,t\nb,a,y,assistant,0,en,t\nc,,z,prompter,,en,t\nd,c,w,assistant,0.0,en,t\n"
    (tmp_path / "circle.csv").write_text(rows)
    assert contents(load(tmp_path / "circle.csv", "oasst1")) == [["z", "w"]]


def test_a_column_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(TrainError, match=r"no column 'message_id', .*; it has quote, author, tags"):
        load(FIXTURES / "english_quotes.jsonl", "oasst1")


def test_code_instructions_with_and_without_input() -> None:
    loaded = load(FIXTURES / "code_instructions.jsonl", "code")
    chats = contents(loaded)
    assert chats[0][0] == "Write a Python function that adds two numbers."
    assert chats[1][0] == "Sort the list in descending order.\n\n[3, 1, 2]"
    assert chats[0][1] == "def add(a, b):\n    return a + b"
    assert loaded.left_out == {"the same as an earlier row": 1, "no output": 1}
    assert loaded.changed == {"an input that says that there is none": 5}
    assert loaded.examples[0].group == loaded.examples[2].group, "solutions of one task stay together"


def sms_file(folder: Path, text: str) -> Path:
    (folder / "sms.csv").write_text(text, encoding="utf-8-sig")
    return folder / "sms.csv"


def test_sms_by_reader_ask_and_answer_with_one_word(tmp_path: Path) -> None:
    path = sms_file(tmp_path, "campaign,message,converted\nmay,Half price!,1\nmay,Half price!,0\njune,,1\n")
    loaded = load(path, "sms")
    assert contents(loaded) == [[sms.prompt("Half price!"), "yes"], [sms.prompt("Half price!"), "no"]]
    assert {example.group for example in loaded.examples} == {"may"}
    assert loaded.left_out == {"no message": 1}


@pytest.mark.parametrize(
    ("columns", "cells"),
    [
        ("conversion_rate", "0.25"),
        ("conversion_rate", "25 %"),
        ("sends;conversions", "200;50"),
    ],
)
def test_a_share_of_conversions_is_drawn_by_hash(tmp_path: Path, columns: str, cells: str) -> None:
    rows = "".join(f"Offer {number}, only today;{cells}\n" for number in range(1000))
    path = sms_file(tmp_path, f"message;{columns}\n{rows}")
    answers = [chat[1] for chat in contents(load(path, "sms"))]
    assert set(answers) == set(sms.LABELS)
    assert 200 < answers.count("yes") < 300
    assert answers == [chat[1] for chat in contents(load(path, "sms"))]


def test_a_share_that_is_none_is_counted(tmp_path: Path) -> None:
    rows = "a,100,0\nb,100,100\nc,0,0\nd,10,20\ne,many,1\nf,100,nan\n"
    loaded = load(sms_file(tmp_path, "message,sends,conversions\n" + rows), "sms")
    assert [chat[1] for chat in contents(loaded)] == ["no", "yes"]
    assert loaded.left_out == {"no share of conversions between 0 and 1": 4}


def test_sms_without_an_outcome_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="doesn't say which messages sold: it has message, brand"):
        load(sms_file(tmp_path, "message,brand\na,b\n"), "sms")
    with pytest.raises(TrainError, match="no column 'conversions'"):
        load(sms_file(tmp_path, "message,sends\na,1\n"), "sms")
    with pytest.raises(TrainError, match=r"make_sms\.py --out .*none\.csv"):
        load(tmp_path / "none.csv", "sms")


def test_the_synthetic_messages_can_be_read(tmp_path: Path) -> None:
    from train.tasks import make_sms

    assert make_sms.main(["--out", str(tmp_path / "made.csv"), "--rows", "80"]) == 0
    loaded = load(tmp_path / "made.csv", "sms")
    assert len(loaded.examples) == 80
    assert len({example.group for example in loaded.examples}) == 10
