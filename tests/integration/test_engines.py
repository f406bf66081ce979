"""Both engines, on the real embedded model: the same contract."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chat.llama_server import LlamaServerEngine
from core.engine import PENALTY_WINDOW, Engine, Generation, Request, Sampling
from core.errors import ChatError, ModelFileError
from core.in_process import InProcessEngine
from core.machine import thread_count

GREEDY = Sampling(temperature=0, repeat_penalty=1, max_tokens=24, seed=0)
SLACK_S = 4.0  # for a machine that does other things too; the figures themselves are `make bench`'s


@pytest.fixture(
    scope="module", params=[InProcessEngine, LlamaServerEngine], ids=["in-process", "llama-server"]
)
def engine(request: pytest.FixtureRequest, embedded_model: Path) -> Iterator[Engine]:
    opened: Engine = request.param(embedded_model, 4096, thread_count())
    yield opened
    opened.close()


def prompt(engine: Engine, text: str) -> list[int]:
    return engine.tokenize(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n", True)


def read(generation: Generation) -> str:
    return "".join(chunk.text for chunk in generation)


def test_a_reply_ends_at_its_stop_token_which_is_not_part_of_it(engine: Engine) -> None:
    generation = engine.generate(Request(prompt(engine, "What is the capital of France?"), GREEDY))
    assert "Paris" in read(generation)
    assert generation.stats.finish_reason == "stop"
    assert not {0, 1, 2} & set(generation.stats.ids)
    assert generation.stats.generated_tokens == len(generation.stats.ids)


def test_a_reply_that_reaches_its_limit_says_so(engine: Engine) -> None:
    generation = engine.generate(Request(prompt(engine, "Tell a long story."), GREEDY))
    read(generation)
    assert generation.stats.finish_reason == "length"
    assert len(generation.stats.ids) == GREEDY.max_tokens


def test_characters_of_several_tokens_arrive_whole_and_with_all_their_ids(engine: Engine) -> None:
    text = "Repeat exactly: 😀🎉 naïve café 漢字 😀🎉"
    generation = engine.generate(Request(prompt(engine, text), GREEDY.model_copy(update={"max_tokens": 80})))
    said = read(generation)
    assert any(ord(letter) > 0xFFFF for letter in said), said
    assert "\ufffd" not in said
    assert -1 not in generation.stats.ids
    assert len(generation.stats.ids) == generation.stats.generated_tokens
    assert (
        generation.stats.ids != engine.tokenize(said, True) or said
    )  # they may differ: that is why ids are kept


def test_the_same_seed_gives_the_same_reply_and_the_seed_used_is_told(engine: Engine) -> None:
    sampling = Sampling(max_tokens=16, seed=7)
    first, second = (engine.generate(Request(prompt(engine, "Name an animal."), sampling)) for _ in range(2))
    read(engine.generate(Request(prompt(engine, "Name an animal."), sampling)))  # the cache is warm for both
    assert read(first) == read(second)
    drawn = engine.generate(Request(prompt(engine, "Hi"), Sampling(max_tokens=1)))
    read(drawn)
    assert (
        drawn.stats.seed != engine.generate(Request(prompt(engine, "Hi"), Sampling(max_tokens=1))).stats.seed
    )


def test_a_prompt_that_begins_like_the_last_one_is_not_evaluated_again(engine: Engine) -> None:
    ids = prompt(engine, "Count the words of this sentence, please. " * 20)
    first = engine.generate(Request(ids, GREEDY))
    read(first)
    longer = ids + first.stats.ids + engine.tokenize("<|im_end|>\n<|im_start|>user\nAgain.<|im_end|>\n", True)
    second = engine.generate(Request(longer, GREEDY))
    read(second)
    assert second.stats.cached_tokens >= len(ids) + len(first.stats.ids) - 1
    assert second.stats.prompt_tokens == len(longer)


@pytest.mark.parametrize("stop_at", ["prompt", "reply"])
def test_stop_ends_the_reply_and_frees_the_engine(engine: Engine, stop_at: str) -> None:
    words = f"The {stop_at} is long. " * (600 if stop_at == "prompt" else 1)
    generation = engine.generate(
        Request(prompt(engine, words), Sampling(temperature=0, max_tokens=2000, repeat_penalty=1))
    )
    chunks = iter(generation)
    for chunk in chunks:
        if (0 < chunk.prompt_done < len(words)) if stop_at == "prompt" else chunk.text:
            break
    stopped = time.monotonic()
    generation.cancel()
    text = "".join(chunk.text for chunk in chunks)
    assert generation.stats.finish_reason == "cancelled"
    assert len(text) < 500
    again = engine.generate(Request(prompt(engine, "What is the capital of France?"), GREEDY))
    assert next(iter(again)).prompt_done >= 0  # its turn has come: the engine is free
    assert time.monotonic() - stopped < SLACK_S
    assert "Paris" in read(again)


def test_stop_works_before_the_reply_has_begun(engine: Engine) -> None:
    generation = engine.generate(Request(prompt(engine, "Hello"), GREEDY))
    generation.cancel()
    assert read(generation) == ""
    assert generation.stats.finish_reason == "cancelled"


def test_progress_on_a_long_prompt_is_told_in_steps(engine: Engine) -> None:
    ids = prompt(engine, "Some text that has not been here before, at all. " * 100)
    steps = [chunk.prompt_done for chunk in engine.generate(Request(ids, GREEDY)) if not chunk.text]
    assert len({step for step in steps if 0 < step < len(ids)}) >= 2


@pytest.mark.parametrize("ids", [[], [1] * 4096, [1, 10**9]], ids=["empty", "too long", "no such id"])
def test_a_prompt_that_cannot_be_is_refused_with_a_sentence(engine: Engine, ids: list[int]) -> None:
    with pytest.raises(ChatError, match=r"prompt|Prompt|token"):
        read(engine.generate(Request(ids, GREEDY)))
    assert "Paris" in read(engine.generate(Request(prompt(engine, "What is the capital of France?"), GREEDY)))


def test_the_repetition_penalty_counts_the_end_of_the_prompt(engine: Engine) -> None:
    ids = engine.tokenize("one two one two one two one two one", True)
    word = engine.tokenize(" two", False)
    plain = engine.generate(Request(ids, GREEDY.model_copy(update={"max_tokens": 1})))
    read(plain)
    assert plain.stats.ids == word
    punished = engine.generate(
        Request(ids, GREEDY.model_copy(update={"max_tokens": 1, "repeat_penalty": 2.0}))
    )
    read(punished)
    assert punished.stats.ids != word


@pytest.mark.parametrize(("filler", "repeated"), [(4, False), (16, True)], ids=["in", "beyond"])
def test_the_repetition_penalty_looks_back_over_its_window_only(
    engine: Engine, filler: int, repeated: bool
) -> None:
    between = " It was a quiet day by the water." * filler
    ids = engine.tokenize(f"The password is zebra.{between} I repeat: the password is", False)
    word = engine.tokenize(" zebra", False)
    start = len(engine.tokenize("The password is", False))
    assert ids[start : start + len(word)] == word
    assert (len(ids) - start > PENALTY_WINDOW + len(word)) == repeated
    for penalty in (1.0, 2.0):
        sampling = GREEDY.model_copy(update={"max_tokens": 1, "repeat_penalty": penalty})
        generation = engine.generate(Request(ids, sampling))
        read(generation)
        assert (generation.stats.ids == word[:1]) == (repeated or penalty == 1)


def test_both_engines_draw_the_same_greedy_reply(embedded_model: Path) -> None:
    replies = []
    for kind in (InProcessEngine, LlamaServerEngine):
        engine: Engine = kind(embedded_model, 1024, thread_count())
        sampling = GREEDY.model_copy(update={"repeat_penalty": 1.1})
        replies.append(
            read(engine.generate(Request(prompt(engine, "Write one sentence about the sea."), sampling)))
        )
        engine.close()
    assert replies[0] == replies[1]


def test_many_threads_never_enter_the_in_process_model_twice(embedded_model: Path) -> None:
    engine = InProcessEngine(embedded_model, 1024, thread_count())
    texts: dict[int, str] = {}

    def ask(number: int) -> None:
        texts[number] = read(engine.generate(Request(prompt(engine, f"Say the number {number}."), GREEDY)))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    assert engine.most_entered == 1
    assert len(texts) == 6
    assert all(texts.values())


@pytest.mark.parametrize("kind", [InProcessEngine, LlamaServerEngine])
def test_a_file_that_llama_cpp_refuses_gives_its_reason(
    kind: type[Engine], embedded_model: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(embedded_model.read_bytes()[:5_000_000])
    with pytest.raises(ModelFileError, match=r"broken\.gguf could not be loaded: \w+"):
        kind(broken, 512, 1)  # type: ignore[call-arg]


def test_closing_the_in_process_engine_does_not_wait_for_a_long_reply(embedded_model: Path) -> None:
    engine = InProcessEngine(embedded_model, 4096, thread_count())
    running, waiting = (
        engine.generate(
            Request(prompt(engine, "Tell a long story."), GREEDY.model_copy(update={"max_tokens": 3000}))
        )
        for _ in range(2)
    )
    next(iter(running))
    began = time.monotonic()
    engine.close()
    assert time.monotonic() - began < SLACK_S
    assert read(running) is not None
    assert read(waiting) == ""
    with pytest.raises(ChatError, match="unloaded"):
        engine.generate(Request([1], GREEDY))
