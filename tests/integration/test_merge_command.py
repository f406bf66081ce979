"""The command, and what is left when it is stopped or killed; the memory that a large merge takes."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from convert.adapter import WEIGHTS
from convert.merge import main
from core.checkpoint import Checkpoint, CheckpointWriter
from core.command import command_line
from tests.integration.commands import Command
from tests.integration.commands import run as run_command
from tests.integration.merge_bases import SIZES, WIDTHS, save_adapter, save_base, save_tokenizer

ROOT = Path(__file__).resolve().parents[2]
MERGE = "convert/merge.py"
LAYERS = 13  # of three matrices of 16 MB each: 600 MB


def run(*arguments: object, code: int) -> str:
    """Run the command and return what it printed."""
    ran = run_command(MERGE, *arguments)
    assert ran.returncode == code, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stdout + ran.stderr


def test_it_prints_what_it_made_and_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_base("llama", tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    printed = run(adapter, "--out", tmp_path / "out", "--base-model", base, code=0)
    assert f"{tmp_path / 'out'}: 29 tensors" in printed
    following = command_line("convert/to_gguf.py", [adapter, "--base-model", base])
    assert f"Next: {following} --quant q5" in printed
    assert Checkpoint(tmp_path / "out").names == Checkpoint(base).names
    assert main([str(adapter), "--out", str(tmp_path / "out")]) == 1
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["run", "--unknown"], ["a", "b"]], ids=str)
def test_bad_usage_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1


def test_a_run_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such-run"]) == 1
    assert "no run or folder is called 'no-such-run'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of 600 MB in `base`, and an adapter for each of its layers in `adapter`."""
    folder = tmp_path_factory.mktemp("large")
    base, adapter = folder / "base", folder / "adapter"
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2048, 4096, generator=generator).bfloat16()
    wide = {"hidden_size": 4096, "intermediate_size": 2048, "head_dim": 16, "num_hidden_layers": LAYERS}
    config = LlamaConfig(**SIZES | WIDTHS | wide, bos_token_id=1, eos_token_id=2)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    with CheckpointWriter(base) as writer:
        for name, tensor in model.state_dict().items():
            fits = [one for one in (weight, weight.T) if one.shape == tensor.shape]
            writer.add(name, fits[0].clone().contiguous() if fits else torch.ones(tensor.shape).bfloat16())
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(writer.partial)
    save_tokenizer(base)
    adapter.mkdir()
    parts = {"lora_A": torch.ones(16, 4096), "lora_B": torch.ones(2048, 16)}
    tensors = {
        f"base_model.model.model.layers.{layer}.mlp.up_proj.{part}.weight": value.clone()
        for layer in range(LAYERS)
        for part, value in parts.items()
    }
    save_file(tensors, adapter / WEIGHTS)
    about = {"peft_type": "LORA", "lora_alpha": 1, "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(about))
    return folder


def test_memory_is_a_few_tensors(large: Path, tmp_path: Path) -> None:
    """The growth over what the libraries take, mapped pages included, for 600 MB in and out."""
    code = f"""
import resource, sys
from pathlib import Path
from core import checkpoint
from convert.merge import merge
checkpoint.SHARD_BYTES = 100_000_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge(Path({str(large / "base")!r}), Path({str(large / "adapter")!r}), Path({str(tmp_path / "out")!r}), print)
print("grown", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout.split()[-1]) < 250_000  # kB


def test_a_kill_leaves_no_finished_folder_and_the_next_run_works(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    chance = random.Random(0)
    for stop in (signal.SIGKILL, signal.SIGINT):
        shutil.rmtree(tmp_path / "out.partial", ignore_errors=True)
        process = Command(MERGE, large / "adapter", "--out", out)
        while process.returncode is None and not (tmp_path / "out.partial").exists():
            time.sleep(0.01)
        time.sleep(chance.uniform(0.02, 0.2))
        process.send_signal(stop)
        if process.wait(60) == 0:
            pytest.fail("the merge was done before it was stopped")
        assert not out.exists()
        if stop == signal.SIGINT:
            assert process.returncode == 130
            assert "Traceback" not in process.stderr
            assert not list(tmp_path.iterdir())
    run(large / "adapter", "--out", out, code=0)
    assert not list(tmp_path.glob("*.partial"))
    name = "model.layers.0.mlp.up_proj.weight"
    before, after = Checkpoint(large / "base").read(name), Checkpoint(out).read(name)
    assert torch.equal(after, (before.float() + 1).bfloat16())
