"""llama-perplexity's answer is read, and asked for again when its end got lost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from convert.verify.loss import tool_perplexity
from core.errors import ConvertError


def program(folder: Path, *outputs: str) -> Path:
    """A program that prints these, one at each start, the last one from then on."""
    path = folder / "llama-perplexity"
    path.write_text(
        f"#!{sys.executable}\n"
        "import pathlib\n"
        f"count, outputs = pathlib.Path({str(folder / 'count')!r}), {outputs!r}\n"
        "done = len(count.read_text()) if count.exists() else 0\n"
        "count.write_text('x' * (done + 1))\n"
        "print(outputs[min(done, len(outputs) - 1)])\n"
    )
    path.chmod(0o755)
    return path


def test_the_estimate_is_read(tmp_path: Path) -> None:
    tool = program(tmp_path, "[1]18.1,[2]19.0,\nFinal estimate: PPL = 19.0321 +/- 1.2")
    assert tool_perplexity(tool, tmp_path / "x.gguf", "text") == 19.0321


def test_a_lost_end_is_asked_for_once_more(tmp_path: Path) -> None:
    tool = program(tmp_path, "[1]18.1,", "Final estimate: PPL = 19.5 +/- 1.2")
    assert tool_perplexity(tool, tmp_path / "x.gguf", "text") == 19.5
    assert (tmp_path / "count").read_text() == "xx"


def test_no_estimate_at_all_is_an_error_with_what_was_printed(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"gave no estimate for x.gguf: .*18.1"):
        tool_perplexity(program(tmp_path, "[1]18.1,"), tmp_path / "x.gguf", "text")
    assert (tmp_path / "count").read_text() == "xx"
