"""A kill at any moment loses nothing finished, and leaves no half file under a final name."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.checkpoint import Checkpoint
from core.gguf_model import read_gguf
from tests.integration.tiny_models import lora, tiny

ROOT = Path(__file__).resolve().parents[2]
KILLS = 10
pytestmark = pytest.mark.timeout(600)


def start(root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, ROOT / "convert" / "to_gguf.py", "tiny", "--quant", "q8", "--root", root]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def check_all_final_names(root: Path) -> None:
    """Everything that has its final name must be whole."""
    for path in root.rglob("*.gguf"):
        read_gguf(path)
    if (root / "outputs" / "tiny" / "convert" / "merged").exists():
        assert Checkpoint(root / "outputs" / "tiny" / "convert" / "merged").names
    for path in root.rglob("*.json"):
        json.loads(path.read_text())


def test_ten_kills_at_random_moments_then_the_same_command_ends_well(tmp_path: Path) -> None:
    tiny("llama", tmp_path / "base")
    lora(tmp_path / "base", tmp_path / "outputs" / "tiny" / "adapter")
    started = time.monotonic()
    whole = start(tmp_path)
    said, _ = whole.communicate()
    assert whole.returncode == 0, said
    takes = time.monotonic() - started
    for path in (tmp_path / "models").iterdir():
        path.unlink()
    for path in (tmp_path / "outputs" / "tiny" / "convert").glob("*.json*"):
        path.unlink()  # nothing counts as done now, though most files are there
    moments = random.Random(0)
    for _ in range(KILLS):
        process = start(tmp_path)
        time.sleep(moments.uniform(0.1, 0.6) * takes)
        process.kill()
        process.communicate()
        check_all_final_names(tmp_path)
    last = start(tmp_path)
    said, _ = last.communicate()
    assert last.returncode == 0, said
    check_all_final_names(tmp_path)
    assert len(list((tmp_path / "models").glob("*.gguf"))) == 1
