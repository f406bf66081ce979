"""A kill at any moment loses nothing finished, and leaves no half file under a final name."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from core.checkpoint import Checkpoint
from core.gguf_model import read_gguf
from tests.integration.commands import Command
from tests.integration.tiny_models import lora, tiny

WORK = Path("outputs", "tiny", "convert")
# A stage's file is begun; it has its final name, and the stage isn't recorded as done.
MOMENTS = (
    WORK / "source",
    WORK / "merged.partial",
    WORK / "merged",
    WORK / "16bit.gguf.partial",
    WORK / "16bit.gguf",
    WORK / "rows.jsonl",
    WORK / "reference" / "adapter.npy.partial",
    WORK / "Q8_0.gguf.partial",
    WORK / "Q8_0.gguf",
    Path("models", "tiny-Q8_0.gguf"),
)
pytestmark = pytest.mark.timeout(600)


def start(root: Path) -> Command:
    return Command("convert/to_gguf.py", "tiny", "--quant", "q8", "--root", root)


def check_all_final_names(root: Path) -> None:
    """Everything that has its final name must be whole."""
    for path in root.rglob("*.gguf"):
        read_gguf(path)
    if (root / WORK / "merged").exists():
        assert Checkpoint(root / WORK / "merged").names
    for path in root.rglob("*.json"):
        json.loads(path.read_text())


def test_ten_kills_then_the_same_command_ends_well(tmp_path: Path) -> None:
    tiny("llama", tmp_path / "base")
    lora(tmp_path / "base", tmp_path / "outputs" / "tiny" / "adapter")
    for moment in MOMENTS:
        path = tmp_path / moment
        assert not path.exists()
        process = start(tmp_path)
        while not path.exists():
            assert process.returncode is None, process.stdout + process.stderr
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        check_all_final_names(tmp_path)
    last = start(tmp_path)
    assert last.wait() == 0, last.stdout + last.stderr
    check_all_final_names(tmp_path)
    assert len(list((tmp_path / "models").glob("*.gguf"))) == 1
