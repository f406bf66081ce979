"""A tokenizer of single letters, and checks that keep what they told, for the tests of the checks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from core.errors import TrainError
from core.tokenizer import ChatTokenizer
from train.checks import Checks

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
TEMPLATE = (
    "{% for m in messages %}{{ '<s>' if loop.first }}{{ m.role + ':' + m.content + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def make_tokenizer(
    folder: Path,
    special: Sequence[str] = ("<unk>", "<s>", "</s>"),
    bos: bool = True,
    template: str = TEMPLATE,
) -> ChatTokenizer:
    """A tokenizer of single letters."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate([*special, *letters])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(special))
    if bos:
        made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    names: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
    if "<unk>" in special:
        names["unk_token"] = "<unk>"
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=made, **names)
    fast.chat_template = template
    fast.save_pretrained(folder)
    return ChatTokenizer(folder)


class Kept:
    """Checks with a list of what they told."""

    def __init__(self, *waive: str) -> None:
        self.told: list[str] = []
        self.checks = Checks(waive, self.told.append)

    def refusal(self) -> str:
        with pytest.raises(TrainError) as caught:
            self.checks.end()
        return str(caught.value)

    def passes(self) -> bool:
        self.checks.end()
        return True
