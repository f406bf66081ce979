"""Names that wrappers and live adapters leave in an adapter's file mean what they mean without them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.adapter import WEIGHTS
from convert.verify.adapted import Adapted, MergeInputs
from convert.verify.merged import arrived, check_merge
from core.checkpoint import SINGLE
from core.errors import ConvertError
from core.log_probs import Scores
from tests.integration.merge_bases import load, merged, save_adapter, save_base

SAME = Scores(tokens=1, loss=4.0, perplexity=55.0, kl_mean=0.0, kl_99=0.0, same_top=1.0)
OPTIONS = {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"], "use_dora": True}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("llama", tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(base, tmp_path_factory.mktemp("adapter") / "adapter", **OPTIONS)


def renamed(adapter: Path, out: Path, rename: Callable[[str], str]) -> Path:
    out.mkdir()
    (out / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    save_file({rename(name): tensor for name, tensor in load_file(adapter / WEIGHTS).items()}, out / WEIGHTS)
    return out


def live(name: str, adapter: str) -> str:
    """As the state_dict of a PeftModel has it."""
    for part in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"):
        if f".{part}.weight" in name or name.endswith(f".{part}"):
            return name.replace(f".{part}", f".{part}.{adapter}")
    return name.replace("lm_head.weight", f"lm_head.modules_to_save.{adapter}.weight")


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_fsdp_wrapped_module.{name}".replace("layers.0.", "layers.0._fsdp_wrapped_module."),
        lambda name: name.replace("base_model.model.", "base_model.model.module."),
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda name: name.replace("layers.1.", "layers.1._checkpoint_wrapped_module."),
        lambda name: live(name, "default"),
        lambda name: live(name, "my-style_2"),
        lambda name: "module." + live(name, "default"),
    ],
    ids=range(10),
)
def test_the_same_merge_whatever_wrapped_it(
    rename: Callable[[str], str], base: Path, adapter: Path, tmp_path: Path
) -> None:
    expected = load_file(merged(base, adapter, tmp_path / "expected") / SINGLE)
    changed = renamed(adapter, tmp_path / "changed", rename)
    assert set(load_file(changed / WEIGHTS)) != set(load_file(adapter / WEIGHTS))
    found = load_file(merged(base, changed, tmp_path / "found") / SINGLE)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with closing(Adapted(MergeInputs(base, changed))) as adapted:
        checks = check_merge(SAME, arrived(load(tmp_path / "found").eval(), list(adapted.layers())))
    assert {check.verdict for check in checks} == {"ok"}, checks
    assert "4 of 4 layers" in checks[2].figure


def test_a_prefix_that_nobody_knows_is_named(base: Path, adapter: Path, tmp_path: Path) -> None:
    strange = renamed(adapter, tmp_path / "a", lambda name: name.replace(".model.", ".model.student.net.", 1))
    with pytest.raises(ConvertError, match=r"have 'student.net.' before the base's own"):
        merged(base, strange, tmp_path / "out")


def test_a_prefix_that_all_names_lack_is_named(base: Path, tmp_path: Path) -> None:
    plain = save_adapter(base, tmp_path / "plain", target_modules=["q_proj"])
    headless = renamed(plain, tmp_path / "a", lambda name: name.replace("model.model.model.", "model.model."))
    with pytest.raises(ConvertError, match=r"lack 'model.' before them"):
        merged(base, headless, tmp_path / "out")


def test_several_adapters_in_one_file(base: Path, adapter: Path, tmp_path: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    both = {
        live(name, one): tensor.clone() for name, tensor in tensors.items() for one in ("first", "second")
    }
    two = renamed(adapter, tmp_path / "two", lambda name: name)
    save_file(both, two / WEIGHTS)
    with pytest.raises(ConvertError, match=r"holds several adapters \(first, second\)"):
        merged(base, two, tmp_path / "out")
    save_file(
        tensors | {live(name, "default"): tensor.clone() for name, tensor in tensors.items()}, two / WEIGHTS
    )
    with pytest.raises(ConvertError, match=r"has two tensors for one: "):
        merged(base, two, tmp_path / "out")
