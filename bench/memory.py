"""How much memory something took at most: of the GPU's where there is one, else of a process's."""

from __future__ import annotations

import gc
import sys
from contextlib import suppress
from pathlib import Path

import torch

from core.machine import give_back

_PROC = Path("/proc")


def free(cuda: bool) -> None:
    """Give back what isn't used any more, or it would count as the next one's."""
    gc.collect()
    give_back()
    if cuda:
        torch.cuda.empty_cache()


class PeakMemory:
    """The most memory since it was made, libraries included where it is a process's."""

    def __init__(self, cuda: bool) -> None:
        self._cuda = cuda
        free(cuda)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        elif sys.platform == "linux":
            (_PROC / "self/clear_refs").write_text("5")

    def gb(self) -> float | None:
        """In 10^9 bytes; None where the system doesn't tell."""
        return torch.cuda.max_memory_allocated() / 1e9 if self._cuda else peak_gb("self")


def peak_gb(process: int | str) -> float | None:
    """The most memory that a process had (10^9 bytes); None where the system doesn't tell."""
    try:
        lines = (_PROC / str(process) / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM")), None)


def children_peak_gb() -> float:
    """The most memory that any program had which this one has started and which still runs; 0 without."""
    found, waiting = 0.0, ["self"]
    while waiting:
        with suppress(OSError):  # it has ended meanwhile
            for file in (_PROC / waiting.pop() / "task").glob("*/children"):
                for process in file.read_text().split():
                    found = max(found, peak_gb(process) or 0.0)
                    waiting.append(process)
    return found
