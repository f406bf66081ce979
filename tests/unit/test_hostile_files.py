"""Files by a stranger, made at random: each is read or costs a sentence, and the rest works on."""

from __future__ import annotations

import contextlib
import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from core.entry import Entry
from core.errors import ModelFileError
from core.gguf_model import read_gguf
from core.lora import Adapter
from core.registry import load_registry, menu
from tests.unit.test_gguf_file import gguf

CASES = 20_000
EXTREMES = [
    0,
    1,
    2**7,
    2**8 - 1,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
]


def broken(whole: bytes, draw: random.Random) -> bytes:
    """`whole` with a few bytes, numbers or pieces of it changed."""
    made = bytearray(whole)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(4, len(made))
        match draw.randrange(6):
            case 0:
                made[at] = draw.randrange(256)
            case 1:
                made[at : at + 8] = struct.pack("<Q", draw.choice(EXTREMES))
            case 2:
                made[at : at + 4] = struct.pack("<I", draw.choice(EXTREMES) % 2**32)
            case 3:
                del made[at : at + draw.randint(1, 40)]
            case 4:
                other = draw.randrange(4, len(whole))
                made[at:at] = whole[other : other + draw.randint(1, 80)]
            case _:
                del made[max(5, at) :]
        if len(made) < 6:
            return bytes(made)
    return bytes(made)


@pytest.mark.timeout(600)
def test_no_header_does_more_than_cost_a_sentence(tmp_path: Path) -> None:
    draw, whole, path = random.Random(1), gguf(), tmp_path / "x.gguf"
    path.write_bytes(whole)
    read = 0
    with path.open("r+b") as file:
        for _ in range(CASES):
            file.seek(0)
            file.truncate()
            file.write(broken(whole, draw))
            file.flush()
            with contextlib.suppress(ModelFileError):  # any other exception fails the test
                read_gguf(path)
                read += 1
    assert 0 < read < CASES


def value(draw: random.Random, depth: int = 0) -> Any:
    """A JSON value, often one that means something to somebody."""
    texts = [
        "",
        "x.gguf",
        "../x.gguf",
        "a\x00.gguf",
        "~nobody/x.gguf",
        "x" * 5000 + ".gguf",
        "\ud800.gguf",
        "C:\\x.gguf",
    ]
    plain = [None, True, -1, 0, 512, 2**70, 1e308, float("nan"), float("inf"), "main", *texts]
    if depth > 2 or draw.random() < 0.6:
        return draw.choice(plain)
    if draw.random() < 0.4:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    keys = [
        *Entry.model_fields,
        *Adapter.model_fields,
        "path",
        "package",
        "filename",
        "repo_id",
        "revision",
        "é",
        "",
    ]
    return {draw.choice(keys): value(draw, depth + 1) for _ in range(draw.randrange(5))}


def test_no_models_json_takes_the_good_entries_away(tmp_path: Path) -> None:
    draw = random.Random(2)
    (tmp_path / "good.gguf").write_bytes(gguf())
    good = {"sources": [{"path": "good.gguf"}], "n_ctx": 512}
    for _ in range(400):
        entries: dict[str, Any] = {"good": good}
        for name in ("one", "two", "\ud800", "x" * 9000, "<b>"):
            entry = dict(good) if draw.random() < 0.8 else value(draw)
            if isinstance(entry, dict):
                for _ in range(draw.randint(1, 3)):
                    entry[draw.choice([*Entry.model_fields])] = value(draw)
            entries[name] = entry
        (tmp_path / "models.json").write_text(json.dumps(entries))
        registry = load_registry(tmp_path / "models.json")
        assert registry.entries["good"] == Entry.model_validate(good)
        assert next(name for _, name in menu(registry)) == "good"
        assert registry.entries.keys() | registry.broken.keys() == entries.keys()


def test_bytes_instead_of_a_models_json(tmp_path: Path) -> None:
    draw, path = random.Random(3), tmp_path / "models.json"
    whole = json.dumps({"a": {"sources": [{"path": "good.gguf"}], "n_ctx": 512}}).encode()
    for _ in range(1000):
        path.write_bytes(broken(whole, draw))
        registry = load_registry(path)
        assert registry.entries or registry.broken or path.read_bytes().strip() == b"{}"
