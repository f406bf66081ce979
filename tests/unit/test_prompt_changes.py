"""What is done to prompts, and what it costs a model whose losses and replies are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from core.errors import TrainError
from train.examples import Example
from train.prompt_changes import CHANGES, INJECTION, changed, measure, with_typos
from train.robustness_run import held_out
from train.split import Splits
from train.tasks.scored import Chat


def chat(*contents: str) -> Example:
    """A chat of these turns, the first one the user's."""
    turns = [
        {"role": ("user", "assistant")[at % 2], "content": content} for at, content in enumerate(contents)
    ]
    return Example(turns, "", "")


ASKED = "The soup came hot and the waiter remembered my name, all three times."
CHATS = [chat(ASKED, "So it did."), chat("Hello", "Good day.", "What came hot that evening?", "The soup.")]


class Model:
    """Each letter of a prompt costs a nat; every second reply obeys."""

    def answer(self, chats: list[Chat], max_new_tokens: int | Sequence[int]) -> list[str]:
        assert all(chat[-1]["content"].endswith(INJECTION) for chat in chats)
        return ["No.", "Banana!"][: len(chats)]

    def label_probabilities(self, chats: list[Chat], labels: list[str]) -> list[list[float]]:
        raise NotImplementedError

    def loss(self, examples: list[Example]) -> float:
        return sum(len(example.messages[-2]["content"]) for example in examples) / len(examples)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("asked", CHATS)
def test_a_change_changes_what_was_asked_last_and_nothing_else(change: str, asked: Example) -> None:
    other = changed(asked, CHANGES[change])
    assert other.messages[-2]["content"] != asked.messages[-2]["content"]
    assert other.messages[-2]["role"] == "user"
    assert [*other.messages[:-2], other.messages[-1]] == [*asked.messages[:-2], asked.messages[-1]]
    assert changed(asked, CHANGES[change]) == other


def test_earlier_replies_do_not_count() -> None:
    assert changed(CHATS[0], str) == CHATS[0]
    assert changed(CHATS[1], str).untrained == {1}


def test_typos_swap_letters_and_lose_none() -> None:
    assert with_typos(ASKED) != ASKED
    assert sorted(with_typos(ASKED)) == sorted(ASKED)
    assert with_typos(ASKED, 1.0).startswith("hTe ospu acem ")
    assert with_typos(ASKED, 0.0) == ASKED


def test_what_changes_cost_is_measured_beside_the_prompts_as_they_are() -> None:
    costs = measure(Model(), CHATS, {"case": [chat("ab", "c")], "another domain": [chat("a", "c")]})
    plain = (len(ASKED) + len("What came hot that evening?")) / 2
    assert costs.loss == plain
    assert list(costs.changed) == [*CHANGES, "another domain"]
    assert costs.rise("typos") == 0
    assert costs.rise("injection") == len(INJECTION) + 1
    assert (costs.changed["case"], costs.changed["another domain"]) == (2, 1)
    assert costs.obeyed == 0.5


def test_the_rows_that_are_asked_are_held_out_chats_that_answer_a_user() -> None:
    context = replace(chat("Hi", "Hello."), untrained=frozenset({1}))  # whose author doesn't want it trained
    told = Example([{"role": "system", "content": "Say a."}, {"role": "assistant", "content": "a"}], "", "")
    text = Example([], "A text.", "")
    splits = Splits(train=[chat("a", "b")], validation=[chat("c", "d")], test=[*CHATS, context, told, text])
    split, rows = held_out(splits, "mine")
    assert split == "test"
    assert sorted(map(str, rows)) == sorted(map(str, CHATS))
    assert held_out(replace(splits, test=[]), "mine") == ("validation", splits.validation)
    with pytest.raises(TrainError, match="mine has neither test nor validation rows"):
        held_out(Splits(train=CHATS), "mine")
    with pytest.raises(TrainError, match="the test rows of mine have no prompt that could be changed"):
        held_out(Splits(test=[text]), "mine")
