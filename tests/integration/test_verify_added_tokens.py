"""The tokenizer's own added tokens inside of text: what a GGUF can't express is seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from convert.verify.reference import ReferenceModel
from convert.verify.run import chat_model
from convert.verify.tokens import Tokenized, check_tokens
from core.gguf_tokenizer import read_tokens, write_tokenizer
from core.model import Model


@pytest.fixture(scope="module")
def model(embedded_model: Path) -> Iterator[Model]:
    with chat_model(embedded_model) as model:
        yield model


@pytest.fixture
def tokenizer(embedded_model: Path, tmp_path: Path) -> Any:
    write_tokenizer(read_tokens(embedded_model), tmp_path, None)
    return AutoTokenizer.from_pretrained(tmp_path)


def verified(tokenizer: Any) -> list[Tokenized]:
    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    return list(ReferenceModel._added(SimpleNamespace(tokenizer=tokenizer, ids=ids)))  # type: ignore[arg-type]


@pytest.mark.parametrize(("special", "verdict"), [(False, "fail"), (True, "warn")])
@pytest.mark.parametrize("rule", ["lstrip", "rstrip", "single_word"])
def test_a_token_with_a_rule_of_its_own_is_seen(
    model: Model, tokenizer: Any, rule: str, special: bool, verdict: str
) -> None:
    rules: dict[str, Any] = {rule: True}
    tokenizer.add_tokens([AddedToken("capital", **rules)], special_tokens=special)
    (_, _, found, _) = check_tokens(model, [], verified(tokenizer))
    assert (found.name, found.verdict) == ("added tokens", verdict)
    assert found.reason.startswith("'capital', ")
    assert "expected" in found.reason
    assert found.figure == "17 of 18 equal inside text"


def test_the_models_own_are_equal(model: Model, tokenizer: Any) -> None:
    added = verified(tokenizer)
    assert len({text.added for text in added}) == 17
    (_, _, found, _) = check_tokens(model, [], added)
    assert found.verdict == "ok"
