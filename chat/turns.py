"""Turns of chats that are kept: a reply, or two to compare, written into the chat's tree as they come.

They go on when their page is closed, for a while, and the page that comes back finds them here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from chat.context import TurnState
from chat.conversation import Conversation, Message
from chat.reply import Sessions
from chat.running import Running
from chat.tree import Compared, Node, Tree, title_of
from core.errors import ChatError

KEPT_S = 600.0  # how long a visitor's page may take to come back for a reply that has ended

Keep = Callable[[str, Tree, Sequence[Node]], None]  # the owner, the chat, and messages that changed


class Busy(ChatError):
    """The chat is being answered already, and that shows itself on the page."""

    def __init__(self) -> None:
        super().__init__("A reply is being written. Stop it first, or wait until it is complete.")


@dataclass(frozen=True)
class Arm:
    """Who answers: a model, with adapters of these strengths (its own where none is named)."""

    model: str
    adapters: Mapping[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class Answers:
    """The replies to the last question of a chat, in the making: one, or two that are compared."""

    owner: str  # who signed in, or a visitor, whose browser keeps the chat
    tree: Tree
    question: Node
    nodes: list[Node] = field(default_factory=list)
    replies: list[Running] = field(default_factory=list)
    gone: bool = False  # the chat was deleted meanwhile
    began: float = field(default_factory=time.monotonic)

    def ended(self) -> bool:
        return bool(self.replies) and all(reply.ended for reply in self.replies)

    def changed_nodes(self) -> list[Node]:
        """The messages that this turn adds to the chat, or changes, as far as they are there."""
        return [self.question, *(node for node in self.nodes if node.id in self.tree.nodes)]


class Turns:
    """The turns that run, by owner and chat: a chat has one at a time, whatever pages it is open in."""

    def __init__(self, sessions: Sessions, keep: Keep) -> None:
        self._sessions, self.keep = sessions, keep
        self._running: dict[tuple[str, str], Answers] = {}
        self._lock = threading.Lock()

    def find(self, owner: str, chat: str) -> Answers | None:
        """The chat's turn that runs, or that ended while no page looked."""
        return self._running.get((owner, chat))

    def begin(
        self,
        tree: Tree,
        owner: str,
        user: str,
        arms: Sequence[Arm],
        extend: bool = False,
        blind: bool = False,
    ) -> Answers:
        """Have the last question of the branch answered by each of `arms`, or its last reply gone on with.

        `user` is for the bound that each has in line. Raises ChatError (Busy); what goes wrong later is
        raised by `follow`.
        """
        leaf = tree.node(tree.chat.leaf)
        answers = Answers(owner, tree, tree.node(leaf.parent) if extend else leaf)
        sampling = tree.chat.sampling.seeded() if len(arms) > 1 else tree.chat.sampling
        changed, prepared = threading.Condition(), []
        for number, arm in enumerate(arms):
            conversation = tree.conversation()
            conversation.use_model(arm.model)
            conversation.adapters, conversation.sampling = dict(arm.adapters), sampling
            node = leaf if extend else _reply_to(leaf, arm)
            answers.nodes.append(node)
            key = f"{owner} {tree.chat.id} {number}"
            states = self._sessions.reply(key, conversation, extend, user)
            written = _written(states, conversation, tree, node, shown=number == 0)
            prepared.append((written, self._stopper(key), self._keeper(answers, node), changed))
        tree.chat.title = tree.chat.title or title_of(answers.question.message.content)
        tree.chat.changed = time.time()
        self._enter(answers)
        left, right = [node.id for node in answers.nodes] if len(arms) == 2 else ("", "")
        tree.chat.compared = Compared(nodes=(left, right), blind=blind) if left else None
        answers.replies += [Running(*reply) for reply in prepared]
        return answers

    def _enter(self, answers: Answers) -> None:
        key, now = (answers.owner, answers.tree.chat.id), time.monotonic()
        with self._lock:
            for other, old in list(self._running.items()):
                if old.ended() and (other == key or now - old.began > KEPT_S):
                    del self._running[other]
            if key in self._running:
                raise Busy
            self._running[key] = answers

    def _stopper(self, key: str) -> Callable[[], None]:
        return lambda: self._sessions.stop(key)

    def _keeper(self, answers: Answers, node: Node) -> Callable[[bool], None]:
        def keep(done: bool) -> None:
            chat = answers.tree.chat
            if done and node.id in answers.tree.nodes and chat.leaf == answers.question.id:
                chat.leaf = node.id  # that it is compared with has failed, or begins later
            if node.id in answers.tree.nodes and not answers.gone:
                self.keep(answers.owner, answers.tree, [answers.question, node])

        return keep

    def stop(self, owner: str, chat: str) -> None:
        """Stop what the chat's turn writes."""
        if answers := self.find(owner, chat):
            for reply in answers.replies:
                reply.stop()

    def forget(self, answers: Answers) -> None:
        """A page has seen how it ended."""
        with self._lock:
            key = answers.owner, answers.tree.chat.id
            if self._running.get(key) is answers:
                del self._running[key]


def _reply_to(question: Node, arm: Arm) -> Node:
    empty = Message(role="assistant", content="")
    return Node(message=empty, parent=question.id, model=arm.model, adapters=dict(arm.adapters))


def _written(
    states: Iterator[TurnState], conversation: Conversation, tree: Tree, node: Node, shown: bool
) -> Iterator[TurnState]:
    """Let `node` have the reply as it grows; it stands in the tree from its first text on."""
    for state in states:
        if node.id not in tree.nodes and conversation.messages[-1].role == "assistant":
            node.message = conversation.messages[-1]
            tree.nodes[node.id] = node
            if shown:
                tree.chat.leaf = node.id
        if shown:
            tree.chat.left_out, tree.chat.tokens = conversation.left_out, conversation.tokens
        yield state
