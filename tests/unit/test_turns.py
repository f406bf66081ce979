"""Replies that are kept: they go on without a page, and two are compared. What can be done to a tree."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from chat import branching, running
from chat.context import TurnState
from chat.conversation import Message
from chat.running import Running, follow
from chat.tree import Tree
from core.errors import ChatError

WAIT_S = 20.0


class Steps:
    """States of a reply that come when they are let."""

    def __init__(self, count: int = 3, error: Exception | None = None) -> None:
        self.let, self.stopped = threading.Semaphore(0), threading.Event()
        self._count, self._error = count, error

    def __iter__(self) -> Iterator[TurnState]:
        for number in range(self._count):
            assert self.let.acquire(timeout=WAIT_S)
            if self.stopped.is_set():
                return
            yield TurnState(text="x" * (number + 1), generated_tokens=number + 1)
        if self._error:
            raise self._error

    def stop(self) -> None:
        self.stopped.set()
        self.let.release(100)

    def go_on(self, count: int = 100) -> None:
        self.let.release(count)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_who_comes_late_sees_the_newest_state_and_the_end() -> None:
    steps = Steps()
    reply = Running(iter(steps), steps.stop)
    steps.go_on(2)
    until(lambda: reply.state.generated_tokens == 2)
    states = follow([reply])
    assert next(states)[0].generated_tokens == 2
    steps.go_on()
    assert [state.text for (state,) in states][-1] == "xxx"
    assert reply.ended


def test_what_ended_a_reply_is_told_to_everybody_who_follows() -> None:
    steps = Steps(1, ChatError("It broke."))
    reply = Running(iter(steps), steps.stop)
    steps.go_on()
    for _ in range(2):
        with pytest.raises(ChatError, match="It broke"):
            list(follow([reply]))


def test_two_replies_are_followed_to_the_end_of_both() -> None:
    changed, both = threading.Condition(), [Steps(1), Steps(3)]
    replies = [Running(iter(steps), steps.stop, changed=changed) for steps in both]
    states = follow(replies)
    next(states)
    both[0].go_on()
    until(lambda: replies[0].ended)
    assert not replies[1].ended
    both[1].go_on()
    assert [state.generated_tokens for state in list(states)[-1]] == [1, 3]


def test_a_reply_that_no_page_follows_is_stopped_and_one_that_is_taken_up_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "ALONE_S", 0.2)
    alone, taken = Steps(), Steps()
    left, found = (Running(iter(steps), steps.stop) for steps in (alone, taken))
    states = follow([found])
    next(states)
    until(lambda: left.ended)
    assert alone.stopped.is_set()
    assert not taken.stopped.is_set()
    states.close()  # type: ignore[attr-defined]  (the page is closed)
    until(lambda: found.ended)


def test_what_was_written_is_kept_meanwhile_and_a_fault_of_that_ends_the_reply(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "SAVE_INTERVAL_S", 0.0)
    kept: list[bool] = []
    steps = Steps()
    steps.go_on()
    reply = Running(iter(steps), steps.stop, kept.append)
    until(lambda: reply.ended)
    assert kept == [False, False, False, True]

    def full(done: bool) -> None:
        raise ChatError("The disk is full.")

    steps = Steps()
    steps.go_on(1)
    with pytest.raises(ChatError, match="disk is full"):
        list(follow([Running(iter(steps), steps.stop, full)]))
    assert steps.stopped.is_set()


def chat() -> Tree:
    tree = Tree()
    for number in range(2):
        branching.ask(tree, f"question {number}")
        tree.add(Message(role="assistant", content=f"reply {number}"))
    return tree


def said(tree: Tree) -> list[str]:
    return [node.message.content for node in tree.branch()]


def test_edits_retries_and_undone_questions_stay_in_the_tree() -> None:
    tree = chat()
    first, reply, second, last = tree.branch()
    branching.again(tree)
    assert tree.chat.leaf == second.id
    other = tree.add(Message(role="assistant", content="another"))
    assert tree.children()[second.id] == [last.id, other.id]
    branching.edit(tree, first.id, "in other words")
    assert said(tree) == ["in other words"]
    branching.switch(tree, tree.newest(first.id))
    assert said(tree) == ["question 0", "reply 0", "question 1", "another"]
    assert branching.undo(tree) == "question 1"
    assert tree.chat.leaf == reply.id
    assert len(tree.nodes) == 6
    branching.rewrite(tree, reply.id, "as it should be")
    assert tree.nodes[tree.chat.leaf].edited
    Tree.read(tree.rows()["chat"], tree.rows()["messages"])  # it is a tree still


def test_a_new_question_stands_beside_one_that_got_no_reply() -> None:
    tree = chat()
    branching.ask(tree, "lost")
    branching.ask(tree, "found")
    assert said(tree)[-1] == "found"
    assert len(tree.children()[tree.branch()[-2].id]) == 2


def test_a_branch_becomes_a_chat_of_its_own() -> None:
    tree = chat()
    other = branching.branched(tree, tree.branch()[1].id)
    assert said(other) == ["question 0", "reply 0"]
    assert other.chat.id != tree.chat.id
    assert not set(other.nodes) & set(tree.nodes)
    other.branch()[0].message.content = "changed"
    assert said(tree)[0] == "question 0"


@pytest.mark.parametrize("act", [branching.undo, branching.again, lambda tree: branching.ask(tree, " ")])
def test_what_can_not_be_done_is_told(act: Callable[[Tree], object]) -> None:
    with pytest.raises(ChatError):
        act(Tree())
