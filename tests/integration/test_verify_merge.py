"""The merged checkpoint beside base and adapter as PEFT runs them: a broken merge doesn't pass."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from convert.verify.adapted import Adapted, Layer, MergeInputs
from convert.verify.limits import Check, worst
from convert.verify.merged import arrived, arrived_beside, check_merge, coarsest_dtype, not_merged
from core.errors import ConvertError
from core.gptq import open_checkpoint
from core.log_probs import Scores, compare, log_probs, read_reference, save_reference, targets
from core.rows import Row
from tests.integration.merge_bases import (
    LINEAR,
    changed,
    edit_json,
    load,
    merged,
    save_adapter,
    save_base,
    save_tokenizer,
)
from tests.integration.test_gptq import quantised

ROWS = [Row([], list(range(3, 50)), [0] * 5 + [1] * 42, "test")] * 2
QUERY = "model.layers.1.self_attn.q_proj.weight"

Tensors = dict[str, torch.Tensor]


def asked(base: Path, adapter: Path, folder: Path, nf4: bool = False) -> tuple[Path, list[Layer]]:
    """What base and adapter say, as PEFT runs them."""
    with closing(Adapted(MergeInputs(base, adapter, nf4))) as adapted:
        save_reference(folder / "adapter.npy", adapted.log_probs(ROWS, lambda: None), len(targets(ROWS)))
        return folder / "adapter.npy", list(adapted.layers())


def judged(checkpoint: Path, said: Path, layers: list[Layer], folder: Path) -> list[Check]:
    model: Any = load(checkpoint).eval()
    save_reference(folder / "own.npy", log_probs(model, ROWS, lambda: None), len(targets(ROWS)))
    scores = compare(said, read_reference(folder / "own.npy"), targets(ROWS))
    return check_merge(scores, arrived(model, layers, coarsest_dtype(checkpoint)))


@pytest.mark.parametrize(
    ("kind", "rows", "options"),
    [
        *((kind, None, {"fan_in_fan_out": kind == "gpt2"}) for kind in LINEAR),
        ("phi3", None, {"use_dora": True}),
        ("llama", None, {"lora_bias": True, "target_modules": ["q_proj", "k_proj"]}),
        ("llama", 70, {}),
        ("llama", None, {"modules_to_save": ["embed_tokens", "lm_head"]}),
        ("llama-tied", None, {"target_modules": ["embed_tokens", "q_proj"]}),
    ],
)
def test_our_merge_is_what_peft_runs(
    kind: str, rows: int | None, options: dict[str, Any], tmp_path: Path
) -> None:
    base = save_base(kind, tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", rows, **{"target_modules": LINEAR[kind]} | options)
    if rows:
        save_tokenizer(adapter, tuple(f"new{number}" for number in range(rows - 60)))
    said, layers = asked(base, adapter, tmp_path)
    checks = judged(merged(base, adapter, tmp_path / "merged"), said, layers, tmp_path)
    assert {check.verdict for check in checks} == {"ok"}, checks
    assert f"{len(layers)} of {len(layers)} layers" in checks[2].figure


def test_a_gptq_base_is_asked_as_what_its_layers_stand_for(tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base", torch.float16)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    with changed(base / "model.safetensors") as tensors:
        for name in [name for name in tensors if "_proj.weight" in name]:
            outputs, inputs = tensors.pop(name).shape
            parts, _ = quantised(4, 16, True, "gptq", (outputs, inputs))
            tensors |= {name.replace("weight", part): tensor for part, tensor in parts.items()}
    edit_json(base / "config.json", quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 16})
    said, layers = asked(base, adapter, tmp_path)
    good = merged(base, adapter, tmp_path / "merged")
    checks = judged(good, said, layers, tmp_path)
    assert {check.verdict for check in checks} == {"ok"}, checks
    with changed(good / "model.safetensors") as tensors:
        tensors[QUERY] = open_checkpoint(base).read(QUERY)
    updates = judged(good, said, layers, tmp_path)[2]
    assert (updates.verdict, QUERY.removesuffix(".weight") in updates.reason) == ("fail", True)


def left_out(tensors: Tensors, base: Tensors) -> None:
    tensors[QUERY] = base[QUERY].clone()


def twice_the_scale(tensors: Tensors, base: Tensors) -> None:
    tensors[QUERY] = (2 * tensors[QUERY].float() - base[QUERY].float()).bfloat16()


def transposed(tensors: Tensors, base: Tensors) -> None:
    update = tensors[QUERY].float() - base[QUERY].float()
    tensors[QUERY] = (base[QUERY].float() + update.T).bfloat16().contiguous()


def twice_everywhere(tensors: Tensors, base: Tensors) -> None:
    for name in tensors:
        tensors[name] = (2 * tensors[name].float() - base[name].float()).bfloat16()


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Layer]]:
    folder = tmp_path_factory.mktemp("right")
    base = save_base("llama", folder / "base")
    adapter = save_adapter(base, folder / "adapter", target_modules=LINEAR["llama"])
    merged(base, adapter, folder / "merged")
    return (folder, *asked(base, adapter, folder))


@pytest.mark.parametrize("breaks", [left_out, twice_the_scale, transposed, twice_everywhere])
def test_a_broken_merge_fails(
    breaks: Callable[[Tensors, Tensors], None], right: tuple[Path, Path, list[Layer]], tmp_path: Path
) -> None:
    folder, said, layers = right
    shutil.copytree(folder / "merged", tmp_path / "broken")
    with changed(tmp_path / "broken" / "model.safetensors") as tensors:
        breaks(tensors, load_file(folder / "base" / "model.safetensors"))
    checks = judged(tmp_path / "broken", said, layers, tmp_path)
    assert worst(check.verdict for check in checks) == "fail"
    updates = next(check for check in checks if check.name == "merge: updates")
    assert updates.verdict == "fail"
    assert breaks is twice_everywhere or QUERY.removesuffix(".weight") in updates.reason


def test_a_merge_on_the_other_form_of_the_base_fails(
    right: tuple[Path, Path, list[Layer]], tmp_path: Path
) -> None:
    folder, _, _ = right
    said, layers = asked(folder / "base", folder / "adapter", tmp_path, nf4=True)
    assert worst(c.verdict for c in judged(folder / "merged", said, layers, tmp_path)) == "fail"


def test_predictions_that_moved_fail_by_themselves(right: tuple[Path, Path, list[Layer]]) -> None:
    folder, _, layers = right
    found = arrived(load(folder / "merged").eval(), layers)
    moved = Scores(tokens=84, loss=4.0, perplexity=55.0, kl_mean=0.05, kl_99=0.2, same_top=0.9)
    assert [check.verdict for check in check_merge(moved, found)] == ["fail", "fail", "ok", "ok"]


def test_names_of_wrappers_are_no_obstacle_and_missing_parts_are_named(
    right: tuple[Path, Path, list[Layer]], tmp_path: Path
) -> None:
    folder, said, _ = right
    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    with changed(file) as tensors:
        for name in list(tensors):
            tensors["_orig_mod." + name.replace(".weight", ".default.weight")] = tensors.pop(name)
    again, _ = asked(folder / "base", tmp_path / "adapter", tmp_path)
    assert again.read_bytes() == said.read_bytes()
    edit_json(tmp_path / "adapter" / "adapter_config.json", target_modules=["q_proj", "o_proj"])
    with pytest.raises(ConvertError, match=r"PEFT can't put .* the file lacks .*o_proj"):
        asked(folder / "base", tmp_path / "adapter", tmp_path)


@pytest.mark.parametrize(
    ("dtype", "verdict"), [(torch.bfloat16, "n/a"), (torch.float16, "fail"), (torch.float32, "fail")]
)
def test_a_small_update_that_is_transposed_fails_where_the_type_can_hold_it(
    dtype: torch.dtype, verdict: str, tmp_path: Path
) -> None:
    base = save_base("llama", tmp_path / "base", dtype)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    with changed(adapter / "adapter_model.safetensors") as tensors:
        for name in tensors:
            tensors[name] = tensors[name].float() * 0.1  # the update is 0.003 of the layer
    said, layers = asked(base, adapter, tmp_path)
    broken = merged(base, adapter, tmp_path / "broken")
    assert judged(broken, said, layers, tmp_path)[2].verdict == ("n/a" if verdict == "n/a" else "ok")
    original = load_file(base / "model.safetensors")
    with changed(broken / "model.safetensors") as tensors:
        tensors[QUERY] = (original[QUERY] + (tensors[QUERY] - original[QUERY]).T).contiguous()
    assert judged(broken, said, layers, tmp_path)[2].verdict == verdict


@pytest.mark.parametrize(("size", "verdict"), [(1e-8, "n/a"), (1e-4, "fail")])
def test_an_update_that_is_lost_in_the_arithmetic_is_not_judged(size: float, verdict: str) -> None:
    base, update = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(0))
    layer = Layer("q_proj", base.numpy(), (base + size * update).numpy(), False, 64)
    equal = Scores(tokens=84, loss=4.0, perplexity=55.0, kl_mean=0.0, kl_99=0.0, same_top=1.0)
    updates = check_merge(equal, arrived_beside([(layer, base.numpy())]))[2]
    assert updates.verdict == verdict, updates


def test_where_nothing_was_merged_the_table_says_so() -> None:
    (check,) = not_merged("the checkpoint came as it is")
    assert (check.name, check.verdict, check.reason) == ("merge", "n/a", "the checkpoint came as it is")
