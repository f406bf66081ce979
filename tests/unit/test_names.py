"""A model's name where files, shells, Ollama and the hub's cache have rules of their own."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from convert.preflight import model_name
from convert.publish import model_card, modelfile
from convert.source import MAX_BYTES, bounded, command_for, find_source, folder_name, ollama_name
from convert.verify.limits import Check
from convert.verify.report import Report
from core.gguf_model import read_gguf
from core.log_probs import Scores

REPORT = Report("Q4_1", [Check("size", "ok", "1")], {"Q4_1": Scores(1, 1.0, 2.7, 0.0, 0.0, 1.0)})
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Rezepte v1.0 (für Oma)-Q8_0", "rezepte-v1.0-fur-oma-q8_0"),
        ("Größe", "grosse"),
        ("-x.", "x"),
        ("'; rm -rf ~", "rm-rf"),
        ("日本", "model"),
        ("a" * 200, "a" * 80),
    ],
)
def test_ollamas_rule(name: str, expected: str) -> None:
    assert ollama_name(name) == expected


def test_a_long_name_leaves_room_and_stays_its_own() -> None:
    names = ["ü" * 120 + end for end in "ab"]
    short = [bounded(name) for name in names]
    assert len(set(short)) == 2
    assert all(len(name.encode()) <= MAX_BYTES for name in short)
    assert bounded("ü" * 100) == "ü" * 100


def test_a_base_in_the_hubs_cache_has_the_repositorys_name(tmp_path: Path) -> None:
    folder = tmp_path / "models--acme--Phi-3-Tiny" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert folder_name(folder) == "acme/Phi-3-Tiny"
    assert model_name(folder, "run") == "Phi-3-Tiny run"
    assert find_source(str(folder), tmp_path / "outputs").name == "Phi-3-Tiny"


@pytest.mark.parametrize("name", ["Rezepte v1.0 (für Oma)", "it's $HOME; `x`", "-dash", "dot."])
def test_commands_can_be_pasted(name: str, embedded_model: Path, tmp_path: Path) -> None:
    gguf = tmp_path / f"{name}.gguf"
    gguf.symlink_to(embedded_model)
    file = read_gguf(gguf)
    about = {"base": "a/b", "run": name, "tested_on": "chats"}
    lines = model_card(name, file, REPORT, about).splitlines()
    app, ollama = (shlex.split(line) for line in lines if line.startswith(("    python", "    ollama")))
    assert app == ["python", "app.py", "--model", str(gguf)]
    assert ollama == ["ollama", "create", ollama_name(name), "-f", str(tmp_path / f"{name}.Modelfile")]
    assert modelfile(name, file).splitlines()[0] in (f'FROM "./{name}.gguf"', f"FROM ./{name}.gguf")
    assert shlex.split(command_for(name))[-1] == name


def test_the_card_of_a_model_in_the_repository_names_no_folder_of_the_machine(
    embedded_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("convert.publish.ROOT", tmp_path)
    (tmp_path / "models").mkdir()
    gguf = tmp_path / "models" / "run.gguf"
    gguf.symlink_to(embedded_model)
    card = model_card("run", read_gguf(gguf), REPORT, {"base": "a/b", "run": "run", "tested_on": "chats"})
    assert "app.py --model models/run.gguf\n" in card
    assert "-f models/run.Modelfile\n" in card


def test_a_modelfile_quotes_double_quotes_with_three(embedded_model: Path, tmp_path: Path) -> None:
    gguf = tmp_path / 'say "hi".gguf'
    gguf.symlink_to(embedded_model)
    assert modelfile('say "hi"', read_gguf(gguf)).splitlines()[0] == 'FROM """./say "hi".gguf"""'
