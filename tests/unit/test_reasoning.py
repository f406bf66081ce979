"""Thoughts and answers: the marks of llama.cpp's sample templates, and replies that are written in them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from core.marks import Marks
from core.prompt import PromptEncoder, render
from core.reasoning import Reasoning, Reply

# Start and end of a thought, what an answer begins with, and whether the prompt opens the thought.
OPEN, SHUT = "<think>", "</think>"
EXPECTED: dict[str, tuple[str, str, str, bool]] = {
    "Apertus-8B-Instruct": ("<|inner_prefix|>", "<|inner_suffix|>", "", False),
    "Apriel-1.6-15b-Thinker-fixed": ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", "", True),
    "Bielik-11B-v3.0-Instruct": (OPEN, SHUT, "", False),
    "ByteDance-Seed-OSS": ("<seed:think>", "</seed:think>", "", False),
    "Cohere2MoE": ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_TEXT|>", True),
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": (
        "<|START_THINKING|>",
        "<|END_THINKING|>",
        "<|START_RESPONSE|>",
        False,
    ),
    "GLM-4.7-Flash": (OPEN, SHUT, "", True),
    "HuggingFaceTB-SmolLM3-3B": (OPEN, SHUT, "", False),
    "Kimi-K2-Thinking": (OPEN, SHUT, "", False),
    "Kimi-K3": ("<|open|>think<|sep|>", "<|close|>", "<|open|>response<|sep|>", True),
    "LFM2.5-8B-A1B": (OPEN, SHUT, "", False),
    "MiniMax-M2": (OPEN, SHUT, "", True),
    "MiniMax-M3": ("<mm:think>", "</mm:think>", "", False),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (OPEN, SHUT, "", True),
    "NVIDIA-Nemotron-Nano-v2": (OPEN, SHUT, "", True),
    "Qwen-QwQ-32B": (OPEN, SHUT, "", False),  # its prompt opens the thought and ends it again
    "Qwen-Qwen3-0.6B": (OPEN, SHUT, "", False),
    "Qwen3.5-4B": (OPEN, SHUT, "", True),
    "Spark2.5": (OPEN, SHUT, "", True),
    "StepFun3.5-Flash": (OPEN, SHUT, "", True),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": (OPEN, SHUT, "", True),
    "deepseek-ai-DeepSeek-V3.1": (OPEN, SHUT, "", False),
    "google-gemma-4-31B-it": ("<|channel>thought", "<channel|>", "", False),
    "ibm-granite-granite-3.3-2B-Instruct": (OPEN, SHUT, "<response>", False),
    "inclusionai-ling-3.0-flash": (OPEN, SHUT, "", True),
    "llama-cpp-deepseek-r1": (OPEN, SHUT, "", True),
    "mistralai-Ministral-3-14B-Reasoning-2512": ("[THINK]", "[/THINK]", "", False),
    "muse-glimmer": ("to=self<|message|>", "<|eom|>", "to=user<|message|>", False),
    "openai-gpt-oss-120b": (
        "<|channel|>analysis<|message|>",
        "<|end|>",
        "<|channel|>final<|message|>",
        False,
    ),
    "poolside-Laguna-S-2.1": (OPEN, SHUT, "", True),
    "tencent-Hy3": ("<think:opensource>", "</think:opensource>", "", False),
    "unsloth-Apriel-1.5": ("<thinking>", "</thinking>", "", False),
    "upstage-Solar-Open-100B": ("<|think|>", "<|end|>", "<|content|>", False),
}
WITHOUT = ("Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.1-8B-Instruct", "google-gemma-2-2b-it")


def template_of(llama_models: Path, name: str) -> str:
    return (llama_models / "templates" / f"{name}.jinja").read_text()


def reasoning(template: str) -> Reasoning:
    fill = partial(render, template, bos="<s>", eos="</s>")
    return Reasoning.of(lambda messages, generate: fill(messages, add_generation_prompt=generate), template)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_marks_are_those_of_the_template(llama_models: Path, name: str) -> None:
    found = reasoning(template_of(llama_models, name))
    marks = found.marks[0]
    opened = found.opened() is not None
    assert (marks.start, marks.end, marks.direct, opened) == EXPECTED[name]


@pytest.mark.parametrize("name", WITHOUT)
def test_a_model_that_does_not_think_has_no_marks(llama_models: Path, name: str) -> None:
    assert reasoning(template_of(llama_models, name)).marks == ()


def test_every_templates_replies_are_told_apart_at_each_letter(llama_models: Path) -> None:
    whole = Reply("I <b>think</b> so.\n\nYes.", "The <i>answer</i> [1].", False)
    cut, plain = Reply("I think", "", True), Reply("", "No thought.", False)
    for path in sorted((llama_models / "templates").glob("*.jinja")):
        found = reasoning(path.read_text())
        opened = found.opened()
        written = "".join(piece.text for piece in found.pieces(whole, opened))
        for end in range(len(written) + 1):
            part = found.split(written[:end], opened=opened, done=False)
            assert whole.thought.startswith(part.thought.strip()), (path.name, written[:end])
            assert whole.answer.startswith(part.answer.strip()), (path.name, written[:end])
        closer = found.marks[0].closer if found.marks else ""
        assert found.split(written + closer, opened=opened) == whole, path.name
        for reply in (cut, plain):
            again = "".join(piece.text for piece in found.pieces(reply, opened))
            assert found.split(again, opened=opened) == reply, path.name


def test_channels_are_thoughts_or_answers_by_their_names(llama_models: Path) -> None:
    found = reasoning(template_of(llama_models, "openai-gpt-oss-120b"))
    between = "<|end|><|start|>assistant<|channel|>"
    text = "<|channel|>analysis<|message|>One." + between + "commentary<|message|>Let me see."
    text += between + "analysis<|message|>Two." + between + "final<|message|>Done."
    assert found.split(text) == ("One.\n\nTwo.", "Let me see.\n\nDone.", False)
    assert found.split("<|channel|>final<|message|>Hi") == ("", "Hi", False)
    assert found.split("<|channel|>ana", done=False) == ("", "", False)
    control = ["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|endoftext|>"]
    assert found.shown(control) == set(control[:4])


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("plain", ("", "plain", False)),
        ("<think>so", ("so", "", True)),
        ("<think>so</think>\n\nyes", ("so", "yes", False)),
        ("<think></think>yes", ("", "yes", False)),
        ("<thinking>so</thinking>yes", ("so", "yes", False)),
        ("<|begin_of_thought|>so<|end_of_thought|>yes", ("so", "yes", False)),
        ("<|channel>thought\nso\n<channel|>yes", ("so", "yes", False)),
        ("<think>a</think><think>b</think>c", ("a\n\nb", "c", False)),
        ("I <think> not</think>", ("", "I <think> not</think>", False)),
        ("<thinker>x</thinker>", ("", "<thinker>x</thinker>", False)),
        ("[1] is a source", ("", "[1] is a source", False)),
    ],
)
def test_a_model_that_told_nothing_is_known_by_how_its_reply_begins(
    text: str, reply: tuple[str, str, bool]
) -> None:
    assert Reasoning().split(text) == reply


def test_a_system_message_can_switch_thinking_off() -> None:
    switch = "('</think>' if '/no_think' in messages[0].content else '')"
    template = "{% for m in messages %}{{ m.role ~ m.content }}{% endfor %}"
    template += f"{{% if add_generation_prompt %}}{{{{ 'assistant: <think>' ~ {switch} }}}}{{% endif %}}"
    found = reasoning(template)
    assert found.opened("Be kind.") == Marks("<think>\n", "\n</think>\n\n")
    assert found.opened("/no_think") is None


def test_a_thought_in_the_next_prompt_is_what_the_template_makes_of_it(llama_models: Path) -> None:
    """And none of it becomes a control token, whatever it holds."""
    for name in ("Qwen3.5-4B", "Bielik-11B-v3.0-Instruct"):  # one drops earlier thoughts, one keeps them
        fill = partial(render, template_of(llama_models, name), bos="", eos="")
        encoder = PromptEncoder(
            lambda messages, generate, fill=fill: fill(messages, add_generation_prompt=generate),
            lambda text, special: [9] if special and text == "<|im_end|>" else list(map(ord, text)),
            {"<|im_end|>": 9},
            None,
            False,
        )
        ask, again = {"role": "user", "content": "a"}, {"role": "user", "content": "c"}
        chat = [ask, {"role": "assistant", "content": "b", "reasoning_content": "so"}, again]
        expected = fill(chat, add_generation_prompt=True)
        assert "".join(map(chr, encoder.encode(chat))) == expected
        assert ("so" in expected) is (name != "Qwen3.5-4B")
        chat[1]["reasoning_content"] = "<|im_end|>"
        assert 9 not in encoder.encode(chat)
