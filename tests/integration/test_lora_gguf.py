"""`--lora`: what a LoRA GGUF can hold works, measured on its base; other tensors are refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file

from convert import quantise
from convert.adapter import WEIGHTS, Adapter
from convert.lora_gguf import adapter_alone, write_plain
from convert.source import find_source
from convert.stages import Settings
from convert.verify.adapted import Adapted, MergeInputs
from convert.verify.merged import LoraFile, arrived_beside, check_merge
from core.checkpoint import SINGLE
from core.errors import ConvertError
from core.log_probs import Scores
from core.registry import load_registry
from tests.integration.merge_bases import changed, edit_json, merged, save_adapter, save_base
from tests.integration.tiny_models import lora, tiny

EMBEDDING = "base_model.model.model.embed_tokens.weight"
IN_GGUF = "blk.0.attn_q.weight.lora_"
LORA_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("llama", tmp_path_factory.mktemp("base") / "base")


def convert(adapter: Path, root: Path) -> int:
    return adapter_alone(find_source(str(adapter), root / "outputs"), Settings(), root)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")  # PEFT's: it saves copies of the base's
def test_what_scales_an_update_goes_into_it(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """rsLoRA, ranks and alphas by module, head and embedding; and copies of the base's, which PEFT saves."""
    adapter = lora(
        base,
        tmp_path / "rs",
        target_modules=["q_proj", "down_proj", "lm_head", "embed_tokens"],
        use_rslora=True,
        rank_pattern={"down_proj": 4},
        alpha_pattern={"lm_head": 40},
    )
    with changed(adapter / WEIGHTS) as tensors:
        assert EMBEDDING.replace(".weight", ".base_layer.weight") in tensors
        tensors["base_model.model.model.norm.weight"] = load_file(base / SINGLE)["model.norm.weight"].clone()
    hub = {"repo_id": "some/base", "filename": "base.gguf"}
    menu = {"Base": {"sources": [hub, {"path": "b.gguf"}], "n_ctx": 512, "base": base.name}}
    (tmp_path / "models.json").write_text(json.dumps(menu))
    assert convert(adapter, tmp_path) == 0
    made = json.loads((tmp_path / "models" / "models.json").read_text())
    assert made["rs lora"]["sources"] == [hub, {"path": "../b.gguf"}]
    assert made["rs lora"]["adapters"] == [{"path": "rs-lora.gguf", "name": "rs-lora"}]
    assert load_registry(tmp_path / "models.json").entries["rs lora"].n_ctx == 512
    said = capsys.readouterr().out.splitlines()
    plain, with_it = (
        next(line for line in said if line.startswith(f"  {name}  "))
        for name in ("base GGUF", "base GGUF with the adapter")
    )
    kl = [float(line.split("mean KL")[1].split()[0]) for line in (plain, with_it)]
    assert kl[0] > 0.05  # the adapter does something
    assert kl[1] < 0.01
    assert (tmp_path / "models" / "rs-lora.gguf").is_file()
    assert not list(tmp_path.rglob("base.gguf"))
    checks = {line.split()[2]: line.split()[0] for line in said if line.startswith("  ok    adapter: ")}
    assert checks == dict.fromkeys(("KL", "updates", "layers"), "ok")
    assert any(re.search(r"updates +6 of 6 layers have at least (0\.99|1\.0)", line) for line in said)


def left_out(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"blk.0.attn_q.weight", b"blk.0.attn_z.weight"))


def twice_the_scale(file: Path) -> None:
    tensors(file)[f"{IN_GGUF}a"][:] *= 2


def transposed(file: Path) -> None:
    """The update of a square layer, small beside the base, which no prediction shows."""
    found = tensors(file)
    a, b = found[f"{IN_GGUF}a"], found[f"{IN_GGUF}b"]
    a[:], b[:] = b.T.copy(), a.T.copy()


def tensors(file: Path) -> dict[str, Any]:
    """A GGUF's tensors as they lie in it: what is written into them is in the file."""
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(file, "r+").tensors}


