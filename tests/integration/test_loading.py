"""A load holds nobody up and can be stopped; it fails with its reason, and knows the model's limits."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from chat.conversation import Conversation
from chat.llama_server import LlamaServerEngine
from chat.model_host import Host
from chat.reply import Sessions
from core.engine import LoadCancelled, Request, Sampling
from core.errors import ChatError, ModelFileError
from core.gguf_model import read_gguf
from core.in_process import InProcessEngine
from tests.integration.scripted_gguf import CONTROL, UINT32, USER_DEFINED, edited, scripted, split
from tests.integration.test_host import host_of, wait_until

ENGINES = {"in-process": InProcessEngine, "llama-server": LlamaServerEngine}
SECONDS = 15  # for what is done in one, on a machine that does other things too


@pytest.fixture(scope="module")
def tiny(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that answers anything with "Hello world!"."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    scripted(embedded_model, path, ["Hello", " world", "!"])
    return path


def servers() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True) if "llama" in child.name()}


def said(host: Host, name: str) -> str:
    conversation = Conversation(model=name, sampling=Sampling(max_tokens=20, temperature=0, repeat_penalty=1))
    conversation.say("Anything.")
    return [progress.text for progress in Sessions(host).reply("tab", conversation)][-1]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_load_that_nobody_wants_any_more_ends_at_once(engine: str, embedded_model: Path) -> None:
    began, before = time.monotonic(), servers()

    def cancelled() -> bool:
        return time.monotonic() - began > 0.05

    with pytest.raises(LoadCancelled, match=r"Stopped while .*gguf was being loaded"):
        ENGINES[engine](embedded_model, 512, 1, cancelled=cancelled)
    assert time.monotonic() - began < SECONDS
    assert servers() == before


@pytest.mark.parametrize("engine", ENGINES)
def test_no_lock_is_held_over_a_load_and_who_waits_can_leave(engine: str, embedded_model: Path) -> None:
    host = host_of(engine, small=(embedded_model, 256))
    sessions = Sessions(host)
    failures: list[str] = []

    def choose() -> None:
        try:
            list(sessions.prepare("tab", "small"))
        except ChatError as error:
            failures.append(str(error))

    choice = threading.Thread(target=choose)
    choice.start()
    wait_until(lambda: bool(host._loading))
    began = time.monotonic()
    assert host.menu()
    assert host._changed.acquire(timeout=1)
    host._changed.release()
    sessions.stop("tab")
    choice.join(SECONDS)
    assert not choice.is_alive()
    assert failures == ["Stopped while small was being loaded."]
    host.close()
    assert time.monotonic() - began < SECONDS
    with pytest.raises(ChatError, match="The app is ending"), host.use("small"):
        pass


@pytest.mark.parametrize("engine", ENGINES)
def test_closing_ends_a_load_in_seconds(engine: str, embedded_model: Path) -> None:
    host, before = host_of(engine, small=(embedded_model, 256)), servers()

    def use() -> None:
        with pytest.raises(ChatError, match="The app is ending"), host.use("small"):
            time.sleep(60)

    user = threading.Thread(target=use)
    user.start()
    wait_until(lambda: bool(host._loading))
    began = time.monotonic()
    host.close()
    user.join(SECONDS)
    assert time.monotonic() - began < SECONDS
    assert servers() == before


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({}, "unknown model architecture: 'lamma'"),
    "tensor": ({"drop": ["blk.0.attn_q.weight"]}, "tensor 'blk.0.attn_q.weight' not found"),
    "key": ({"drop": ["llama.block_count"]}, "key not found in model: llama.block_count"),
    "shape": (
        {"changes": {"llama.feed_forward_length": 64}},
        "tensor 'blk.0.ffn_gate.weight' has wrong shape",
    ),
    "tokenizer": ({"changes": {"tokenizer.ggml.model": "odd"}}, "unknown tokenizer: 'odd'"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("what", BROKEN)
def test_the_first_reason_is_told_by_both_engines(engine: str, what: str, tiny: Path, tmp_path: Path) -> None:
    changes, reason = BROKEN[what]
    path = edited(tiny, tmp_path / "broken.gguf", **changes)
    if what == "architecture":
        path.write_bytes(path.read_bytes().replace(b"llama", b"lamma", 1))
    with pytest.raises(ModelFileError, match=r"broken\.gguf could not be loaded: ") as caught:
        ENGINES[engine](path, 256, 1)
    assert str(caught.value).split("loaded: ", 1)[1].startswith(reason)


# In a Python of its own, whose memory is limited: one token of context takes 512 bytes, 16 million 8 GB.
TOO_LITTLE = """
import resource, sys
from pathlib import Path
from core.in_process import InProcessEngine
from chat.llama_server import LlamaServerEngine
from core.errors import ModelFileError

resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
for kind in (InProcessEngine, LlamaServerEngine):
    try:
        kind(Path(sys.argv[1]), 2**24, 1)
    except ModelFileError as error:
        print(error)
