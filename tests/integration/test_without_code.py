"""A checkpoint that brings Python code is converted without it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.commands import run
from tests.integration.tiny_models import tiny


def test_code_that_a_checkpoint_brings_is_never_run(tmp_path: Path) -> None:
    checkpoint = tiny("phi3", tmp_path / "my-phi")
    trap = tmp_path / "it-ran"
    (checkpoint / "evil.py").write_text(f"open({str(trap)!r}, 'w')\nclass Evil: pass\n")
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((checkpoint / name).read_text())
        content["auto_map"] = {"AutoTokenizer": ["evil.Evil", None], "AutoConfig": "evil.Evil"}
        (checkpoint / name).write_text(json.dumps(content))
    done = run("convert/to_gguf.py", checkpoint, "--quant", "f16", "--root", tmp_path)
    assert not trap.exists()
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "models" / "my-phi-F16.gguf").is_file()
    assert not list((tmp_path / "outputs").rglob("*.py"))
