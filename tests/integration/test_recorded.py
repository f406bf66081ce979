"""What a run rendered its rows with goes with it; what was changed since is named before a conversion."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from convert.adapter import WEIGHTS
from convert.conversion import check_recorded
from convert.source import find_source
from convert.tokenizer_files import TokenizerFiles
from core.errors import ConvertError
from core.files import ADAPTER_CONFIG
from core.template import write_template
from core.tokenizer import ChatTokenizer
from tests.integration.small_runs import chats, small_phi3
from train.examples import Example
from train.folder import write_prompts
from train.labels import encode


def test_a_template_that_changed_since_is_no_fault_and_what_a_run_kept_must_not_change(
    tmp_path: Path,
) -> None:
    base, run = small_phi3(tmp_path / "published"), tmp_path / "tiny"
    tokenizer, example = ChatTokenizer(base), Example(chats(1)[0], "", "")
    (run / "adapter").mkdir(parents=True)
    (run / "adapter" / ADAPTER_CONFIG).write_text("{}")
    (run / "adapter" / WEIGHTS).touch()
    write_template(tokenizer.chat_template, run / "adapter")
    write_prompts(run, encode(tokenizer, example), [], tokenizer.rendered_with, tokenizer.rendered)
    shutil.copytree(base, tmp_path / "base")
    trained = (base / "chat_template.jinja").read_text()
    assert (run / "adapter" / "chat_template.jinja").read_text() == trained
    source = find_source(str(run), tmp_path)
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages }}")
    assert check_recorded(source, tmp_path / "base") == []
    assert TokenizerFiles(tmp_path / "base", run / "adapter").template() == trained
    (run / "adapter" / "chat_template.jinja").unlink()
    with pytest.raises(ConvertError, match=r"base/chat_template.jinja was changed since 'tiny' was trained"):
        check_recorded(source, tmp_path / "base")
    assert check_recorded(source, base) == []
    with (run / "prompts.jsonl").open("a") as rows:
        rows.write("\n")
    with pytest.raises(ConvertError, match=r"prompts.jsonl was changed .* cp -r .*tiny/adapter tiny-now"):
        check_recorded(source, base)
    (run / "prompts.jsonl").unlink()
    assert "is gone" in check_recorded(source, base)[0]
    vocabulary = (base / "tokenizer.json").read_text()
    (tmp_path / "base" / "chat_template.jinja").write_text(trained)
    (tmp_path / "base" / "tokenizer.json").write_text(vocabulary.replace("fox", "ox", 1) + "\n")
    with pytest.raises(ConvertError, match=r"base/tokenizer.json was changed"):
        check_recorded(source, tmp_path / "base")
    copied = shutil.copytree(run / "adapter", tmp_path / "tiny-now")
    assert check_recorded(find_source(str(copied), tmp_path), tmp_path / "base") == []