"""


def test_a_context_that_cannot_be_allocated_is_told_as_that(tiny: Path, tmp_path: Path) -> None:
    path = edited(tiny, tmp_path / "long.gguf", {"llama.context_length": 2**24})
    done = subprocess.run(
        [sys.executable, "-c", TOO_LITTLE, str(path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for line in lines:
        assert re.search(r"the memory is too small: .*allocate", line)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_split_model_replies(engine: str, tiny: Path, tmp_path: Path) -> None:
    parts = split(tiny, tmp_path, "tiny", [0, 5, 0])
    with closing(host_of(engine, tiny=(parts[1], 256))) as host:
        assert said(host, "tiny") == "Hello world!"


@pytest.mark.parametrize("engine", ENGINES)
def test_the_context_is_at_most_what_the_model_was_trained_on(
    engine: str, tiny: Path, tmp_path: Path
) -> None:
    path = edited(tiny, tmp_path / "short.gguf", {"llama.context_length": 384})
    with closing(host_of(engine, short=(path, 4096), tiny=(tiny, 300))) as host:
        with host.use("short") as model:
            assert model.engine.n_ctx == 384
            assert "a context of 384 tokens, which it was trained on, and not the 4,096" in model.warning
        with host.use("tiny") as model:
            assert (model.engine.n_ctx, model.warning) == (300, "")


CHATML = (
    "{% for m in messages %}{{ '<|begin|>' + m.role + '\n' + m.content + END + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|begin|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED, None], ids=["control", "user-defined", "no token"])
def test_a_reply_stops_at_the_end_that_the_template_writes(
    engine: str, kind: int | None, embedded_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "odd.gguf"
    end = ["<|my_end|>"] if kind else ["[", "end", "]"]
    template = CHATML.replace("END", repr("".join(end)))
    extra = [(surface, kind) for surface in end] if kind else []
    scripted(embedded_model, path, ["Hello", " world", *end, "User", " again"], template, extra)
    with closing(host_of(engine, odd=(path, 256))) as host:
        assert said(host, "odd") == "Hello world"
        with host.use("odd") as model:
            assert model.end.token == (model.file.vocab.size - 1 if kind else None)
            ids = model.engine.tokenize("Hello", False)
            generation = model.engine.generate(
                Request(ids, Sampling(temperature=0, repeat_penalty=1, max_tokens=9))
            )
            text = "".join(chunk.text for chunk in generation)
            if kind:
                assert (text, generation.stats.finish_reason) == (" world", "stop")
                assert len(generation.stats.ids) == 1
        short = Sampling(max_tokens=2, temperature=0, repeat_penalty=1)
        conversation = Conversation(model="odd", sampling=short)
        conversation.say("Anything.")
        sessions = Sessions(host)
        assert [*sessions.reply("tab", conversation)][-1].stats.finish_reason == "length"
        conversation.sampling = short.model_copy(update={"max_tokens": 20})
        assert [*sessions.reply("tab", conversation, extend=True)][-1].text == "Hello world"
        assert conversation.messages[-1].finish_reason == "stop"
        assert not conversation.can_continue()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_template_end_stops_in_a_file_that_names_other_ends(
    engine: str, embedded_model: Path, tmp_path: Path
) -> None:
    """The file's own ends of turn and of message go on ending replies."""
    path, template = tmp_path / "ends.gguf", CHATML.replace("END", "'<|my_end|>'")
    extra = [(f"<|{name}|>", CONTROL) for name in ("my_end", "its_eot", "its_eom")]
    size = read_gguf(embedded_model).n_vocab
    named = {
        "tokenizer.ggml.eot_token_id": (size + 1, UINT32),
        "tokenizer.ggml.eom_token_id": (size + 2, UINT32),
    }
    for end in ("<|my_end|>", "<|its_eot|>", "<|its_eom|>"):
        scripted(embedded_model, path, ["Hello", " world", end, "User"], template, extra, named)
        with closing(host_of(engine, odd=(path, 256))) as host:
            assert said(host, "odd") == "Hello world"


def test_a_stop_keeps_the_text_of_every_id(embedded_model: Path) -> None:
    with closing(LlamaServerEngine(embedded_model, 512, 1)) as engine:
        ids = engine.tokenize("Once upon a time", False)
        for after in range(1, 9):
            generation = engine.generate(Request(ids, Sampling(temperature=0, max_tokens=200)))
            text, pieces = "", 0
            for chunk in generation:
                text, pieces = text + chunk.text, pieces + bool(chunk.text)
                if pieces == after:
                    generation.cancel()
            assert generation.stats.finish_reason == "cancelled"
            assert engine.tokenize(text, False) == generation.stats.ids


def test_a_server_that_is_killed_as_its_load_ends_is_not_handed_out(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwanted, request = threading.Event(), LlamaServerEngine._request

    def slow(self: LlamaServerEngine, method: str, path: str, body: str | None = None) -> Any:
        answer = request(self, method, path, body)
        if path == "/props":  # the last one
            unwanted.set()
            time.sleep(0.3)
        return answer

    monkeypatch.setattr(LlamaServerEngine, "_request", slow)
    with pytest.raises(LoadCancelled):
        LlamaServerEngine(tiny, 256, 1, cancelled=unwanted.is_set)


def test_a_request_that_was_refused_is_not_why_a_server_died(tiny: Path) -> None:
    with closing(LlamaServerEngine(tiny, 256, 1)) as engine:
        with pytest.raises(ChatError, match="exceeds the available context"):
            engine._request("POST", "/completion", '{"prompt": %s}' % ([1] * 999))
        psutil.Process(engine._process.pid).children()[0].kill()  # type: ignore[union-attr]
        assert "the system killed llama-server" in str(engine.died())
        engine.close()
        assert "the model was unloaded" in str(engine.died())
