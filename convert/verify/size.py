"""Check 6: the file is as large as was predicted before it was made."""

from __future__ import annotations

from pathlib import Path

from chat.machine import human_size
from convert.verify.check import Check
from convert.verify.thresholds import SIZE


def check_size(gguf: Path, predicted_bytes: int) -> list[Check]:
    """Compare the bytes on disk with `predicted_bytes`; both directions count."""
    size = gguf.stat().st_size
    off = abs(size - predicted_bytes) / predicted_bytes
    verdict = SIZE.judge(off)
    reason = f"{human_size(predicted_bytes)} were predicted, {off:.1%} off" if verdict != "ok" else ""
    return [Check("size", verdict, human_size(size), reason)]
