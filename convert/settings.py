"""What the command line of `convert/to_gguf.py` asks for, beside the source and the types."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """`base`: full, nf4, auto, or None for the default. `imatrix`: auto, none, or the path of a file."""

    base_model: str | None = None
    base: str | None = None
    imatrix: str = "auto"
    keep: bool = False
