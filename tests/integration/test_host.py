"""The one model that all chats share: swapped in turn, and kept when another one fails."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest

from chat.conversation import Conversation
from chat.llama_server import find_binary
from chat.loaded import bytes_needed
from chat.model_host import Host
from chat.reply import Sessions
from chat.turn_queue import Waiting
from core.engine import Sampling
from core.errors import ChatError, ModelFileError, Stopped
from core.machine import bytes_for_models
from core.registry import Entry, Registry, Source
from tests.integration.scripted_gguf import edited

PATIENCE_S = 120  # a busy machine with two cores
T = TypeVar("T")


def no_memory(held: int) -> int:
    """The memory of a machine that has room for one model at a time."""
    return 0


def host_of(engine: str, memory: Callable[[int], int] = bytes_for_models, **models: tuple[Path, int]) -> Host:
    """A host that offers `models`, each a file and its context."""
    entries = {
        name: Entry(sources=[Source(path=str(path))], n_ctx=n_ctx) for name, (path, n_ctx) in models.items()
    }
    return Host(Registry(Path("models.json").resolve(), entries), engine, memory=memory)


@pytest.fixture
def host(embedded_model: Path) -> Iterator[Host]:
    models = {"small": (embedded_model, 256), "large": (embedded_model, 512)}
    with closing(host_of("in-process", no_memory, **models)) as host:
        yield host


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


class Visit(threading.Thread):
    """A turn of another chat that needs the model `name`, and what it did there."""

    def __init__(self, host: Host, name: str, act: Callable[[], object] = lambda: None) -> None:
        super().__init__(daemon=True)
        self.host, self.model, self.act = host, name, act
        self.been = False

    def run(self) -> None:
        with self.host.use(self.model):
            self.act()
            self.been = True

    def queue(self) -> Visit:
        """Start, and return when the turn stands in line."""
        before = len(self.host.queue.waiting)
        self.start()
        wait_until(lambda: len(self.host.queue.waiting) > before)
        return self


def reply(host: Host, model: str, text: str = "Say hello.") -> str:
    conversation = Conversation(model=model, sampling=Sampling(max_tokens=8, temperature=0))
    conversation.say(text)
    return [progress.text for progress in Sessions(host).reply("tab", conversation)][-1]


def test_a_swap_waits_for_whoever_uses_the_model_and_then_happens(host: Host) -> None:
    with host.use("small") as small:
        swap = Visit(host, "large").queue()
        swap.join(0.5)
        assert swap.is_alive()
        assert small.engine.alive()
    swap.join(PATIENCE_S)
    assert swap.been
    assert not small.engine.alive(), "its memory is free again"


def test_nobody_overtakes_a_swap_that_waits(host: Host) -> None:
    order: list[str] = []
    with host.use("small"):
        visits = [
            Visit(host, name, lambda name=name: order.append(name)).queue()
            for name in ("large", "small", "large", "small")
        ]
    for visit in visits:
        visit.join(PATIENCE_S)
    assert order == ["large", "small", "large", "small"]


def test_a_swap_happens_though_the_old_model_always_has_users(host: Host) -> None:
    swapped = threading.Event()

    def keep_busy() -> None:
        while not swapped.is_set():
            with host.use("small"):
                time.sleep(0.02)

    with host.use("small"):
        users = [threading.Thread(target=keep_busy, daemon=True) for _ in range(4)]
        for user in users:
            user.start()
        swap = Visit(host, "large", swapped.set)
        swap.start()
    assert swapped.wait(PATIENCE_S)
    for thread in (swap, *users):
        thread.join(PATIENCE_S)


def test_a_turn_that_waits_for_another_model_can_be_stopped(host: Host) -> None:
    sessions = Sessions(host)
    conversation = Conversation(model="large")
    conversation.say("Say hello.")
    with host.use("small"):
        turn = sessions.reply("tab", conversation)
        next(turn)
        waiting = next(turn).waiting
        assert waiting == Waiting(1, 1, "replies of small come first")
        threading.Timer(0.3, sessions.stop, ["tab"]).start()
        with pytest.raises(Stopped, match="Stopped while replies of small came first"):
            next(turn)
    assert [m.role for m in conversation.messages] == ["user"]
    assert reply(host, "large"), "nobody stands in line any more"


@pytest.mark.skipif(not find_binary(), reason="no llama-server here; run: make test")
def test_chats_that_waited_behind_a_swap_use_their_model_together(embedded_model: Path) -> None:
    """llama-server's slots would be of no use if the chats came one after the other."""
    together = threading.Barrier(3)
    models = {"small": (embedded_model, 256), "large": (embedded_model, 512)}
    with closing(host_of("llama-server", no_memory, **models)) as host:
        with host.use("small"):
            swap = Visit(host, "large").queue()
            visits = [Visit(host, "small", lambda: together.wait(PATIENCE_S)).queue() for _ in range(3)]
        for visit in (swap, *visits):
            visit.join(PATIENCE_S)
        assert all(visit.been for visit in visits)


