"""Real models with known replies, on both engines: thoughts stay apart from answers all the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from chat.conversation import Conversation
from chat.llama_server import find_binary
from chat.model_host import Host
from chat.reply import Sessions
from core.engine import Sampling
from core.entry import Entry, Source
from core.registry import Registry
from tests.integration.scripted_gguf import CONTROL, USER_DEFINED, scripted

GREEDY = Sampling(temperature=0, repeat_penalty=1, max_tokens=40)
THOUGHT = ["Let", " me", " see", "."]
# Template, marks that join the vocabulary, and what the model answers to anything.
MODELS = {
    "a prompt that opens the thought": ("Qwen3.5-4B", {}, [*THOUGHT, "</think>", "\n\n", "Paris"]),
    "control tokens": (
        "ByteDance-Seed-OSS",
        dict.fromkeys(["<seed:think>", "</seed:think>"], CONTROL),
        ["<seed:think>", *THOUGHT, "</seed:think>", "Paris"],
    ),
    "user-defined tokens": (
        "MiniMax-M3",
        dict.fromkeys(["<mm:think>", "</mm:think>"], USER_DEFINED),
        ["<mm:think>", *THOUGHT, "</mm:think>", "Paris"],
    ),
    "marks around the answer too": (
        "Cohere2MoE",
        dict.fromkeys(["<|START_THINKING|>", "<|END_THINKING|>", "<|START_TEXT|>", "<|END_TEXT|>"], CONTROL),
        [*THOUGHT, "<|END_THINKING|>", "<|START_TEXT|>", "Paris", "<|END_TEXT|>"],
    ),
}


@pytest.fixture(scope="module", params=["in-process", "llama-server"])
def sessions(
    request: pytest.FixtureRequest,
    embedded_model: Path,
    llama_models: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Sessions]:
    if request.param == "llama-server" and not find_binary():
        pytest.skip("no llama-server here; run: make test")
    folder, entries = tmp_path_factory.mktemp("thoughts"), {}
    for name, (template, marks, script) in MODELS.items():
        file = folder / f"{template}.gguf"
        extra = list(marks.items()) + ([("</think>", USER_DEFINED)] if "</think>" in script else [])
        scripted(
            embedded_model,
            file,
            script,
            (llama_models / "templates" / f"{template}.jinja").read_text(),
            extra,
        )
        entries[name] = Entry(sources=[Source(path=str(file))], n_ctx=2048)
    with closing(Host(Registry(folder / "models.json", entries), request.param)) as host:
        yield Sessions(host)


@pytest.mark.parametrize("name", MODELS)
def test_a_thought_is_told_from_the_answer_and_goes_on_after_a_cut(sessions: Sessions, name: str) -> None:
    conversation = Conversation(model=name, sampling=GREEDY)
    conversation.say("What is the capital of France?")
    seen = [conversation.messages[-1].reply() for _ in sessions.reply("tab", conversation)]
    assert conversation.messages[-1].reply() == ("Let me see.", "Paris", False)
    assert all("Paris".startswith(reply.answer) for reply in seen[1:] if reply.thought)
    whole = conversation.messages[-1]
    length = len([word for word in MODELS[name][2] if word != "<|END_TEXT|>"])  # which ends a reply
    for cut in (length - 4, length):  # inside the thought, and before the end of the answer is told
        conversation.messages.pop()
        conversation.sampling = GREEDY.model_copy(update={"max_tokens": cut})
        list(sessions.reply("tab", conversation))
        assert conversation.messages[-1].finish_reason == "length"
        conversation.sampling = GREEDY
        for app in ("the same", "started anew"):
            again = conversation.model_copy(deep=True)
            with sessions.host.use(name) as model:
                if app == "started anew":
                    model.replies.clear()
            list(sessions.reply("tab", again, extend=True))
            assert again.messages[-1].reply() == whole.reply()
