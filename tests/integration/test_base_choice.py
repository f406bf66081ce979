"""NF4 simulated as bitsandbytes does it, and the base chosen by held-out loss."""

from __future__ import annotations

import warnings
from pathlib import Path

import bitsandbytes
import pytest
import torch
from peft import PeftModel

from convert import nf4
from convert.base_choice import ADAPTER_ON_NF4, MERGED_FULL, MERGED_NF4, choose_base
from convert.merge import merge
from core.checkpoint import Checkpoint
from core.errors import ConvertError
from core.rows import Row
from tests.integration.merge_bases import load, save_adapter, save_base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base("llama", tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return save_adapter(base, tmp_path / "run" / "adapter", r=4, target_modules=["q_proj", "down_proj"])


def rows(count: int = 6) -> list[Row]:
    torch.manual_seed(2)
    chats = [torch.randint(3, 60, (12,)).tolist() for _ in range(count)]
    return [Row([], ids, [0] * 4 + [1] * 8, "test" if i % 2 else "train") for i, ids in enumerate(chats)]


def loss_by_transformers(model: torch.nn.Module, tests: list[Row]) -> float:
    """transformers' own mean over the labelled tokens; all rows here have as many."""
    losses = []
    for row in tests:
        ids = torch.tensor([row.ids])
        labels = ids.masked_fill(torch.tensor([row.mask]) == 0, -100)
        with torch.no_grad():
            losses.append(model(ids, labels=labels).loss.item())
    return sum(losses) / len(losses)


def test_nf4_is_what_a_4_bit_layer_computes_with() -> None:
    torch.manual_seed(0)
    weight = torch.randn(48, 320).bfloat16()
    layer = bitsandbytes.nn.Linear4bit(320, 48, bias=False, quant_type="nf4", compress_statistics=True)
    layer.weight = bitsandbytes.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
    layer.to("cpu")
    state = layer.weight.quant_state
    assert state.nested
    assert state.blocksize == nf4.BLOCK_SIZE
    expected = bitsandbytes.functional.dequantize_4bit(layer.weight.data, state)
    found = nf4.simulate(weight)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


def test_merging_on_nf4_changes_linear_layers_only(base: Path, adapter: Path, tmp_path: Path) -> None:
    for name, simulate in (("full", False), ("nf4", True)):
        merge(base, adapter, tmp_path / name, lambda done, total: None, simulate)
    full, four, original = (Checkpoint(tmp_path / name) for name in ("full", "nf4", "base"))
    for name in full.names:
        linear = "_proj.weight" in name
        assert torch.equal(full.read(name), four.read(name)) != linear, name
        if linear and not any(part in name for part in ("q_proj", "down_proj")):
            assert torch.equal(four.read(name), nf4.simulate(original.read(name)))


def test_the_better_merge_is_kept(base: Path, adapter: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    chosen, losses = choose_base(base, adapter, rows(), lambda done, total: steps.append((done, total)))
    assert list(losses) == [ADAPTER_ON_NF4, MERGED_FULL, MERGED_NF4]
    assert chosen == ("full" if losses[MERGED_FULL] <= losses[MERGED_NF4] else "nf4")
    assert steps[-1] == (9, 9)
    tests = [row for row in rows() if row.split == "test"]
    for name, simulate in ((MERGED_FULL, False), (MERGED_NF4, True)):
        merge(base, adapter, tmp_path / name, lambda done, total: None, simulate)
        assert losses[name] == pytest.approx(loss_by_transformers(load(tmp_path / name), tests), rel=1e-5)
    model = load(base)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.weight.data = nf4.simulate(module.weight.data.bfloat16()).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        live = PeftModel.from_pretrained(model, adapter)
    assert losses[ADAPTER_ON_NF4] == pytest.approx(loss_by_transformers(live, tests), rel=1e-5)
    assert [path.name for path in adapter.parent.iterdir()] == ["adapter"]


def test_a_resized_vocabulary_is_measured_too(base: Path, tmp_path: Path) -> None:
    options = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    adapter = save_adapter(base, tmp_path / "run" / "adapter", rows=70, **options)
    _, losses = choose_base(base, adapter, rows(), lambda done, total: None)
    # NF4 and bf16 differ a little, the adapter's embedding not at all
    assert losses[ADAPTER_ON_NF4] == pytest.approx(losses[MERGED_NF4], rel=0.05)


def test_without_test_rows_there_is_nothing_to_choose_by(base: Path, adapter: Path) -> None:
    with pytest.raises(ConvertError, match="--base full or --base nf4"):
        choose_base(base, adapter, rows(1), lambda done, total: None)
