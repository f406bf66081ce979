"""A base that is shared out: what can't be is refused with the cure, and the forecast is of each card."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.train_models import CONFIGS
from core.errors import TrainError
from train.forecast import NF4_DOUBLE, forecast
from train.plan_sharded import stored
from train.recipe import Recipe, changed, parse
from train.shape import GPUS, Load, shape_of
from train.sharding import check

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
NF4 = {"load_in_4bit": True}
SHAPES = ["microsoft/Phi-3.5-mini-instruct", "google/gemma-2b-it", "mistralai/Mistral-7B-Instruct-v0.3"]
FULL = Load(tokens=8192, trained=4096, most_tokens=8192, most_trained=4096, longest=600)


def recipe_of(**sections: Any) -> Recipe:
    content = {"model": {"base_model": "x", "license": "mit"}, "data": {"path": "x"}, "fully_shard": True}
    return parse(content | sections, "test")


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"BitsAndBytesConfig": {"load_in_8bit": True}}, "with load_in_8bit: say load_in_4bit: true"),
        ({"GPTQConfig": {"bits": 4}}, "with GPTQConfig: give the 16-bit base"),
        ({"LoraConfig": {"use_dora": True}}, "with use_dora: leave use_dora out"),
        ({"LoraConfig": {"modules_to_save": ["embed_tokens"]}}, "with modules_to_save: leave"),
        ({"SFTConfig": {"fsdp": True}}, "say fully_shard: true, beside SFTConfig"),
        ({"SFTConfig": {"fully_shard": True}}, "say fully_shard, beside the sections"),
    ],
)
def test_recipes_that_cannot_be_shared_out(sections: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainError, match=said):
        recipe_of(**sections)


def test_what_the_machine_must_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train/qlora.py", "my recipe.yaml"])
    for sections in ({}, {"BitsAndBytesConfig": NF4}, {"SFTConfig": {"fp16": True}}):
        check(recipe_of(**sections), CUDA, 2)
    check(recipe_of(fully_shard=False), CPU, 1)
    with pytest.raises(TrainError, match=r"there are none here; leave fully_shard out \(--set fully_shard="):
        check(recipe_of(), CPU, 2)
    with pytest.raises(TrainError, match=r"accelerate launch --num_processes 2 train/qlora.py 'my recipe.ya"):
        check(recipe_of(), CUDA, 1)


@pytest.mark.parametrize("name", SHAPES)
def test_cards_that_share_a_base_out_need_less_each(name: str) -> None:
    shape = shape_of(CONFIGS[name])
    few = replace(FULL, tokens=256, trained=128, most_tokens=256, most_trained=128)
    unfused = {"rank_pattern": {"none": 16}}
    shared = recipe_of(BitsAndBytesConfig=NF4)
    whole = recipe_of(BitsAndBytesConfig=NF4, LoraConfig=unfused, fully_shard=False)
    packed, scales = 0.5, NF4_DOUBLE - 0.5
    one = shape.weights * NF4_DOUBLE + shape.other * 2
    assert stored(shape, packed, scales, 1) == pytest.approx(one)
    assert 0.5 < stored(shape, packed, scales, 2) / one < 0.55
    memory = [forecast(shape, shared, few, GPUS["H100"], cards).memory_gb for cards in (2, 4, 8)]
    assert sorted(memory, reverse=True) == memory
    alone = forecast(shape, whole, FULL, GPUS["H100"])
    two = forecast(shape, shared, FULL, GPUS["H100"], 2)
    assert memory[-1] < forecast(shape, whole, few, GPUS["H100"]).memory_gb
    assert two.tokens_per_s <= alone.tokens_per_s
    # So few tokens wait for their layers to come over PCIe.
    waiting = forecast(shape, changed(shared, {"memory": "fast"}, ""), few, GPUS["4090"], 8).tokens_per_s
    assert waiting < forecast(shape, changed(whole, {"memory": "fast"}, ""), few, GPUS["4090"]).tokens_per_s
    assert two.host_gb == pytest.approx(2 * one / 1e9)
