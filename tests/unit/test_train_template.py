"""Training renders with the template that the conversion will write, wherever in the base it stands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import LlamaConfig

from core.command import command_line
from core.template import find_template, write_template
from core.tokenizer import ChatTokenizer
from tests.unit.letters import CHAT, TEMPLATE, make_tokenizer
from train import data
from train.control_tokens import misfit

ROOT = Path(__file__).resolve().parents[2]
OTHER = TEMPLATE.replace("':'", "' says '")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"chat_template.json": json.dumps({"chat_template": TEMPLATE})}, TEMPLATE),
        ({"chat_template.jinja": TEMPLATE}, TEMPLATE),
        ({"additional_chat_templates/default.jinja": TEMPLATE}, TEMPLATE),
        (
            {"additional_chat_templates/tools.jinja": OTHER, "chat_template.json": '{"chat_template": "T"}'},
            "T",
        ),
        ({"tokenizer_config.json": None, "chat_template.jinja": TEMPLATE}, TEMPLATE),
        ({"tokenizer_config.json": OTHER, "chat_template.jinja": TEMPLATE}, TEMPLATE),
        ({"tokenizer_config.json": OTHER, "additional_chat_templates/tools.jinja": TEMPLATE}, OTHER),
        ({"tokenizer_config.json": None}, ""),
        ({}, ""),
    ],
)
def test_one_rule_for_training_and_conversion(tmp_path: Path, files: dict[str, Any], expected: str) -> None:
    make_tokenizer(base := tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    config = base / "tokenizer_config.json"
    for name, content in files.items():
        path = base / name
        path.parent.mkdir(exist_ok=True)
        if path == config:
            content = json.dumps(json.loads(config.read_text()) | {"chat_template": content})
        path.write_text(content)
    tokenizer = ChatTokenizer(base)
    assert tokenizer.template == expected
    (tmp_path / "adapter").mkdir()
    write_template(tokenizer.chat_template, tmp_path / "adapter")
    assert find_template([tmp_path / "adapter", base]).text == expected


def test_a_base_in_the_hubs_cache_needs_no_network(tmp_path: Path) -> None:
    """Of files that were never fetched, nothing is asked; of those that transformers alone skips, all are."""
    repository = tmp_path / "models--me--base"
    make_tokenizer(snapshot := repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    (snapshot / "chat_template.jinja").unlink()
    LlamaConfig(vocab_size=300).save_pretrained(snapshot)
    code = "from core.tokenizer import ChatTokenizer as T; print(T('me/base').template, end='|')\n"
    code += "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])\n"
    code += "print(T('me/base').template, end='')"
    given = [str(snapshot / "chat_template.json"), json.dumps({"chat_template": TEMPLATE})]
    command = [sys.executable, "-c", code, *given]
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout == f"|{TEMPLATE}", ran.stderr


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of three short chats for a base with letters for tokens and a context of 64."""
    make_tokenizer(base := tmp_path / "base")
    LlamaConfig(vocab_size=300, max_position_embeddings=64).save_pretrained(base)
    chats = [[CHAT[0], CHAT[1] | {"content": reply}] for reply in ("Hello", "Good day", "Hey")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    content = {
        "model": {"base_model": str(base), "license": "x"},
        "data": {"path": "rows.jsonl", "validation": 0, "test": 0},
    }
    path = tmp_path / "it's a recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else "
    "' ' + m.content + ' ' + eos_token }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("special", "template", "said"),
    [
        (("<|im_start|>", "<|im_end|>"), CHATML, ""),
        (("<|im_start|>", "<|im_end|>"), TEMPLATE, ""),
        (("<|im_start|>", "<|im_end|>"), ZEPHYR, "'<|user|>', '<|assistant|>', no tokens"),
        (("<|im_start|>", "<|im_end|>"), LLAMA_2, "which has '<|im_start|>', '<|im_end|>': perhaps"),
        (("<start_of_turn>", "<end_of_turn>"), CHATML, "'<|im_start|>', '<|im_end|>', no tokens"),
        (("[INST]", "[/INST]"), LLAMA_2, ""),
        ((), ZEPHYR, ""),
        ((), LLAMA_2, ""),
        (("<fim_prefix>", "<issue_start>", "<|padding|>"), ZEPHYR, ""),
    ],
)
def test_a_template_of_another_models_marks_is_told_of(
    special: tuple[str, ...], template: str, said: str, tmp_path: Path
) -> None:
    make_tokenizer(tmp_path, ("<unk>", "<s>", "</s>", *special))
    (tmp_path / "chat_template.jinja").write_text(template)
    reason = misfit(ChatTokenizer(tmp_path))
    assert said in reason
    assert bool(said) == bool(reason)


def test_another_models_template_is_named_before_a_run_and_in_its_refusal(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tokenizer(base := recipe.parent / "base", ("<unk>", "<s>", "</s>", "<start_of_turn>"))
    (base / "chat_template.jinja").write_text(LLAMA_2)
    assert data.main([str(recipe)]) == 0
    said = "the base's chat template writes '[INST]', '[/INST]', no tokens of its vocabulary, which has"
    assert f"note: 3, {said}" in capsys.readouterr().out
    (base / "chat_template.jinja").write_text(CHATML)
    assert data.main([str(recipe)]) == 1
    assert "writes no stop token after the reply" in (text := capsys.readouterr().err)
    assert "perhaps it is another model's" in text


def test_data_says_what_a_run_would_refuse_and_what_comes_next(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data.main([str(recipe)]) == 0
    printed = capsys.readouterr().out
    assert f"Next: {command_line('train/qlora.py', [recipe, '--plan'])}" in printed
    assert "plain one" not in printed
    (recipe.parent / "base" / "chat_template.jinja").unlink()
    config = recipe.parent / "base" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 8}))
    assert data.main([str(recipe)]) == 1
    said = capsys.readouterr()
    assert "note: 3, the base has no chat template, so training and chat use a plain one" in said.out
    assert "3 of 3 rows are longer than the base's context of 8 tokens" in said.err
