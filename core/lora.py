"""LoRA files over one base: their names, and how strongly a request wants each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from core.errors import NoSuchAdapter

MAX_STRENGTH = 2.0  # twice what was trained; llama.cpp takes any number, and writes noise far above


class Adapter(BaseModel):
    """One of an entry's `adapters`. A path alone is one that applies unless a request says otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1, description="a LoRA in GGUF format")
    name: str = Field("", description="how a request calls it; the file's name without its ending by itself")
    strength: float = Field(1.0, ge=0, le=MAX_STRENGTH, description="where a request names none; 0 is off")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, content: Any) -> Any:
        content = {"path": content} if isinstance(content, str) else content
        if isinstance(content, Mapping) and isinstance(content.get("path"), str) and not content.get("name"):
            return dict(content) | {"name": PurePath(content["path"]).stem}
        return content


def strengths(adapters: Sequence[Adapter], asked: Mapping[str, float]) -> list[float]:
    """Return the strength of each of `adapters`: their own if nothing is asked, else 0 if not asked for.

    Raises NoSuchAdapter for a name or a strength that isn't there to be had.
    """
    names = [adapter.name for adapter in adapters]
    for name, strength in asked.items():
        if name not in names:
            known = f"it has: {', '.join(names)}" if names else "it has none"
            raise NoSuchAdapter(f"This model has no adapter called {name!r}; {known}.")
        if not (math.isfinite(strength) and 0 <= strength <= MAX_STRENGTH):
            raise NoSuchAdapter(
                f"{name!r} can't have the strength {strength}: from 0 (off) to {MAX_STRENGTH:g}."
            )
    return [asked.get(adapter.name, 0.0) if asked else adapter.strength for adapter in adapters]
