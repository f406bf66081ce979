"""models/models.json, the menu of what was made here, beside the project's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.registry import MADE, add, load_registry
from tests.unit.test_registry import HUB, write


def test_what_was_made_here_joins_the_menu_and_wins(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for name in ("models/mine.gguf", "models/lora.gguf", "other.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    here: dict[str, Any] = {"n_ctx": 512}
    made = {
        "Mine": here | {"sources": [{"path": "mine.gguf"}], "adapters": ["lora.gguf"]},
        "Both": here | {"sources": [{"path": str(tmp_path / "other.gguf")}]},
        "Gone": here | {"sources": [{"path": "gone.gguf"}]},
    }
    (tmp_path / MADE).write_text(json.dumps(made))
    alone = load_registry(tmp_path / "models.json")  # which isn't there, and needn't be
    assert list(alone.entries) == ["Mine", "Both"]
    assert alone.broken == {"Gone": "not on this disk: file 'models/gone.gguf' (models/models.json)"}
    path = write(tmp_path, {"Hub": here | {"sources": [HUB]}, "Both": here | {"sources": [{"path": "no"}]}})
    registry = load_registry(path)
    assert list(registry.entries) == ["Hub", "Mine", "Both"]
    assert registry.locate(registry.entries["Mine"]) == tmp_path / "models" / "mine.gguf"
    assert [adapter.path for adapter in registry.entries["Mine"].adapters] == ["models/lora.gguf"]
    assert registry.locate(registry.entries["Both"]) == tmp_path / "other.gguf"
    assert list(registry.broken) == ["Gone"]
    before = path.read_bytes()
    add(tmp_path / MADE, "New", registry.entries["Hub"])
    assert path.read_bytes() == before
    assert list(load_registry(path).entries) == ["Hub", "Mine", "Both", "New"]
    (tmp_path / MADE).write_text("{")
    assert list(load_registry(path).entries) == ["Hub"]
    assert "line 1, column 2: not JSON" in load_registry(path).broken["models/models.json"]
