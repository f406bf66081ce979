"""llama.cpp's converter on one checkpoint after the other: its imports take longer than a small model."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from convert import llamacpp

_DRIVER = """
import gc, runpy, sys

gc.disable()  # half of the time that large vocabularies take
script, outtype, *rest = sys.argv[1:]
sys.path.insert(0, script.rpartition("/")[0])
for folder, out, name in zip(rest[0::3], rest[1::3], rest[2::3]):
    sys.argv = [script, folder, "--outfile", out, "--outtype", outtype, "--model-name", name]
    runpy.run_path(script, run_name="__main__")
"""


def convert(outtype: str, models: Iterable[tuple[Path, Path, str]]) -> None:
    """Write a GGUF of each checkpoint, to a path and under a name."""
    told = [str(part) for model in models for part in model]
    llamacpp.run([sys.executable, "-c", _DRIVER, llamacpp.converter(), outtype, *told])
