"""What is refused before the first step: each check with its sentence, and what waiving it does."""

from __future__ import annotations

import math
from typing import Any

import pytest

from bench.train_models import CONFIGS
from core.tokenizer import ChatTokenizer
from tests.unit.letters import Kept, make_tokenizer
from train.checks import (
    MAX_FIRST_LOSS,
    check_bos_loss,
    check_first_loss,
    check_reading,
    check_rows,
    check_settings,
    check_targets,
)
from train.examples import Encoded, Example
from train.labels import encode
from train.recipe import Recipe, load_recipe
from train.shape import Shape, shape_of

SEEDS_TARGETS = ["k_proj", "q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def phi() -> Shape:
    config = CONFIGS["microsoft/Phi-3.5-mini-instruct"]
    return shape_of(config)


def recipe_of(**sections: Any) -> Recipe:
    return Recipe.model_validate(
        {"model": {"base_model": "x", "license": "mit"}, "data": {"path": "x"}} | sections
    )


def test_targets_that_match_nothing(phi: Shape) -> None:
    recipe = recipe_of(LoraConfig={"target_modules": SEEDS_TARGETS})
    kept, waived = Kept(), Kept("unmatched_targets")
    check_targets(kept.checks, recipe, phi.linears)
    said = kept.refusal()
    assert "LoraConfig.target_modules: k_proj, q_proj, v_proj, gate_proj, up_proj match nothing" in said
    assert "only 31% of its linear weights would get an adapter" in said
    assert "there are: down_proj, gate_up_proj, o_proj, qkv_proj" in said
    assert (
        "(to train all the same: --waive unmatched_targets, or in the recipe waive: [unmatched_targets])"
        in said
    )
    check_targets(waived.checks, recipe, phi.linears)
    assert waived.passes()
    assert waived.told[0].startswith("waived (unmatched_targets): LoraConfig.target_modules: k_proj")
    assert list(waived.checks.waived) == ["unmatched_targets"]


def test_all_linear_matches(phi: Shape) -> None:
    kept = Kept()
    check_targets(kept.checks, recipe_of(), phi.linears)
    fused = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    check_targets(kept.checks, recipe_of(LoraConfig={"target_modules": fused}), phi.linears)
    assert kept.passes()


@pytest.mark.parametrize(
    ("sft", "steps", "said"),
    [
        ({"warmup_steps": 10}, 10, "the warm-up of 10 steps fills the run of 10"),
        ({"warmup_steps": 11}, 10, "the warm-up of 11 steps fills the run of 10"),
        ({"warmup_ratio": 0.9}, 2, "the warm-up of 2 steps fills the run of 2; lower warmup_steps"),
        ({"warmup_ratio": 0.03, "lr_scheduler_type": "constant"}, 1000, "'constant' ignores the warm-up"),
    ],
)
def test_warmup(sft: dict[str, Any], steps: int, said: str) -> None:
    kept, waived = Kept(), Kept("warmup")
    check_settings(kept.checks, recipe_of(SFTConfig=sft), "llama", steps)
    assert said in (text := kept.refusal())
    assert "waive: [warmup]" in text
    check_settings(waived.checks, recipe_of(SFTConfig=sft), "llama", steps)
    assert waived.passes()


@pytest.mark.parametrize(
    ("sft", "steps"),
    [
        ({}, 1),
        ({"warmup_steps": 9}, 10),
        ({"warmup_ratio": 0.03}, 10),  # rounds to none
        ({"warmup_ratio": 0.03, "lr_scheduler_type": "constant_with_warmup"}, 1000),
        ({"lr_scheduler_type": "constant"}, 1),
    ],
)
def test_a_sound_warmup(sft: dict[str, Any], steps: int) -> None:
    kept = Kept()
    check_settings(kept.checks, recipe_of(SFTConfig=sft), "llama", steps)
    assert kept.passes()


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text"])
def test_gemma_in_fp16(family: str) -> None:
    recipe = recipe_of(SFTConfig={"fp16": True})
    kept, waived, other = Kept(), Kept("fp16_gemma"), Kept()
    check_settings(kept.checks, recipe, family, 10)
    assert "SFTConfig.fp16: Gemma's activations overflow fp16" in kept.refusal()
    check_settings(waived.checks, recipe, family, 10)
    assert waived.passes()
    check_settings(other.checks, recipe, "phi3", 10)
    assert other.passes()


# Losses in nats a token that were measured on SmolLM2 over 8 rows, prompts included: in order, shuffled.
READ = {
    "codes": (4.55, 9.42),
    "one letter of numbers": (4.43, 8.13),  # its answers alone: 12.57, above ln V
    "one letter of one number": (5.85, 10.10),
    "DNA": (5.22, 8.61),
    "hashes": (4.25, 7.07),
    "Finnish": (5.31, 9.83),
    "quotes": (4.79, 10.18),
}
UNREAD = {
    "shuffled embeddings: codes": (12.88, 13.59),
    "shuffled embeddings: numbers": (12.37, 13.22),
    "ids off by one: hashes": (7.79, 8.54),  # its answers alone: 5.68, below 0.6 ln V
    "ids off by one: codes": (10.94, 11.40),
    "ids off by 1000: numbers": (13.47, 14.33),
    "not a number": (math.nan, math.nan),
    "infinite": (math.inf, math.inf),
}


@pytest.mark.parametrize("losses", READ.values(), ids=READ)
def test_a_base_that_reads_may_find_the_answers_hard(losses: tuple[float, float]) -> None:
    kept = Kept()
    check_first_loss(kept.checks, *losses)
    assert kept.passes()
    assert losses[0] / losses[1] < MAX_FIRST_LOSS - 0.1


@pytest.mark.parametrize("losses", UNREAD.values(), ids=UNREAD)
def test_a_base_that_reads_nothing_is_refused(losses: tuple[float, float]) -> None:
    kept, waived = Kept(), Kept("first_loss")
    check_first_loss(kept.checks, *losses)
    said = kept.refusal()
    assert f"the loss before the first step is {losses[0]:.2f} nats a token over whole rows" in said
    assert "--waive first_loss, or in the recipe waive: [first_loss])" in said
    assert not losses[0] / losses[1] < MAX_FIRST_LOSS + 0.1
    check_first_loss(waived.checks, *losses)
    assert waived.passes()


def test_everything_is_said_at_once_and_once(phi: Shape, tokenizer: ChatTokenizer) -> None:
    recipe = recipe_of(
        LoraConfig={"target_modules": ["q_proj", "o_proj"]},
        SFTConfig={"fp16": True, "warmup_steps": 5, "lr_scheduler_type": "constant"},
    )
    kept = Kept("bos")
    check_settings(kept.checks, recipe, "gemma", 3)
    check_targets(kept.checks, recipe, phi.linears)
    check_rows(kept.checks, [Encoded([5, 6], [0, 1], [])], tokenizer, 2)
    said = kept.refusal()
    found = [line.partition("waive: [")[2].rstrip("])") for line in said.splitlines()[1:]]
    assert found == ["fp16_gemma", "warmup", "unmatched_targets", "rows_lost", "untrained_stop"]
    assert said.startswith("not started:\n  ")
    assert [text.split(":")[0] for text in kept.told] == ["waived (bos)"]
    assert kept.passes()


def test_the_faithful_twin_of_phi_passes_and_says_what_it_waives(
    phi: Shape, tokenizer: ChatTokenizer
) -> None:
    recipe = load_recipe("phi3.5-oasst1-faithful")
    kept = Kept(*recipe.waive)
    check_settings(kept.checks, recipe, "phi3", recipe.sft.max_steps)
    check_targets(kept.checks, recipe, phi.linears)
    check_rows(kept.checks, encode(tokenizer, Example([], "### Human: Hi", "")), tokenizer, 0)
    assert kept.passes()
    assert sorted(kept.checks.waived) == sorted(recipe.waive)
    assert len(kept.told) == len(recipe.waive)


def test_the_corrected_recipe_of_phi_waives_nothing(phi: Shape) -> None:
    recipe = load_recipe("phi3.5-oasst1")
    kept = Kept(*recipe.waive)
    check_settings(kept.checks, recipe, "phi3", 1000)
    check_targets(kept.checks, recipe, phi.linears)
    assert kept.passes()
    assert not kept.checks.waived


# Gemma 3 270M over 4 rows of at most 64 tokens: without a BOS, with one.
WITHOUT_BOS = {"prose": (5.00, 3.06), "labels": (9.91, 5.66), "codes": (7.93, 5.14), "German": (8.01, 4.52)}


def test_a_base_that_was_never_taught_to_chat_may_find_codes_harder_still() -> None:
    kept = Kept()
    check_first_loss(kept.checks, 5.14, 6.88)  # Gemma 3 270M
    assert kept.passes()


@pytest.mark.parametrize("losses", WITHOUT_BOS.values(), ids=WITHOUT_BOS)
def test_a_base_that_lacks_its_bos_is_refused(losses: tuple[float, float]) -> None:
    kept, waived = Kept(), Kept("bos")
    check_bos_loss(kept.checks, *losses)
    said = kept.refusal()
    assert f"is {losses[0]:.2f} nats a token, and {losses[1]:.2f} with a BOS token in front" in said
    assert "--waive bos" in said
    check_bos_loss(waived.checks, *losses)
    assert waived.passes()


def test_a_base_that_needs_no_bos_passes_without_one() -> None:
    kept = Kept()
    check_bos_loss(kept.checks, 2.83, 2.93)  # SmolLM2 over prose
    assert kept.passes()


def test_rows_are_read_in_order_in_none_and_after_a_bos() -> None:
    seen: list[Encoded] = []

    def loss(rows: list[Encoded]) -> float:
        seen.extend(rows)
        return [2.0, 4.0, 1.0][len(seen) - 1]

    kept = Kept()
    check_reading(kept.checks, [Encoded([5, 6, 7, 8], [0, 0, 1, 1], [])], 1, loss)
    assert "2.00 nats a token, and 1.00 with a BOS" in kept.refusal()
    whole, shuffled, begun = seen
    assert (whole.ids, whole.mask) == ([5, 6, 7, 8], [1, 1, 1, 1])
    assert (shuffled.ids[0], sorted(shuffled.ids)) == (5, whole.ids)
    assert (begun.ids, begun.mask) == ([1, 5, 6, 7], [0, 0, 1, 1])
    seen.clear()
    check_reading(kept.checks, [Encoded([1, 6, 7], [0, 1, 1], [])], 1, loss)
    assert len(seen) == 2
    assert kept.passes()
