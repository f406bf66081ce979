"""A GGUF begins and ends as its checkpoint: what the converter's file says otherwise is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from convert.ends import KEY, differences
from convert.verify.tokens import check_metadata
from core.gguf_model import read_gguf
from core.gguf_vocab import FORM_KEY
from tests.unit.letters import TEMPLATE, make_tokenizer
from tests.unit.test_gguf_file import ARRAY, BOOL, I32, MODEL, STRING, U32, gguf
from tests.unit.test_verify import FACTS

BOS, EOS = 1, 2


def changes(
    folder: Path, ends: list[int], bos: bool = True, template: str = "", **keys: Any
) -> dict[str, bool | int]:
    """What has to change in a GGUF of the letters' tokenizer, which has the keys `keys`."""
    tokenizer = make_tokenizer(folder, ("<unk>", "<s>", "</s>", "<stop>", "<over>", "<out>"), bos).tokenizer
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    values = {"model": (STRING, "gpt2"), "pre": (STRING, "gpt-2"), "tokens": (ARRAY, (STRING, tokens))}
    values |= {"merges": (ARRAY, (STRING, ["a b"]))}
    values |= {"token_type": (ARRAY, (I32, [3] * 6 + [1] * (len(tokens) - 6)))}
    for name, value in ({"bos_token_id": BOS, "eos_token_id": EOS, "add_bos_token": bos} | keys).items():
        if value is not None:
            values[name] = (BOOL if isinstance(value, bool) else U32, value)
    metadata = {key: value for key, value in MODEL.items() if not key.startswith("tokenizer")}
    metadata |= {KEY.format(name): value for name, value in values.items()}
    if template:
        metadata["tokenizer.chat_template"] = (STRING, template)
    (folder / "model.gguf").write_bytes(gguf(metadata))
    known = {key: value for key, (_, value) in metadata.items()}
    return differences(read_gguf(folder / "model.gguf"), known, tokenizer, ends)


@pytest.mark.parametrize(
    ("bos", "keys", "expected"),
    [
        (True, {}, {}),
        (False, {}, {}),
        (True, {"add_bos_token": False}, {"add_bos_token": True}),
        (False, {"add_bos_token": True}, {"add_bos_token": False}),
        (True, {"add_bos_token": None, "bos_token_id": None}, {"bos_token_id": BOS, "add_bos_token": True}),
        (True, {"add_eos_token": False}, {}),
        (True, {"add_eos_token": True}, {"add_eos_token": False}),
        (True, {"eos_token_id": None}, {"eos_token_id": EOS}),
    ],
)
def test_the_files_rules_are_the_tokenizers(
    tmp_path: Path, bos: bool, keys: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert changes(tmp_path, [EOS], bos, **keys) == expected


def test_listed_ends_find_room_or_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert changes(tmp_path, [EOS, 3]) == {"eom_token_id": 3}
    assert changes(tmp_path, [EOS, 3], eom_token_id=4) == {"eot_token_id": 3}
    assert capsys.readouterr().out == ""
    assert changes(tmp_path, [EOS, 3, 4, 5, 50]) == {"eom_token_id": 3, "eot_token_id": 4}
    said = capsys.readouterr().out
    assert "ends replies at '<out>' (5), and the chat doesn't: a GGUF has no room for it" in said
    assert "(50), and the chat doesn't: it is ordinary text" in said


def test_the_templates_own_end_goes_first(tmp_path: Path) -> None:
    template = TEMPLATE.replace("</s>", "<over>")
    assert changes(tmp_path, [EOS, 3], template=template) == {"eom_token_id": 4, "eot_token_id": 3}


def test_verification_knows_the_rule_of_bos(tmp_path: Path) -> None:
    for adds in (True, False):
        (tmp_path / "model.gguf").write_bytes(gguf(MODEL | {KEY.format("add_bos_token"): (BOOL, adds)}))
        verdicts = [
            check_metadata(tmp_path / "model.gguf", replace(FACTS, adds_bos=rule))[0].verdict
            for rule in (True, False)
        ]
        assert verdicts == (["ok", "fail"] if adds else ["fail", "ok"])


@pytest.mark.parametrize(
    ("said", "form", "verdict"),
    [
        ("NFC", "NFC", "ok"),
        ("NFC", "", "fail"),
        ("", "NFC", "fail"),
        ("NFKC", "NFC", "fail"),
        ("", None, "warn"),
        ("", "", ""),
    ],
)
def test_verification_compares_the_form_of_text(
    tmp_path: Path, said: str, form: str | None, verdict: str
) -> None:
    metadata = MODEL | ({FORM_KEY: (STRING, said)} if said else {})
    (tmp_path / "model.gguf").write_bytes(gguf(metadata))
    checks = check_metadata(tmp_path / "model.gguf", replace(FACTS, unicode_form=form))
    found = [check.verdict for check in checks if check.name == "Unicode form"]
    assert found == ([verdict] if verdict else [])
