"""Control tokens in the data: tokens in rendered text, plain text in turns, and always named."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.tokenizer import ChatTokenizer
from tests.unit.letters import CHAT, TEMPLATE, Kept, make_tokenizer
from train import control_tokens as control
from train.checks import check_context, check_left_out, context_of
from train.control_tokens import settle
from train.data_report import marked, notes, rows
from train.examples import Encoded, Example, Loaded
from train.labels import encode
from train.recipe import Recipe
from train.sections import Data
from train.split import Prepared, Splits


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def settled(tokenizer: ChatTokenizer, example: Example) -> tuple[Example, Loaded]:
    loaded = Loaded()
    [made] = settle([example], tokenizer, loaded)
    return made, loaded


def shown(tokenizer: ChatTokenizer, example: Example) -> str:
    [row] = encode(tokenizer, example)
    return marked(tokenizer, row, False)


def test_a_rendered_text_has_tokens_and_says_so(tokenizer: ChatTokenizer) -> None:
    text = "<s>user:Hi</s>assistant:Hello</s>"
    example, loaded = settled(tokenizer, Example([], text, "", rendered=True, row=7))
    [row] = encode(tokenizer, example)
    assert row.ids == encode(tokenizer, Example(CHAT, "", ""))[0].ids
    assert sum(i in tokenizer.stop_ids for i in row.ids) == 2
    assert loaded.noticed == {control.AS_TOKENS: 1}
    assert loaded.first[control.AS_TOKENS] == "row 7: '<s>', '</s>'"
    assert shown(tokenizer, example) == "<s>[[user:Hi</s>assistant:Hello</s>]]"


def test_a_text_that_a_task_makes_has_look_alikes_and_shows_them(tokenizer: ChatTokenizer) -> None:
    assert shown(tokenizer, Example([], "a</s>b", "")) == "<s>[[a\\</s>b]]"


def test_a_rendered_prompt_gets_no_second_template(tokenizer: ChatTokenizer) -> None:
    pair = ("<s>user:Hi</s>assistant:", "Hello</s>")
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True)]
    example, loaded = settled(tokenizer, Example(turns, "", "", pair=pair, row=1))
    assert loaded.changed == {control.RENDERED: 1}
    assert shown(tokenizer, example) == "<s>user:Hi</s>assistant:[[Hello</s>]]"


def test_an_end_after_the_reply_is_taken_off(tokenizer: ChatTokenizer) -> None:
    turns = [CHAT[0], CHAT[1] | {"content": "Hello </s></s>\n"}]
    example, loaded = settled(tokenizer, Example(turns, "", "", row=3))
    assert example.messages == CHAT
    assert loaded.changed == {control.END_TAKEN: 1}
    assert loaded.first[control.END_TAKEN] == "row 3: '</s>'"


def test_control_tokens_that_people_type_are_plain_text_and_named(tokenizer: ChatTokenizer) -> None:
    turns = [CHAT[0] | {"content": "What is </s>?"}, CHAT[1]]
    example, loaded = settled(tokenizer, Example(turns, "", "", row=2))
    assert example.messages == turns
    assert loaded.noticed == {control.AS_TEXT: 1}
    assert shown(tokenizer, example) == "<s>user:What is \\</s>?</s>assistant:[[Hello</s>]]"


@pytest.mark.parametrize("mark", ["<|im_start|>", "<|eot_id|>", "<start_of_turn>", "[INST]", "<|end|>"])
def test_marks_of_another_template_are_named(mark: str, tokenizer: ChatTokenizer) -> None:
    example, loaded = settled(tokenizer, Example([], f"{mark}user", "", rendered=True, row=1))
    assert loaded.noticed == {control.FOREIGN: 1}
    assert loaded.first[control.FOREIGN] == f"row 1: {mark!r}"
    assert shown(tokenizer, example) == f"<s>[[\\{mark}user]]"
    for harmless in ("a < b > c", "x[i]", "<b>bold</b>", "List<String>"):
        assert not settled(tokenizer, Example([], harmless, "", rendered=True))[1].noticed


def test_a_thought_without_a_place_is_counted(tokenizer: ChatTokenizer) -> None:
    turns = [CHAT[0], CHAT[1] | {"reasoning_content": "Hm."}]
    example, loaded = settled(tokenizer, Example(turns, "", "", row=1))
    assert example.messages == CHAT
    assert loaded.changed == {control.NO_THOUGHTS: 1}


def test_a_thought_in_the_text_is_told_apart_where_the_template_knows_thoughts(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    template = tmp_path / "chat_template.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role + ':' }}{% if m.reasoning_content and loop.last %}"
        "{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer = ChatTokenizer(tmp_path)
    turns = [CHAT[0], CHAT[1] | {"content": "<think>\nHm.\n</think>\n\nHello"}]
    example, loaded = settled(tokenizer, Example(turns, "", "", row=1))
    assert example.messages == [CHAT[0], CHAT[1] | {"reasoning_content": "Hm."}]
    assert not loaded.changed
    assert shown(tokenizer, example) == "<s>user:Hi</s>assistant:[[<think>Hm.</think>Hello</s>]]"


def prepared(tokenizer: ChatTokenizer, too_long: int, left_out: int, on_purpose: int = 0) -> Prepared:
    loaded = Loaded(rows_in=10, layout="alpaca")
    for number in range(left_out):
        loaded.leave_out("no output", number + 3, "'x\x1b'")
    for number in range(on_purpose):
        loaded.leave_out("the same as an earlier row", number + 3, on_purpose=True)
    row = encode(tokenizer, Example(CHAT, "", ""))
    return Prepared(row, [], [], Splits(), loaded, too_long, "row 2 has 999 tokens")


def test_data_of_which_most_is_left_out_is_refused(tokenizer: ChatTokenizer) -> None:
    kept, waived = Kept(), Kept("rows_left_out")
    check_left_out(kept.checks, prepared(tokenizer, 3, 2, 5), 64)
    said = kept.refusal()
    assert "5 of 5 rows are left out: 3 longer than SFTConfig.max_length 64 (row 2 has 999 tokens)" in said
    assert "2 no output (row 3: 'x" in said
    check_left_out(waived.checks, prepared(tokenizer, 3, 2, 5), 64)
    assert waived.passes()
    check_left_out(kept.checks, prepared(tokenizer, 3, 2), 64)
    check_left_out(kept.checks, prepared(tokenizer, 0, 0, 9), 64)
    assert kept.passes()


def test_what_became_of_the_rows_is_told_before_the_run(tokenizer: ChatTokenizer) -> None:
    found = prepared(tokenizer, 3, 2)
    found.loaded.change("turns joined", 4, "'a'")
    found.loaded.ignore("column 'id'", 1)
    told = rows(Data(path="a.jsonl"), found.loaded)
    assert "  left out: 2, no output (row 3: 'x\\x1b')" in told
    assert "  not used: column 'id' in 1 (row 1)" in told
    recipe = Recipe.model_validate(
        {"model": {"base_model": "b", "license": "mit"}, "data": {"path": "a.jsonl"}}
    )
    assert notes(recipe, found) == [
        "  left out: 3, longer than max_length 2,048 (row 2 has 999 tokens)",
        "  note: the validation split has no row that is short enough",
        "  note: the test split has no row that is short enough",
        "  kept, but changed: 1, turns joined (row 4: 'a')",
    ]


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        (None, 1024),
        ({"rope_type": "default"}, 1024),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 128}, 1024),
        ({"rope_type": "longrope", "original_max_position_embeddings": 128}, 1024),
        ({"rope_type": "linear", "factor": 2.0}, 2048),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
    ],
)
def test_rows_beyond_the_context_of_the_base_are_refused(rope: dict[str, object] | None, limit: int) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(max_position_embeddings=1024)
    config.rope_parameters = rope  # as a config.json says it
    assert context_of(config) == limit
    kept, waived = Kept(), Kept("context")
    long = Encoded([5] * (limit + 1), [1] * (limit + 1), [])
    check_context(kept.checks, [long, Encoded([5], [1], [])], config)
    said = kept.refusal()
    assert (
        f"1 of 2 rows are longer than the base's context of {limit:,} tokens, the longest {limit + 1:,}"
        in said
    )
    check_context(waived.checks, [long], config)
    check_context(kept.checks, [Encoded([5] * limit, [1] * limit, [])], config)
    assert kept.passes()
    assert waived.passes()


LATER = [*CHAT, {"role": "system", "content": "Be kind."}, *CHAT]


def test_a_later_system_message_stays_where_the_template_shows_it(tokenizer: ChatTokenizer) -> None:
    example, loaded = settled(tokenizer, Example(LATER, "", ""))
    assert example.messages == LATER
    assert not loaded.changed
    said = "<s>user:Hi</s>assistant:[[Hello</s>]]"
    assert shown(tokenizer, example) == f"{said}system:Be kind.</s>{said.removeprefix('<s>')}"


def test_elsewhere_the_user_says_it_and_the_count_says_so(tmp_path: Path) -> None:
    two = TEMPLATE.replace("m.role", "(m.role if m.role == 'user' else 'assistant')")
    tokenizer = make_tokenizer(tmp_path, template=two)  # which takes a system message for a reply
    turns = [*LATER, LATER[2], CHAT[1]]
    example, loaded = settled(tokenizer, Example(turns, "", "", untrained=frozenset((1, 6)), row=3))
    assert [turn["content"] for turn in example.messages] == (
        ["Hi", "Hello", "Be kind.\n\nHi", "Hello", "Be kind.", "Hello"]
    )
    assert [turn["role"] for turn in example.messages] == ["user", "assistant"] * 3
    assert example.untrained == {1, 5}
    assert loaded.changed == {control.SYSTEM_SAID: 1}
    assert loaded.first[control.SYSTEM_SAID] == "row 3: 'Be kind.'"
    assert LATER[3]["content"] == "Hi"  # the caller's turns stay as they are


@pytest.mark.parametrize(
    ("name", "anywhere"),
    [
        ("Qwen-Qwen2.5-7B-Instruct", True),
        ("Qwen-Qwen3-0.6B", True),
        ("meta-llama-Llama-3.2-3B-Instruct", True),
        ("microsoft-Phi-3.5-mini-instruct", True),
        ("google-gemma-2-2b-it", False),
        ("mistralai-Mistral-Nemo-Instruct-2407", False),
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", False),
    ],
)
def test_published_templates_show_it_or_not(
    name: str, anywhere: bool, llama_models: Path, tmp_path: Path
) -> None:
    template = (llama_models / "templates" / f"{name}.jinja").read_text()
    assert control.system_anywhere(make_tokenizer(tmp_path, template=template)) is anywhere
