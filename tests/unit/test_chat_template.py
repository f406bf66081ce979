"""Where a chat template is found, as transformers finds it, and that it is written to one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.template import ChatTemplate, find_template, write_template


def folder(path: Path, jinja: str | None = None, **config: Any) -> Path:
    path.mkdir()
    if jinja is not None:
        (path / "chat_template.jinja").write_text(jinja)
    if config:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def test_the_adapters_file_then_its_config_then_the_bases(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", jinja="BF", chat_template="BC")
    both = folder(tmp_path / "both", jinja="AF", chat_template="AC")
    config = folder(tmp_path / "config", chat_template="AC")
    null = folder(tmp_path / "null", chat_template=None)
    old = folder(tmp_path / "old", chat_template="BC")
    none = folder(tmp_path / "none")
    assert find_template([both, base]).text == "AF"
    assert find_template([config, base]).text == "AC"
    assert find_template([null, base]) == ChatTemplate("BF", base / "chat_template.jinja")
    assert find_template([none, old]).text == "BC"
    assert find_template([none, null]) == ChatTemplate()


def test_a_default_among_the_named_templates_counts(tmp_path: Path) -> None:
    """As for transformers, which reads that folder also where chat_template.jinja is not there."""
    base = folder(tmp_path / "base", chat_template="BC")
    (named := base / "additional_chat_templates").mkdir()
    (named / "tools.jinja").write_text("T")
    assert find_template([base]).text == "BC"
    (named / "default.jinja").write_text("D")
    assert find_template([base]) == ChatTemplate("D", named / "default.jinja", {"tools": "T"})


@pytest.mark.parametrize("given", ["", None, [], [{"name": "tool_use", "template": "T"}], 7, {"rag": "R"}])
def test_what_is_no_template_leaves_the_next_place(tmp_path: Path, given: Any) -> None:
    adapter = folder(tmp_path / "adapter", chat_template=given)
    base = folder(tmp_path / "base", chat_template="B")
    assert find_template([adapter, base]).text == "B"


def test_named_templates_and_a_processors(tmp_path: Path) -> None:
    pairs = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    listed = find_template([folder(tmp_path / "list", chat_template=pairs)])
    assert (listed.text, listed.others) == ("D", {"tool_use": "T"})
    processor = folder(tmp_path / "processor", model_max_length=10)
    (processor / "chat_template.json").write_text('{"chat_template": "P"}')
    assert find_template([processor]).text == "P"


def test_what_was_written_is_found_again(tmp_path: Path) -> None:
    template = ChatTemplate("{{ messages }}\r\n\n", None, {"tool_use": "T", "../evil": "X"})
    out = folder(tmp_path / "out")
    write_template(template, out)
    found = find_template([out])
    assert (found.text, found.others) == ("{{ messages }}\n\n", {"tool_use": "T"})
    assert not (tmp_path / "evil.jinja").exists()
    empty = folder(tmp_path / "empty")
    write_template(ChatTemplate(), empty)
    assert not list(empty.iterdir())
