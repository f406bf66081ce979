"""What many users at once are promised, on the real model: short runs, or whole ones by `make test-all`."""

from __future__ import annotations

import multiprocessing
import os
import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from chat import llama_server
from chat.context import TurnState
from chat.conversation import Conversation, Message
from chat.llama_server import LlamaServerEngine, find_binary
from chat.reply import Sessions
from core.engine import Sampling
from core.errors import ChatError, EngineDied, TooLong
from core.in_process import InProcessEngine
from tests.integration.test_host import host_of, no_memory

pytestmark = pytest.mark.skipif(not find_binary(), reason="no llama-server here; run: make test")
WHOLE = os.environ.get("TUNE2CHAT_TEST_ALL") == "1"
ENGINES = ("in-process", "llama-server")
IDLE_S, SLACK_S = 1.0, 4.0  # half of the stops, and any of them on a machine that does other things too
PATIENCE_S = 1500


def short(few: int, all_of_them: int) -> int:
    return all_of_them if WHOLE else few


@pytest.fixture(scope="module", params=ENGINES)
def sessions(request: pytest.FixtureRequest, embedded_model: Path) -> Iterator[Sessions]:
    with one_core(), closing(host_of(request.param, small=(embedded_model, 512))) as host:
        yield Sessions(host)


class one_core:
    """On a busy machine, two threads mostly wait for one another."""

    def __enter__(self) -> None:
        self.allowed = os.sched_getaffinity(0)
        if not WHOLE:
            os.sched_setaffinity(0, [min(self.allowed)])

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self.allowed)


def chat(text: str, max_tokens: int = 12, model: str = "small") -> Conversation:
    conversation = Conversation(model=model, sampling=Sampling(max_tokens=max_tokens, temperature=0))
    conversation.say(text)
    return conversation


def last(replies: Iterator[TurnState]) -> TurnState:
    return deque(replies, maxlen=1)[0]


def at_once(count: int, act: Callable[[int], object]) -> None:
    """Let `count` users act at once; what one of them raises is raised here."""
    failures: list[BaseException] = []

    def run(user: int) -> None:
        try:
            act(user)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=run, args=(user,), daemon=True) for user in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


def resident() -> int:
    """KiB of this process and its children, without what is mapped from files, which others map too."""
    here = psutil.Process()
    tables = [Path(f"/proc/{p.pid}/smaps_rollup").read_text() for p in [here, *here.children(recursive=True)]]
    return sum(
        int(line.split()[1]) for table in tables for line in table.splitlines() if "Anonymous:" in line
    )


def engine_of(sessions: Sessions) -> LlamaServerEngine | InProcessEngine:
    with sessions.host.use("small") as model:
        assert isinstance(model.engine, LlamaServerEngine | InProcessEngine)
        return model.engine


def test_sixteen_users_get_equal_shares(embedded_model: Path) -> None:
    """No error, nobody waits more than twice the mean, and the memory stays flat."""
    with closing(host_of("llama-server", small=(embedded_model, 512))) as host:
        sessions, waits = Sessions(host), {user: list[float]() for user in range(16)}
        last(sessions.reply("first", chat("Hello.")))

        def use(user: int) -> None:
            while time.monotonic() < end:
                began = time.monotonic()
                progress = last(sessions.reply(f"tab {user}", chat(f"Tell of user {user}."), user=str(user)))
                waits[user].append(time.monotonic() - began)
                assert progress.stats.finish_reason in ("length", "stop")

        resident_before = 0
        for seconds in (5, short(10, 180)):
            end = time.monotonic() + seconds
            at_once(16, use)
            resident_before = resident_before or resident()
        assert resident() < resident_before * 1.05
        means = [statistics.mean(each) for each in waits.values()]
        assert max(means) < 2 * statistics.mean(means)
        assert not host.queue.waiting
        assert host.queue.running == 0
        assert set(host.queue.counts.finished) <= {"length", "stop"}


