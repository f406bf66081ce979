"""What a request can ask of both engines beside sampling: a grammar, log-probabilities, adapters."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from jsonschema.validators import Draft202012Validator

from chat.llama_server import LlamaServerEngine
from chat.structured import structured
from core.engine import Chunk, Engine, Request, Sampling
from core.errors import ChatError, NoSuchAdapter
from core.in_process import InProcessEngine
from core.lora import Adapter

GREEDY = Sampling(temperature=0, repeat_penalty=1, max_tokens=12, seed=0)
GRAMMAR = 'root ::= "{\\"n\\": " [1-9] [0-9]{0,2} "}"'
APART = 0.01  # nats; adapters are farther apart, and so are prompts evaluated in batches of other sizes
TOP = 5


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    """Two random adapters of the short model that change what it says."""
    folder = tmp_path_factory.mktemp("loras")
    return [Adapter(path=str(write_lora(folder / f"{name}.gguf", seed))) for seed, name in enumerate("ab")]


def write_lora(path: Path, seed: int, width: int = 576, rank: int = 4) -> Path:
    draw = np.random.default_rng(seed).standard_normal
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", rank)
    for layer in range(2):
        for end, shape in (("a", (rank, width)), ("b", (width, rank))):
            tensor = (draw(shape) * 0.5).astype(np.float32)
            writer.add_tensor(f"blk.{layer}.attn_output.weight.lora_{end}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module", params=["in-process", "llama-server"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def open_engine(kind: str, model: Path, adapters: list[Adapter], slots: int = 1) -> Engine:
    if kind == "in-process":
        return InProcessEngine(model, 1024, 1, adapters)
    return LlamaServerEngine(model, 1024, 1, adapters, slots)


@pytest.fixture(scope="module")
def engine(kind: str, short_model: Path, loras: list[Adapter]) -> Iterator[Engine]:
    opened = open_engine(kind, short_model, loras)
    yield opened
    opened.close()


def ask(engine: Engine, text: str, **more: object) -> tuple[str, list[Chunk], Request]:
    ids = engine.tokenize(f"{text}<|im_end|>\n<|im_start|>assistant\n", True)
    request = Request(ids, GREEDY, **more)  # type: ignore[arg-type]
    chunks = list(engine.generate(request))
    return "".join(chunk.text for chunk in chunks), chunks, request


def first(engine: Engine, text: str, adapters: Mapping[str, float]) -> dict[int, float]:
    """What the model thinks of the first token of its reply."""
    _, chunks, _ = ask(engine, text, adapters=adapters, logprobs=TOP)
    logprob = next(chunk.logprobs[0] for chunk in chunks if chunk.logprobs)
    return {token.id: token.logprob or 0.0 for token in logprob.top}


def apart(one: dict[int, float], other: dict[int, float]) -> float:
    """The most that two know apart of the tokens that both name; infinite where they share none."""
    return max((abs(one[i] - other[i]) for i in one.keys() & other.keys()), default=float("inf"))


def test_a_grammar_is_kept_to(engine: Engine) -> None:
    text, _, _ = ask(engine, "How many?", grammar=GRAMMAR)
    assert list(json.loads(text)) == ["n"]
    drawn = Sampling(temperature=1.5, max_tokens=30, seed=3)
    request = Request(engine.tokenize("Once", False), drawn, grammar=GRAMMAR)
    generation = engine.generate(request)
    assert json.loads("".join(chunk.text for chunk in generation))["n"] < 1000
    assert generation.stats.finish_reason == "stop"


def test_a_grammar_that_is_none_is_refused_and_the_engine_lives(engine: Engine) -> None:
    for broken in ("root ::= nothing", "root ::= (", "toor ::= [a]", 'root ::= root "a"'):
        with pytest.raises(ChatError):
            ask(engine, "Hi", grammar=broken)
    assert ask(engine, "Hi")[0]


def test_log_probabilities_belong_to_the_ids_and_the_text(engine: Engine) -> None:
    text, chunks, _ = ask(engine, "Tell me about the sea.", logprobs=2)
    logprobs = [token for chunk in chunks for token in chunk.logprobs]
    assert [token.id for token in logprobs] == [i for chunk in chunks for i in chunk.ids]
    assert b"".join(token.text for token in logprobs).decode().strip() == text.strip()
    for token in logprobs:
        assert len(token.top) == 2
        assert token.top[0].id == token.id  # greedy
        assert token.logprob == token.top[0].logprob >= (token.top[1].logprob or 0)
    assert not any(chunk.logprobs for chunk in ask(engine, "Hi")[1])
    assert not any(token.top for chunk in ask(engine, "Hi", logprobs=0)[1] for token in chunk.logprobs)


# No common beginning: what is reused is then all or nothing.
QUESTIONS = ["Name an animal. " * 12, "Tell me about the sea. " * 10]
CHOICES: list[dict[str, float]] = [{"a": 1.0}, {"b": 1.0}, {"a": 0.0}, {"a": 0.5, "b": 1.0}]

ORDER = [
    (0, 0),
    (0, 1),
    (0, 0),
    (1, 2),
    (0, 2),
    (1, 0),
    (0, 3),
    (1, 3),
    (0, 1),
    (1, 2),
]  # question and choice


@pytest.fixture(scope="module")
def cold(short_model: Path, loras: list[Adapter]) -> list[list[dict[int, float]]]:
    """What a model thinks that has seen nothing else, for each choice and question."""

    def thinks(question: str, choice: dict[str, float]) -> dict[int, float]:
        opened = InProcessEngine(short_model, 1024, 1, loras)
        try:
            return first(opened, question, choice)
        finally:
            opened.close()

    return [[thinks(question, choice) for question in QUESTIONS] for choice in CHOICES]


def test_no_cache_mixes_adapters(
    kind: str, short_model: Path, loras: list[Adapter], cold: list[list[dict[int, float]]]
) -> None:
    assert min(apart(cold[i][0], cold[j][0]) for i in range(4) for j in range(i)) > 5 * APART
    opened = open_engine(kind, short_model, loras, slots=2)
    try:
        for number, choice in ORDER:
            warm = first(opened, QUESTIONS[number], CHOICES[choice])
            assert apart(warm, cold[choice][number]) < APART
    finally:
        opened.close()


def test_without_a_choice_all_apply_as_the_entry_says(engine: Engine) -> None:
    assert apart(first(engine, "Hi", {}), first(engine, "Hi", {"a": 1.0, "b": 1.0})) < APART


def test_adapters_and_strengths_that_are_not_there(engine: Engine) -> None:
    with pytest.raises(NoSuchAdapter, match=r"no adapter called 'c'; it has: a, b"):
        ask(engine, "Hi", adapters={"c": 1.0})
    for strength in (-1.0, 1e30, float("nan")):
        with pytest.raises(NoSuchAdapter, match=r"'a' can't have the strength"):
            ask(engine, "Hi", adapters={"a": strength})


HARD: dict[str, dict[str, object]] = {
    "names": {
        "properties": {'é"\n\\': {"enum": ["grün", 'a"b\\\n', None, 1.5]}, "*": {"const": {"a": ["b\\"]}}},
        "required": ['é"\n\\', "*"],
    },
    "reserved": {
        "properties": {name: {"type": "null"} for name in ("root", "string", "a b", "a-b")},
        "required": ["root", "string", "a b", "a-b"],
    },
    "strings": {
        "type": "array",
        "items": {"type": "string", "minLength": 2, "maxLength": 4},
        "minItems": 2,
        "maxItems": 3,
    },
    "pattern": {"type": "string", "pattern": r"^.{2}|[^a]\.\d{2}$"},
    "unions": {
        "$defs": {"t": {"type": ["integer", "null"]}},
        "anyOf": [
            {"type": "object", "properties": {"a": {"$ref": "#/$defs/t"}}, "required": ["a"]},
            {"type": "array", "prefixItems": [{"$ref": "#/$defs/t"}, {"enum": ["x"]}]},
        ],
    },
    "dates": {"properties": {"d": {"type": "string", "format": "date-time"}}, "required": ["d"]},
    "anything": {"type": "array", "maxItems": 1},
}


@pytest.mark.parametrize("name", HARD)
def test_replies_fit_their_schema_whatever_is_drawn(engine: Engine, name: str) -> None:
    """The model is two layers of one, at a temperature where it writes anything that it may."""
    made = structured(HARD[name])
    finished = 0
    for seed in range(2):
        drawn = Sampling(temperature=2, min_p=0, top_p=1, top_k=0, max_tokens=120, seed=seed)
        ids = engine.tokenize("Answer.", False)
        generation = engine.generate(Request(ids, drawn, grammar=made.grammar, adapters={"a": 0}))
        text = "".join(chunk.text for chunk in generation)
        if generation.stats.finish_reason == "stop":
            assert made.fault(text, "stop") == "", text
            Draft202012Validator(HARD[name]).validate(json.loads(text))
            finished += 1
    assert finished or name == "anything"
