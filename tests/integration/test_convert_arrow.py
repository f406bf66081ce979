"""The arrow on two layers of the embedded model: adapter, merge, GGUF, checks, models.json, and a chat."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from chat.model_host import Host
from core.from_gguf import checkpoint_from_gguf
from core.registry import load_registry
from tests.integration.asked import answers
from tests.integration.commands import run
from tests.integration.tiny_models import lora

pytestmark = pytest.mark.timeout(600)


def to_gguf(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run("convert/to_gguf.py", *arguments, "--root", root, cwd=root)


@pytest.fixture(scope="module")
def root(short_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository's, with one run: an adapter on those two layers."""
    root = tmp_path_factory.mktemp("root")
    checkpoint_from_gguf(short_model, root / "base")
    (root / "outputs").mkdir()
    lora(root / "base", root / "outputs" / "quotes" / "adapter")
    return root


@pytest.fixture(scope="module")
def first(root: Path) -> subprocess.CompletedProcess[str]:
    return to_gguf(root, "--quant", "q5,q4")


def test_an_adapter_becomes_two_files_that_passed_their_checks(
    root: Path, first: subprocess.CompletedProcess[str]
) -> None:
    assert first.returncode == 0, first.stdout + first.stderr
    made = {path.name for path in (root / "models").iterdir()}
    for name in ("quotes-Q5_K_M", "quotes-Q4_K_M"):
        assert {f"{name}{end}" for end in (".gguf", ".quality.json", ".Modelfile", ".md")} <= made
    assert not [name for name in made if name.endswith((".partial", ".unverified"))]
    assert not (root / "outputs" / "quotes" / "convert" / "merged").exists()


def test_what_was_measured_is_kept_and_stands_in_the_menu(
    root: Path, first: subprocess.CompletedProcess[str]
) -> None:
    quality = json.loads((root / "models" / "quotes-Q5_K_M.quality.json").read_text())
    assert quality["base"] == "base"  # no path of this machine
    registry = load_registry(root / "models.json")
    assert list(registry.entries) == ["quotes Q5_K_M", "quotes Q4_K_M"]
    assert not registry.broken
    entry = registry.entries["quotes Q5_K_M"]
    assert (entry.run, entry.quant) == ("quotes", "Q5_K_M")
    label = next(label for label, name in Host(registry, "in-process").menu() if name == "quotes Q5_K_M")
    assert all(f"{key.replace('_', ' ')} {value}" in label for key, value in entry.quality.items())


def test_the_chat_answers_with_it(root: Path, first: subprocess.CompletedProcess[str]) -> None:
    assert all(answers(root, "quotes Q5_K_M", ["Hello!"], 8))


def test_the_second_time_nothing_is_done_again(root: Path, first: subprocess.CompletedProcess[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (root / "models").glob("*.gguf")}
    again = to_gguf(root, "quotes", "--quant", "q5,q4")
    assert again.returncode == 0, again.stderr
    assert "made before" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in (root / "models").glob("*.gguf")} == before


def test_another_type_starts_from_the_16_bit_file(
    root: Path, first: subprocess.CompletedProcess[str]
) -> None:
    more = to_gguf(root, "quotes", "--quant", "q8")
    assert more.returncode == 0, more.stdout + more.stderr
    took = more.stdout.split("What it took")[1]
    assert "Q8_0" in took
    assert "merge" not in took


def test_the_adapter_alone_is_a_gguf_for_its_base(root: Path) -> None:
    done = to_gguf(root, "quotes", "--lora")
    assert done.returncode == 0, done.stderr
    assert (root / "models" / "quotes-lora.gguf").is_file()


def test_a_base_that_is_nowhere_is_asked_for(root: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "outputs" / "lost" / "adapter"
    shutil.copytree(root / "outputs" / "quotes" / "adapter", adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "someone/not-on-this-disk"
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    done = to_gguf(tmp_path, "lost")
    assert done.returncode == 1
    assert "--base-model" in done.stderr
    assert "Traceback" not in done.stderr
