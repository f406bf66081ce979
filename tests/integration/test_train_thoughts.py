"""Thoughts of replies, with real templates: trained where the prompt of the turn asks for them, and once."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.prompt import Messages
from tests.integration.test_train_labels import MANY_TURNS, REPLIES, trained, with_template
from train.labels import encode_chat

THINKING: Messages = [
    message | ({"reasoning_content": "I think."} if message["role"] == "assistant" else {})
    for message in MANY_TURNS
]
# template: what stands before a reply's words, with a thought and without one, after the prompt for it
THOUGHTS = {
    "Qwen-Qwen3-0.6B.jinja": ("<think>\nI think.\n</think>\n\n", "<think>\n\n</think>\n\n"),
    "Qwen3.5-4B.jinja": ("I think.\n</think>\n\n", "\n</think>\n\n"),
    "openai-gpt-oss-120b.jinja": (
        "<|channel|>analysis<|message|>I think.<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|channel|>final<|message|>",
    ),
    # these two show no thought, and open one in the prompt, or open and close it
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja": ("I think.\n</think>\n\n", "\n</think>\n\n"),
    "Qwen-QwQ-32B.jinja": ("", ""),
}


# Ends of replies that this vocabulary lacks, and what it has instead.
ENDS = {"<｜end▁of▁sentence｜>": "<|im_end|>", "<|return|>": "<|im_end|>", "<|end|>": "<file_sep>"}  # noqa: RUF001


@pytest.mark.parametrize("template", THOUGHTS)
def test_a_thought_is_trained_after_the_prompt_of_its_turn_and_never_again(
    template: str, base: Path, llama_models: Path, tmp_path: Path
) -> None:
    """The templates keep a thought until the next question, so each reply is a sequence of its own."""
    text = (llama_models / "templates" / template).read_text()
    for theirs, ours in ENDS.items():
        text = text.replace(theirs, ours)
    tokenizer = with_template(base, text, tmp_path)
    for chat, before in zip((THINKING, MANY_TURNS), THOUGHTS[template], strict=True):
        before = before.replace("<|end|>", "<file_sep>")
        rows = encode_chat(tokenizer, chat)
        told = [trained(tokenizer, row) for row in rows]
        assert told == [[f"{before}{reply}<|im_end|>"] for reply in REPLIES]
        for turn, row in zip((1, 3, 5), rows, strict=True):
            prompt = tokenizer.encoder.encode(chat[:turn])
            assert row.ids[: len(prompt)] == prompt
            assert row.mask.index(1) == len(prompt)
            assert "I think." not in tokenizer.decode(prompt)
