"""llama.cpp's tools and converter: found, fetched with a known hash, run, and ended with us."""

from __future__ import annotations

import ast
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
import pytest
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as WRITING

from convert import llamacpp
from core.errors import ConvertError
from core.families import NOT_IN_LLAMA_CPP, has_parts, refusal

ROOT = Path(__file__).resolve().parents[2]
# Published under a class of another name, and as part of a model that llama.cpp knows.
ELSEWHERE = ("mpt", "gemma4_unified_text")
WITHOUT_DEFAULTS = ("gemma4_assistant",)  # has no configuration that its own class takes


def test_the_tools_of_the_installed_binding_are_found() -> None:
    assert llamacpp.tool("llama-quantize").is_file()


def test_a_folder_of_ones_own_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "build" / "bin" / "llama-quantize"
    own.parent.mkdir(parents=True)
    own.touch()
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    assert llamacpp.tool("llama-quantize") == own


def test_a_missing_tool_is_named_with_its_cure() -> None:
    with pytest.raises(ConvertError, match=r"llama-nonsense is not installed. Run 'make chat' once"):
        llamacpp.tool("llama-nonsense")


def test_a_failing_program_shows_its_command_its_code_and_its_last_lines(tmp_path: Path) -> None:
    command = [llamacpp.tool("llama-quantize"), tmp_path / "nothing.gguf", tmp_path / "out.gguf", "Q4_K_M"]
    with pytest.raises(ConvertError) as caught:
        llamacpp.run(command)
    said = str(caught.value)
    assert "ended with code 1" in said
    assert "nothing.gguf" in said.splitlines()[1]
    assert 2 < len(said.splitlines()) <= 2 + llamacpp.SHOWN_LINES


def test_lines_come_as_they_are_written_and_redrawn_bars_count() -> None:
    code = "import sys, time\nfor i in range(3):\n print(f'{i}%', end='\\r', flush=True); time.sleep(0.2)"
    seen: list[tuple[str, float]] = []
    llamacpp.run([sys.executable, "-c", code], lambda line: seen.append((line, time.monotonic())))
    assert list(dict(seen)) == ["0%", "1%", "2%"]
    assert seen[-1][1] - seen[0][1] > 0.3


def test_a_program_gets_no_secret_and_may_not_go_online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_not_for_children")
    code = "import os; print(os.environ.get('HF_TOKEN'), os.environ['HF_HUB_OFFLINE'])"
    assert llamacpp.run([sys.executable, "-c", code]).strip() == "None 1"


def test_the_converter_is_the_one_of_the_installed_version_and_fetched_once() -> None:
    script = llamacpp.converter()
    assert {path.name for path in script.parent.iterdir()} == set(llamacpp.CONVERTER_PARTS)
    started = time.monotonic()
    assert llamacpp.converter(llamacpp.LORA_CONVERTER).parent == script.parent
    assert time.monotonic() - started < 0.5


def test_a_source_of_unknown_hash_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(llamacpp, "SDIST_SHA256", {"0.0.1": "0" * 64})
    with pytest.raises(ConvertError, match=r"no hash is known .* install 0.0.1, or set LLAMA_CPP_DIR"):
        llamacpp.converter()


def test_an_archive_writes_nothing_outside_its_folder(tmp_path: Path) -> None:
    archive = tmp_path / "evil.tar.gz"
    payload = tmp_path / "payload"
    payload.write_text("#")
    with tarfile.open(archive, "w:gz") as out:
        for name in (
            "pkg/vendor/llama.cpp/conversion/../../../../evil.py",
            "pkg/vendor/llama.cpp/convert_hf_to_gguf.py",
            "pkg/other/secret.py",
        ):
            out.add(payload, name)
    llamacpp.extract(archive, tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").rglob("*")] == ["convert_hf_to_gguf.py"]
    assert not list(tmp_path.rglob("evil.py"))


def test_a_program_ends_when_we_are_killed() -> None:
    code = (
        "import sys; from convert import llamacpp\n"
        "llamacpp.run([sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)'], print)"
    )
    ours = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert ours.stdout is not None
    ours.stdout.readline()
    children = psutil.Process(ours.pid).children(recursive=True)
    assert len(children) == 2  # the guard and the program
    ours.kill()
    ours.wait()
    ours.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_what_llama_cpp_lacks_is_what_its_converter_does_not_list() -> None:
    source = ast.parse((llamacpp.converter().parent / "conversion" / "__init__.py").read_text())
    assigned = (node for node in source.body if isinstance(node, ast.AnnAssign))
    listed = next(node.value for node in assigned if ast.unparse(node.target) == "TEXT_MODEL_MAP")
    assert listed is not None
    known = set(ast.literal_eval(listed))
    classes = {kind: names if isinstance(names, tuple) else (names,) for kind, names in WRITING.items()}
    lacking = {kind for kind, names in classes.items() if not known & {*names}}
    assert not NOT_IN_LLAMA_CPP - lacking
    for kind in lacking - {*ELSEWHERE, *WITHOUT_DEFAULTS}:
        config = AutoConfig.for_model(kind).to_dict() | {"architectures": [classes[kind][0]]}
        assert has_parts(config) or refusal(config, kind), kind
