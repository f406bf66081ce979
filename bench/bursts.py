"""What all arms of the training benchmark share: sizes, and a report after each burst of steps."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version

LENGTH = 2048
RANK, ALPHA = 16, 32
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "trl", "liger-kernel", "unsloth", "triton")
LIBRARIES += ("nvidia-cudnn-frontend",)


class Bursts:
    """Reports what a burst of steps took, and waits for the word to begin the next."""

    def __init__(self, arm: str, mode: str) -> None:
        self.about = {"arm": arm, "mode": mode}

    def ready(self, trainable: int) -> None:
        """Say what will be trained, once the model is there."""
        self.about |= {"trainable": trainable, "versions": _versions()}

    def end(self, tokens: float, seconds: float, loss: float) -> None:
        """Print a line; return when the next one comes in. Raises SystemExit after the last."""
        import torch

        figures = {"tokens": tokens, "seconds": seconds, "loss": loss}
        figures["peak_gib"] = torch.cuda.memory_stats()["active_bytes.all.peak"] / 2**30
        print(json.dumps(self.about | figures), flush=True)
        if not sys.stdin.readline():
            raise SystemExit


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