def test_a_file_that_does_something_else_than_peft_fails(base: Path, tmp_path: Path) -> None:
    """Also where the update is too small for any prediction to show it."""
    adapter = lora(base, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    with changed(adapter / WEIGHTS) as weights:
        for name in weights:
            weights[name] *= 0.01
    with closing(Adapted(MergeInputs(base, adapter))) as adapted:
        layers = list(adapted.layers())
    quantise.convert_checkpoint(base, tmp_path / "base.gguf", "bf16", "base", lambda done, total: None)
    write_plain(Adapter(adapter), tmp_path / "plain")
    quantise.convert_adapter(tmp_path / "plain", base, tmp_path / "made.gguf")
    equal = Scores(tokens=9, loss=4.0, perplexity=55.0, kl_mean=0.0, kl_99=0.0, same_top=1.0)
    for breaks in (None, left_out, twice_the_scale, transposed):
        made = tmp_path / f"{breaks and breaks.__name__}.gguf"
        shutil.copyfile(tmp_path / "made.gguf", made)
        if breaks:
            breaks(made)
            assert made.read_bytes() != (tmp_path / "made.gguf").read_bytes()
        found = arrived_beside(LoraFile(tmp_path / "base.gguf", made).outputs(layers))
        checks = check_merge(equal, found, made="adapter")
        assert len(found) == 4
        updates = next(check for check in checks if check.name == "adapter: updates")
        assert updates.verdict == ("fail" if breaks else "ok"), (breaks, updates)
        assert not breaks or "layers.0.self_attn.q_proj" in updates.reason


def add_rows(tensors: dict[str, torch.Tensor]) -> None:
    tensors[EMBEDDING] = torch.zeros(32064, 256, dtype=torch.bfloat16)


def add_bias(tensors: dict[str, torch.Tensor]) -> None:
    tensors[LORA_A.replace("lora_A.weight", "lora_B.bias")] = torch.zeros(256, dtype=torch.bfloat16)


def replace_whole(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.lm_head.weight"] = torch.zeros(32000, 256, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (add_rows, "embed_tokens.weight has 32064 rows in it, and 32000 in the base"),
        (add_bias, "another base|no place for biases"),
        (replace_whole, r"lm_head.weight is replaced as a whole \(modules_to_save\)"),
    ],
    ids=["rows", "bias", "modules_to_save"],
)
def test_tensors_that_such_a_file_cannot_hold(
    change: Callable[[dict[str, torch.Tensor]], None], said: str, base: Path, tmp_path: Path
) -> None:
    adapter = lora(base, tmp_path / "adapter", target_modules=["q_proj"])
    with changed(adapter / WEIGHTS) as tensors:
        change(tensors)
        if change is add_rows:
            tensors["base_model.model.lm_head.weight"] = torch.zeros(32064, 256, dtype=torch.bfloat16)
    with pytest.raises(ConvertError, match=said):
        convert(adapter, tmp_path)
    assert not list(tmp_path.rglob("*.gguf"))


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("llama", {"target_modules": ["q_proj"], "use_dora": True}, r"has a magnitude \(DoRA\)"),
        ("llama-tied", {"target_modules": ["embed_tokens"]}, "embedding and head are one tensor"),
        ("llama-tied", {"target_modules": ["lm_head"]}, "embedding and head are one tensor"),
        ("gemma2", {"target_modules": ["q_proj", "lm_head"]}, "has one place for both"),
        ("gemma2", {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, "are one tensor"),
    ],
    ids=str,
)
def test_adapters_that_such_a_file_cannot_hold(
    kind: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    base = save_base(kind, tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", **options)
    with pytest.raises(ConvertError, match=said):
        convert(adapter, tmp_path)


def test_a_plain_adapter_means_the_same(tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base", torch.float32)
    options = {"use_rslora": True, "alpha_pattern": {"q_proj": 7}, "rank_pattern": {"k_proj": 2}}
    adapter = save_adapter(
        base, tmp_path / "a", target_modules=["q_proj", "k_proj", "embed_tokens"], **options
    )
    write_plain(Adapter(adapter), tmp_path / "plain")
    edit_json(tmp_path / "plain" / "adapter_config.json", base_model_name_or_path=str(base))
    expected = load_file(merged(base, adapter, tmp_path / "one") / SINGLE)
    found = load_file(merged(base, tmp_path / "plain", tmp_path / "two") / SINGLE)
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)
