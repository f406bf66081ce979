"""What a recipe says by upstream's keywords arrives in the real trainer, optimizer, schedule and adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.optim import Lion
from transformers import LlamaConfig, LlamaForCausalLM

from core.errors import TrainError
from tests.integration.small_runs import NF4, recipe_of
from train.arguments import check_arguments
from train.batches import Order
from train.checks import Checks, check_targets
from train.examples import Encoded
from train.layers import linears, others, trainable
from train.model import Adapted, load_base
from train.recipe import Recipe
from train.sft import SFTTrainer

CPU = torch.device("cpu")
ROWS = [Encoded(list(range(1, 20)), [0] * 5 + [1] * 14, [])] * 4
LION = {
    "optim": "paged_lion_8bit",  # without pages on a CPU
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr": 1e-4},
    "adam_beta2": 0.9,
    "max_steps": 2,
    "logging_first_step": True,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers, wide enough for states in 8 bit; its embedding isn't tied."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=64,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def made(base: Path, **sections: Any) -> tuple[Adapted, Recipe]:
    recipe = recipe_of(base, base / "none.jsonl", **sections)
    return Adapted(load_base(str(base), recipe, CPU), recipe, CPU), recipe


def test_keywords_reach_the_real_trainer(base: Path, tmp_path: Path) -> None:
    lora = {"r": 64, "rank_pattern": {r"layers\.1\..*q_proj": 2}, "alpha_pattern": {"v_proj": 3}}
    adapted, recipe = made(base, sft=LION, lora=lora | {"init_lora_weights": "gaussian"})
    check_arguments(recipe, 2, tmp_path, CPU)
    lines: list[dict[str, Any]] = []
    trainer = SFTTrainer(adapted, recipe, Order(ROWS, recipe.sft), [], tmp_path, lines.append)
    before = [parameter.detach().clone() for parameter in trainer.parameters.values()]
    trainer.run()

    assert (trainer.args.adam_beta2, trainer.args.lr_scheduler_kwargs) == (0.9, {"min_lr": 1e-4})
    optimizer: Any = trainer.optimizer
    optimizer = getattr(optimizer, "optimizer", optimizer)
    assert isinstance(optimizer, Lion)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.9)
    assert any(state["state1"].dtype == torch.uint8 for state in optimizer.state.values())
    assert [line["lr"] for line in lines if "lr" in line] == pytest.approx([1e-3, 5.5e-4])
    after = trainer.parameters.values()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))

    queries = [layer.self_attn.q_proj for layer in adapted.base.model.layers]
    assert [layer.lora_A["default"].out_features for layer in queries] == [64, 2]
    assert adapted.base.model.layers[0].self_attn.v_proj.scaling["default"] == 3 / 64
    count = sum(parameter.numel() for parameter in adapted.parameters_to_train())
    assert count == trainable(recipe.lora, linears(load_base(str(base), recipe, CPU)))


def test_modules_saved_whole_are_trained_and_taken_off_again(base: Path, tmp_path: Path) -> None:
    lora = {"modules_to_save": ["norm", "embed_tokens"]}
    adapted, recipe = made(base, lora=lora, sft={"max_steps": 1}, BitsAndBytesConfig=NF4)
    fresh = load_base(str(base), recipe, CPU)
    trained = adapted.parameters_to_train()
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert sum(parameter.numel() for parameter in trained) == trainable(
        recipe.lora, linears(fresh), others(fresh)
    )
    SFTTrainer(adapted, recipe, Order(ROWS, recipe.sft), [], tmp_path, lambda _: None).run()
    wrapper = adapted.base.model.norm
    assert not torch.equal(wrapper.modules_to_save["default"].weight, fresh.model.norm.weight.float())
    model = adapted.base
    adapted.unload()
    assert torch.equal(model.model.norm.weight, fresh.model.norm.weight)
    assert torch.equal(model.model.embed_tokens.weight, fresh.model.embed_tokens.weight)


def test_a_base_is_stored_as_the_recipe_says(base: Path) -> None:
    kept = NF4 | {"bnb_4bit_quant_storage": "bfloat16", "llm_int8_skip_modules": ["down_proj"]}
    adapted, _ = made(base, BitsAndBytesConfig=kept)
    layer = adapted.base.model.layers[0]
    assert layer.self_attn.q_proj.base_layer.weight.dtype == torch.bfloat16
    assert hasattr(layer.self_attn.q_proj.base_layer.weight, "quant_state")
    assert not hasattr(layer.mlp.down_proj.base_layer.weight, "quant_state")
    assert not hasattr(adapted.base.lm_head.weight, "quant_state")


@pytest.mark.parametrize(
    ("sft", "reason"),
    [
        ({"report_to": ["wandb"]}, r"SFTConfig.report_to: .*pip install wandb"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            r"lr_scheduler_type cosine_with_min_lr: .*min_lr.*it needs goes into SFTConfig.lr_sched",
        ),
        ({"lr_scheduler_kwargs": {"no_such": 1}}, r"lr_scheduler_type cosine: .*no_such"),
        ({"optim": "grokadamw"}, r"SFTConfig.optim grokadamw: .*grokadamw"),
    ],
)
def test_what_a_library_refuses_is_told_before_a_base_is_loaded(
    sft: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(TrainError, match=reason) as caught:
        check_arguments(recipe_of(tmp_path, tmp_path / "x", sft=sft), 4, tmp_path, CPU)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("lora", "reason"),
    [
        (
            {"rank_pattern": {"qq_proj": 4}},
            r"rank_pattern: 'qq_proj' matches no layer with an adapter",
        ),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save: lm_head is a linear layer"),
        ({"modules_to_save": ["embd"]}, r"embd matches nothing in this model; there are: .*embed_tokens"),
        ({"layers_to_transform": [7]}, r"leave no layer an adapter"),
        ({"target_modules": "all_linear"}, r"target_modules: all_linear match nothing"),
    ],
)
def test_names_that_mean_nothing_are_told(lora: dict[str, Any], reason: str, base: Path) -> None:
    recipe = recipe_of(base, base / "x", lora=lora)
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(base))

    def checked() -> None:
        checks = Checks([], print)
        check_targets(checks, recipe, linears(model), others(model))
        checks.end()

    with pytest.raises(TrainError, match=reason):
        checked()