@pytest.mark.parametrize("engine", ENGINES)
def test_switching_models_ends_no_reply_and_gives_memory_back(engine: str, embedded_model: Path) -> None:
    """In a fresh process, as the app is one: what other tests have used and left would be used first."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        figures = fresh.submit(memory_after_switches, engine, embedded_model).result(PATIENCE_S)
    assert figures[1] < figures[0] * 1.05, figures


def memory_after_switches(engine: str, file: Path) -> list[int]:
    """KiB after a few switches of models by two users who write at the same time, and after more of them."""
    llama_server.MIN_BATCH = llama_server.MAX_BATCH = 128  # else a busy machine's changes, and memory with it
    models = {"small": (file, 256), "other": (file, 512)}
    with one_core(), closing(host_of(engine, no_memory, **models)) as host:
        sessions = Sessions(host)

        def use(user: int, switches: int) -> None:
            for turn in range(switches):
                name = ("small", "other")[(turn + user) % 2]
                progress = last(sessions.reply(f"tab {user}", chat("Tell a long story.", 16, name)))
                assert progress.stats.finish_reason == "length"

        figures = []
        for switches in (2, short(2, 10)):
            at_once(2, lambda user, switches=switches: use(user, switches))
            last(sessions.reply("tab", chat("Tell a long story.", 16)))
            figures.append(resident())
        return figures


def test_nothing_is_too_long_to_be_answered_or_refused(sessions: Sessions) -> None:
    draw = random.Random(0)

    def ask(_: int) -> None:
        for _ in range(short(3, 25)):
            conversation = chat("And?", 400)
            words = draw.choice([5, 300, 3000, 5000])
            conversation.messages = [
                Message(role=role, content="sea " * draw.randint(1, words) + str(draw.random()))
                for _ in range(draw.randint(0, 3))
                for role in ("user", "assistant")
            ]
            conversation.say("And so? " * draw.choice([1, 50, 200, 1500]))
            conversation.sampling = Sampling(max_tokens=draw.choice([1, 20, 4096]), temperature=0)
            with suppress(TooLong):
                for progress in (running := sessions.reply(str(id(conversation)), conversation)):
                    if progress.generated_tokens > 60 and draw.random() < 0.5:
                        running.close()  # type: ignore[attr-defined]
                        break
                else:
                    assert progress.stats.finish_reason in ("stop", "length")

    at_once(4, ask)


def test_replies_that_do_not_fit_the_cache_together_wait_for_one_another(embedded_model: Path) -> None:
    """llama-server would answer all of them with an error when its cache is full."""
    waited, ended = [], []
    with one_core(), closing(host_of("llama-server", small=(embedded_model, 256))) as host:
        sessions = Sessions(host)
        last(sessions.reply("first", chat("Hello.")))

        def ask(user: int) -> None:
            for progress in sessions.reply(f"tab {user}", chat(f"{user} " + "sea and sky " * 55, 4096)):
                waited.append(progress.waiting)
            ended.append(progress.prompt_tokens + progress.generated_tokens)

        at_once(6, ask)
        assert len(ended) == 6
        assert sum(ended) > 4 * 256 == engine_of(sessions).n_cells
        assert any(waiting and waiting.reason == "other replies come first" for waiting in waited)


def test_the_engine_is_idle_soon_after_a_stop_at_any_moment(sessions: Sessions) -> None:
    engine, draw, seconds = engine_of(sessions), random.Random(1), []
    if isinstance(engine, LlamaServerEngine):

        def idle() -> bool:
            return any("stop processing" in line for line in list(engine.log))
    else:

        def idle() -> bool:
            return engine.entered == 0

    for number in range(short(10, 100)):
        if isinstance(engine, LlamaServerEngine):
            engine.log.clear()
        stopped = threading.Timer(draw.uniform(0.01, 1.0), sessions.stop, ["tab"])
        reply = sessions.reply("tab", chat(f"{number} " + "A tale of the sea. " * draw.choice([1, 70]), 400))
        next(reply)
        stopped.start()
        progress = last(reply)
        began = time.monotonic()
        if progress.stats.finish_reason == "cancelled" and progress.prompt_tokens:
            while not idle():
                time.sleep(0.005)
                assert time.monotonic() - began < SLACK_S
        seconds.append(time.monotonic() - began)
        stopped.join()
    assert statistics.median(seconds) < IDLE_S


def test_nobody_gets_to_see_what_another_wrote(sessions: Sessions) -> None:
    users, turns = short(4, 8), short(3, 20)
    canaries = [f"{random.Random(user).getrandbits(40):x}" for user in range(users)]
    told: dict[int, list[str]] = {user: [] for user in range(users)}

    def ask(user: int) -> None:
        conversation, greedy = chat(f"My word is {canaries[user]}."), Sampling(max_tokens=12, temperature=0)
        greedy = greedy.model_copy(update={"repeat_penalty": 1})
        for turn in range(turns):
            if turn % 2:
                last(sessions.reply(f"tab {user}", conversation, user=str(user)))
                told[user].append(conversation.messages[-1].content)
                conversation.say(f"Say my word {canaries[user]}.")
            else:
                text = f"{canaries[user]} " * 12  # any model goes on with that
                told[user].append(last(sessions.complete(f"tab {user}", "small", text, greedy)).text)

    at_once(users, ask)
    engine = engine_of(sessions)
    log = "\n".join(engine.log) if isinstance(engine, LlamaServerEngine) else ""
    for user, canary in enumerate(canaries):
        assert canary not in log
        others = [text for other in told if other != user for text in told[other]]
        assert not any(canary in text for text in others)
    assert any(canaries[user] in text for user in told for text in told[user]), "else this shows nothing"
    if isinstance(engine, LlamaServerEngine):
        with pytest.raises(ChatError, match="does not support"):
            engine._request("GET", "/slots")


def test_a_child_killed_at_any_moment_costs_no_chat(embedded_model: Path) -> None:
    draw = random.Random(2)
    with one_core(), closing(host_of("llama-server", small=(embedded_model, 512))) as host:
        sessions = Sessions(host)
        for _ in range(short(4, 30)):
            engine = engine_of(sessions)
            assert isinstance(engine, LlamaServerEngine)
            (server,) = psutil.Process(engine._process.pid).children()  # type: ignore[union-attr]
            conversation = chat("Tell of the sea. " * draw.choice([1, 60]), 150)
            question = conversation.messages[0].content
            killer = threading.Timer(draw.uniform(0, 2), server.kill)
            killer.start()
            with suppress(EngineDied):
                last(sessions.reply("tab", conversation))
            killer.join()
            assert conversation.messages[0].content == question
            assert len(conversation.messages) <= 2
            if len(conversation.messages) == 2:
                conversation.messages.pop()
            conversation.sampling = Sampling(max_tokens=4, temperature=0)
            assert last(sessions.reply("tab", conversation)).text
