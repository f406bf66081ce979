"""Training on preferences, on small models: what a run leaves behind, how it goes on, and from what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from core.errors import TrainError
from tests.integration.merge_bases import load, merged, peft_merged
from tests.integration.small_runs import NF4, adapter_of, chats, metrics_of, small_phi3, write_chats
from tests.integration.small_runs import recipe_of as answers
from train import qlora
from train.dpo import DPOTrainer
from train.fine_tune import train_run
from train.recipe import Recipe, parse

CPU = torch.device("cpu")
DPO = {
    "max_length": 128,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "logging_steps": 1,
    "learning_rate": 5e-3,
    "beta": 0.5,
    "max_steps": 4,
    "eval_steps": 2,
}


def write_pairs(path: Path, count: int = 40) -> Path:
    """Pairs of which the chosen answer turns the words round, and the rejected one says them again."""
    rows = [
        {"prompt": ask["content"], "chosen": reply["content"], "rejected": ask["content"]}
        for ask, reply in chats(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_phi3(tmp_path_factory.mktemp("phi3") / "base")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl")


def recipe_of(base: Path, data: Path, /, **sections: Any) -> Recipe:
    content: dict[str, Any] = {
        "name": sections.pop("name", "run"),
        "model": {"base_model": str(base), "license": "mit"} | sections.pop("model", {}),
        "data": {"path": str(data), "license": "mit"} | sections.pop("data", {}),
        "LoraConfig": {"r": 4, "lora_alpha": 8} | sections.pop("lora", {}),
        "DPOConfig": DPO | sections.pop("dpo", {}),
        "memory": "fast",
        "waive": ["first_loss"],
    }
    return parse(content | sections, "test")


@pytest.fixture(scope="module")
def run(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    return train_run(recipe_of(base, data), tmp_path_factory.mktemp("outputs"), False)


def test_a_run_orders_the_pairs_that_it_never_saw(run: Path) -> None:
    evaluated = [line for line in metrics_of(run, "step", "eval_loss", "eval_accuracy") if line[1]]
    assert [step for step, _, _ in evaluated] == [0, 2, 4]
    assert evaluated[0][1] == pytest.approx(
        0.693147, abs=1e-6
    )  # the reference is the model before the first step
    assert evaluated[-1][1] < 0.6
    assert evaluated[-1][2] > 0.9
    manifest = json.loads((run / "manifest.json").read_text())
    before, after = manifest["scores"]["before"], manifest["scores"]["after"]
    assert set(before) == {"preferred", "margin", "loss_of_chosen"}
    assert set(after) == {*before, "reward_accuracy", "reward_margin"}
    assert after["margin"] > before["margin"]
    assert after["reward_margin"] == pytest.approx(0.5 * (after["margin"] - before["margin"]), abs=1e-4)
    assert after["reward_accuracy"] > 0.9
    assert manifest["trainer"] == "DPOConfig"
    card = (run / "README.md").read_text()
    assert "| reward accuracy |" in card
    assert "a pair" in card
    for name in ("samples.md", "loss.png", "prompts.jsonl", "adapter/adapter_model.safetensors"):
        assert (run / name).is_file()
    assert all(
        "rejected" not in json.loads(line) for line in (run / "prompts.jsonl").read_text().splitlines()
    )


@pytest.mark.parametrize("dpo", [{"disable_dropout": False}, {"precompute_ref_log_probs": True}])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    dpo: dict[str, Any], base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = {"lora_dropout": 0.0 if "precompute_ref_log_probs" in dpo else 0.2}
    recipe = recipe_of(base, data, dpo=dpo, lora=lora)
    whole = train_run(recipe, tmp_path / "whole", False)
    ended = DPOTrainer.step_ended

    def stop(trainer: DPOTrainer) -> None:
        if trainer.state.global_step == 3:
            trainer._note(2, None)
        ended(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(DPOTrainer, "step_ended", stop)
        with pytest.raises(KeyboardInterrupt):
            train_run(recipe, tmp_path / "parts", False)
    parts = train_run(recipe, tmp_path / "parts", True)
    keys = ("step", "loss", "grad_norm", "accuracy", "margin", "eval_loss", "eval_margin")
    assert metrics_of(parts, *keys) == metrics_of(whole, *keys)
    one, two = adapter_of(whole), adapter_of(parts)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_reference_beforehand_gives_the_same_numbers(
    run: Path, base: Path, data: Path, tmp_path: Path
) -> None:
    dpo = {"precompute_ref_log_probs": True, "precompute_ref_batch_size": 3}
    other = train_run(recipe_of(base, data, dpo=dpo), tmp_path, False)
    for one, two in zip(
        metrics_of(run, "loss", "eval_loss"), metrics_of(other, "loss", "eval_loss"), strict=True
    ):
        assert [x or 0 for x in one] == pytest.approx([x or 0 for x in two], abs=1e-4)


def test_layers_that_are_computed_again_give_the_same_numbers(
    run: Path, base: Path, data: Path, tmp_path: Path
) -> None:
    """In 4 bits, too, the adapter stays fp32, which TRL would round."""
    lean = train_run(recipe_of(base, data, memory="lean"), tmp_path, False)
    for one, two in zip(
        metrics_of(run, "loss", "grad_norm"), metrics_of(lean, "loss", "grad_norm"), strict=True
    ):
        assert [x or 0 for x in one] == pytest.approx([x or 0 for x in two], rel=1e-4)
    four = train_run(
        recipe_of(base, data, name="four", BitsAndBytesConfig=NF4, dpo={"max_steps": 1}), tmp_path, False
    )
    assert all(tensor.dtype == torch.float32 for tensor in adapter_of(four).values())
    assert not all(torch.equal(t, t.bfloat16().float()) for t in adapter_of(four).values())


def test_an_earlier_run_is_gone_on_with_and_is_the_reference(base: Path, data: Path, tmp_path: Path) -> None:
    """Policy and reference are equal before the first step, and the result is one adapter on the base."""
    rows = write_chats(tmp_path / "chats.jsonl", 30)
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["o_proj", "down_proj"]}
    first = train_run(answers(base, rows, name="first", lora=lora, sft={"max_steps": 2}), tmp_path, False)
    recipe = recipe_of(base, data, name="second", model={"adapter": "first"}, dpo={"max_steps": 2})
    second = train_run(recipe, tmp_path, False)
    start, *_, end = [loss for _, loss in metrics_of(second, "step", "eval_loss") if loss]
    assert start == pytest.approx(0.693147, abs=1e-6)
    assert end < start
    before, after = adapter_of(first), adapter_of(second)
    assert set(before) == set(after)  # and no copy of the reference
    assert not any(torch.equal(before[name], after[name]) for name in before)
    assert "| goes on from | first |" in (second / "README.md").read_text()
    config = json.loads((second / "adapter" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["down_proj", "o_proj"]
    made = merged(base, second / "adapter", tmp_path / "merged")
    ids = torch.arange(40).reshape(2, 20)
    found = (model(ids).logits for model in (peft_merged(base, second / "adapter"), load(made)))
    torch.testing.assert_close(*found, rtol=0, atol=0.05)

    other = recipe_of(base, data, name="third", model={"adapter": "first"}, lora={"r": 8})
    with pytest.raises(TrainError, match=r"LoraConfig.r: 8 isn't what the adapter first has, 4"):
        train_run(other, tmp_path, False)
    with pytest.raises(TrainError, match=r"no run and no folder is called 'frist'; runs: first, second"):
        train_run(recipe_of(base, data, name="third", model={"adapter": "frist"}), tmp_path, False)
    settings = first / "adapter" / "adapter_config.json"
    content = settings.read_text()
    settings.write_text(json.dumps(json.loads(content) | {"lora_alpha": 9}))
    with pytest.raises(TrainError, match=r"says lora_alpha: 9, and the recipe LoraConfig.lora_alpha: 8"):
        train_run(recipe, tmp_path, True)
    settings.write_text(content)
    save_file({n: t + 1 for n, t in before.items()}, first / "adapter" / "adapter_model.safetensors")
    with pytest.raises(TrainError, match=r"begun on other content of the adapter"):
        train_run(recipe, tmp_path, True)


@pytest.mark.parametrize(
    "dpo",
    [
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
        {"loss_type": "ipo", "ld_alpha": 0.5},
        {"loss_type": "exo_pair", "label_smoothing": 1e-3, "f_divergence_type": "alpha_divergence"},
        {"loss_type": "aot", "use_weighting": False},
        {"loss_type": "discopop", "discopop_tau": 0.1, "use_weighting": True},
    ],
)
def test_every_kind_of_keyword_trains(dpo: dict[str, Any], base: Path, data: Path, tmp_path: Path) -> None:
    more = {"validation": 0, "test": 0, "limit": 8}
    made = train_run(recipe_of(base, data, dpo=dpo | {"max_steps": 1}, data=more), tmp_path, False)
    ((loss, norm),) = [line for line in metrics_of(made, "loss", "grad_norm") if line[0] is not None]
    assert loss > 0
    assert norm > 0


def test_two_steps_of_the_tour(tmp_path: Path) -> None:
    """On the embedded model, from the command to what it answers with the adapter."""
    given = ["smollm2-quotes-dpo", "--root", str(tmp_path), "--max-steps", "2"]
    small = ["data.limit=24", "DPOConfig.per_device_train_batch_size=2", "DPOConfig.warmup_ratio=0"]
    assert qlora.main([*given, *(f"--set={key}" for key in small)]) == 0
    made = tmp_path / "outputs" / "smollm2-quotes-dpo"
    losses = [loss for (loss,) in metrics_of(made, "loss") if loss is not None]
    assert losses[0] == pytest.approx(0.693147, abs=1e-4)
    assert "| preferred |" in (made / "README.md").read_text()
