"""Two replies that are compared: a base with and without its adapter, seeded alike, until the vote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from chat import branching
from chat.llama_server import find_binary
from chat.model_host import Host
from chat.page import Page
from chat.reply import Sessions
from chat.running import follow
from chat.tree import Chat, Node, Tree
from chat.turns import Arm, Turns
from core.engine import Sampling
from core.errors import ChatError
from core.lora import Adapter
from core.registry import Entry, Registry, Source
from tests.integration.test_requests import write_lora


@pytest.fixture(scope="module", params=["in-process", "llama-server"])
def host(
    request: pytest.FixtureRequest, short_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    if request.param == "llama-server" and not find_binary():
        pytest.skip("no llama-server here; run: make test")
    adapter = Adapter(path=str(write_lora(tmp_path_factory.mktemp("loras") / "odd.gguf", 0)))
    sources = [Source(path=str(short_model))]
    entries = {
        "Tuned": Entry(sources=sources, n_ctx=512, adapters=[adapter]),
        "Plain": Entry(sources=sources, n_ctx=512),
    }
    with closing(Host(Registry(Path("models.json").resolve(), entries), request.param)) as opened:
        yield opened


def compared(host: Host, *arms: Arm) -> tuple[Tree, list[Node]]:
    """Have one question answered by each; random, so that alike means seeded alike. One of them may fail."""
    turns = Turns(Sessions(host), lambda owner, tree, nodes: None)
    tree = Tree(Chat(model="Tuned", sampling=Sampling(max_tokens=12, temperature=1)))
    branching.ask(tree, "Tell me of the sea.")
    answers = turns.begin(tree, "anna", "anna", arms, blind=True)
    with suppress(ChatError):
        for _ in follow(answers.replies):
            pass
    return tree, answers.nodes


def test_a_base_is_compared_with_and_without_its_adapter(host: Host) -> None:
    arms = Page(host).arms()
    assert list(arms) == ["Tuned", "Tuned without adapters", "Plain"]
    tree, (tuned, without) = compared(host, arms["Tuned"], arms["Tuned without adapters"])
    assert (tuned.adapters, without.adapters) == ({}, {"odd": 0.0})
    assert tuned.message.content != without.message.content
    again = Tree.read(tree.rows()["chat"], tree.rows()["messages"])  # as after a restart
    assert [node.id for node in again.pair()] == [tuned.id, without.id]
    assert again.chat.compared
    assert again.chat.compared.blind
    assert again.conversation().messages[-1] == tuned.message


def test_both_are_seeded_alike(host: Host) -> None:
    _, (without, plain) = compared(host, Arm("Tuned", {"odd": 0.0}), Arm("Plain"))
    assert without.message.content == plain.message.content != ""


@pytest.mark.parametrize("first", ["Gone", "Plain"])
def test_where_one_of_two_fails_the_others_reply_is_shown(host: Host, first: str) -> None:
    tree, nodes = compared(host, *(Arm(name) for name in (first, "Plain" if first == "Gone" else "Gone")))
    [there] = [node for node in nodes if node.id in tree.nodes]
    assert there.model == "Plain"
    assert tree.branch()[-1] is there
    assert tree.pair() == []