def test_a_model_that_fails_to_load_leaves_the_first_one_usable(embedded_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    shutil.copyfile(embedded_model, other)
    with other.open("r+b") as file:
        start = file.read(4096)
        file.seek(start.index(b"llama", start.index(b"general.architecture")))
        file.write(b"lamma")
    with closing(host_of("in-process", good=(embedded_model, 256), bad=(other, 256))) as host:
        before = reply(host, "good")
        with pytest.raises(ChatError, match=r"other\.gguf could not be loaded.*lamma"):
            reply(host, "bad")
        assert reply(host, "good") == before != ""


def test_a_vocabulary_without_weights_is_refused(embedded_model: Path, llama_models: Path) -> None:
    vocabulary = next(llama_models.glob("ggml-vocab-*.gguf"))
    with closing(
        host_of("in-process", no_memory, good=(embedded_model, 256), empty=(vocabulary, 256))
    ) as host:
        assert reply(host, "good")
        with host.use("good") as good:
            pass
        with pytest.raises(ModelFileError, match="a vocabulary and no weights"):
            reply(host, "empty")
        assert good.engine.alive(), "it was not thrown out for a file that can't be used"


def test_a_model_that_needs_more_memory_than_there_is_is_refused_with_both_numbers(
    embedded_model: Path, tmp_path: Path
) -> None:
    long = edited(embedded_model, tmp_path / "long.gguf", {"llama.context_length": 2**24})
    with closing(host_of("in-process", huge=(long, 2**24), good=(embedded_model, 256))) as host:
        assert reply(host, "good")
        with pytest.raises(ModelFileError, match=r"huge needs [\d.]+ GB .* 16,777,216 .* allows [\d.]+ GB"):
            reply(host, "huge")
        assert reply(host, "good")


def test_an_unknown_model_is_refused_with_the_known_names(host: Host) -> None:
    with pytest.raises(ChatError, match="No model is called 'tiny'; choose one of: small, large"):
        reply(host, "tiny")


def test_models_that_fit_stay_loaded_and_take_turns(embedded_model: Path) -> None:
    models = {"small": (embedded_model, 256), "large": (embedded_model, 512)}
    with closing(host_of("in-process", lambda held: 10**12, **models)) as host:
        with host.use("small") as small:
            pass
        with host.use("large") as large:
            assert small.engine.alive()
            visit = Visit(host, "small").queue()
            visit.join(0.3)
            assert visit.is_alive(), "two that compute at once slow each other down"
        visit.join(PATIENCE_S)
        assert visit.been
        assert large.engine.alive()


def test_the_model_that_was_used_least_recently_makes_room(embedded_model: Path) -> None:
    models = dict.fromkeys(("a", "b", "c"), (embedded_model, 256))
    entry = Entry(sources=[Source(path=str(embedded_model))], n_ctx=256)
    room = 2 * bytes_needed("in-process", entry, embedded_model)
    with closing(host_of("in-process", lambda held: room, **models)) as host:
        used = {}
        for name in ("a", "b", "a", "c"):
            with host.use(name) as model:
                used[name] = model
        assert [name for name, model in used.items() if model.engine.alive()] == ["a", "c"]


@pytest.mark.skipif(not find_binary(), reason="no llama-server here; run: make test")
def test_prompts_are_counted_side_by_side_and_replies_begin_in_order(embedded_model: Path) -> None:
    """Of sixteen who come at once, the last need not wait until fifteen prompts have been tokenised."""
    with closing(host_of("llama-server", small=(embedded_model, 256))) as host:
        assert reply(host, "small"), "it has measured its batch"
        tickets = [host.join("small") for _ in range(3)]
        engines = [through(host.enter(ticket)).engine for ticket in tickets]
        cells = engines[0].n_cells
        last = host.admit(tickets[2], 1)
        assert next(last).reason == "other replies come first", "though it was counted sooner, and fits"
        through(host.admit(tickets[0], cells - 10))
        second = host.admit(tickets[1], 11)
        assert next(second).place == 1
        assert next(host.admit(tickets[2], 1)).place == 2, "nobody overtakes who doesn't fit yet"
        host.leave(tickets[0])
        through(second)
        through(last)
        for ticket in tickets[1:]:
            host.leave(ticket)
        assert not host.queue.waiting
        assert host.queue.running == 0


def through(steps: Generator[object, None, T]) -> T:
    """What `steps` end with; they must not wait."""
    with pytest.raises(StopIteration) as end:
        raise AssertionError(f"it waits: {next(steps)}")
    result: T = end.value.value
    return result
