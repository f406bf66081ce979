"""The decoder by hand against transformers and PEFT, on the CPU in fp32: losses, gradients, memory modes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.integration.fused_models import (
    BATCH,
    CONFIGS,
    CPU,
    FAMILIES,
    LENGTHS,
    NF4,
    adapted,
    assert_same,
    gradients,
    recipe_of,
    rows,
    stack_of,
)
from tests.integration.test_train_gptq import save as save_gptq
from train.batches import collate
from train.examples import Encoded
from train.fused.supports import allows, fits, has_kernels
from train.loss import head_loss
from train.model import Adapted, load_base

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
    "original_max_position_embeddings": 50,
}
MODES = pytest.mark.parametrize("fast", [True, False], ids=["fast", "lean"])
EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)


@EACH_FAMILY
@pytest.mark.parametrize("bnb", [None, NF4], ids=["fp32", "nf4"])
def test_losses_and_gradients_are_transformers_and_pefts(
    tmp_path: Path, family: str, bnb: dict[str, Any] | None
) -> None:
    model = adapted(tmp_path, family, recipe_of(bnb))
    wanted = gradients(model, None)
    for fast in (True, False):
        assert_same(gradients(model, stack_of(model, fast)), wanted)
    if bnb:
        weight = model.base.get_decoder().layers[0].self_attn.o_proj.base_layer.weight
        assert weight.quant_state.nested  # or it wasn't NF4 with double quantisation
        assert weight.quant_state.quant_type == "nf4"


@EACH_FAMILY
@MODES
def test_evaluation_computes_bit_for_bit_what_training_does(tmp_path: Path, family: str, fast: bool) -> None:
    model = adapted(tmp_path, family, recipe_of(NF4))
    stack = stack_of(model, fast)
    trained = stack(BATCH)
    assert trained.requires_grad
    with torch.no_grad():
        assert torch.equal(stack(BATCH), trained)


@EACH_FAMILY
def test_resident_matrices_are_the_decoded_ones(tmp_path: Path, family: str) -> None:
    model = adapted(tmp_path, family, recipe_of(NF4))
    fast, lean = stack_of(model, True), stack_of(model, False)
    fast.frozen.begin()  # as each pass does
    x = torch.randn(BATCH.tokens, 64)
    for number, (here, there) in enumerate(zip(fast.layers, lean.layers, strict=True)):
        kept, decoded = fast.frozen[number], lean.frozen[number]
        assert all(map(torch.equal, kept.all, decoded.all))
        results = [
            layer.forward(x, weights, fast.angles(BATCH)[layer.kind], BATCH)[0]
            for layer, weights in ((here, kept), (there, decoded))
        ]
        assert torch.equal(*results)
    (_, fast_found), (_, lean_found) = gradients(model, fast), gradients(model, lean)
    assert all(torch.equal(fast_found[name], lean_found[name]) for name in fast_found)


@EACH_FAMILY
def test_lean_in_fp8_is_fast_in_fp8_bit_for_bit_and_keeps_less_than_in_16_bit(
    tmp_path: Path, family: str
) -> None:
    model = adapted(tmp_path, family, recipe_of(NF4))
    stacks = [stack_of(model, True, True), stack_of(model, False, True), stack_of(model, False)]
    (_, fast), (_, lean), _ = (gradients(model, stack) for stack in stacks)
    assert all(torch.equal(fast[name], lean[name]) for name in fast)
    counts = []
    for stack in stacks[1:]:
        saved = stack.saved()
        stack.forward(BATCH, saved)
        counts.append(len(saved.places()))
    norms_after = family in ("gemma2", "gemma3")  # whose backward passes need what `down` made
    assert counts == [3 * (3 if norms_after else 2), 3 * 3]


@MODES
def test_a_gptq_base_is_decoded_too(tmp_path: Path, fast: bool) -> None:
    recipe = recipe_of()
    model = Adapted(load_base(str(save_gptq(tmp_path / "base")), recipe, CPU), recipe, CPU)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    batch = collate([Encoded([i % 96 for i in row.ids], row.mask, []) for row in rows()])
    assert_same(gradients(model, stack_of(model, fast), batch), gradients(model, None, batch))


@MODES
def test_two_forward_passes_before_their_backward_passes(tmp_path: Path, fast: bool) -> None:
    model = adapted(tmp_path, "llama", recipe_of(NF4))
    stack, batches = stack_of(model, fast), [collate(rows((20, 30))), collate(rows((50, 9), seed=1))]
    _, apart = gradients(model, stack, *batches)
    model.zero_grad()
    head = model.base.get_output_embeddings().weight
    losses = [head_loss(stack(batch), head, batch, 0.0) for batch in batches]
    for loss in losses:
        loss.backward()
    for name, parameter in model.named_parameters():
        if name in apart:
            assert torch.allclose(parameter.grad, apart[name], rtol=1e-5, atol=1e-6), name


@MODES
@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_modules": ["o_proj"]},
        {"target_modules": ["k_proj", "up_proj"], "r": 3},
        {"r": 9, "use_rslora": True},
    ],
    ids=["q,down", "o", "k,up", "rslora"],
)
def test_adapters_on_some_layers_and_of_other_scales(
    tmp_path: Path, lora: dict[str, Any], fast: bool
) -> None:
    model = adapted(tmp_path, "llama", recipe_of(NF4, **lora))
    assert_same(gradients(model, stack_of(model, fast)), gradients(model, None))


@MODES
@pytest.mark.parametrize("family", ["phi3", "llama"])
def test_short_and_long_contexts_turn_as_in_transformers(tmp_path: Path, family: str, fast: bool) -> None:
    """LongRoPE has other angles above 50 positions, whichever came first."""
    top = {"original_max_position_embeddings": 50} if family == "phi3" else {}
    config = {"rope_parameters": LONGROPE, "max_position_embeddings": 200} | top
    model = adapted(tmp_path, family, recipe_of(), **config)
    batches = [collate(rows(lengths)) for lengths in ((30, 20), (70, 9), (45, 12), (90, 2))]
    assert_same(gradients(model, stack_of(model, fast), *batches), gradients(model, None, *batches))


@MODES
@pytest.mark.parametrize("tied", [True, False])
def test_the_head_may_be_the_embedding(tmp_path: Path, tied: bool, fast: bool) -> None:
    model = adapted(tmp_path, "llama", recipe_of(), tie_word_embeddings=tied)
    head, embedding = model.base.get_output_embeddings().weight, model.base.get_input_embeddings().weight
    assert (head is embedding) == tied
    assert_same(gradients(model, stack_of(model, fast)), gradients(model, None))


@MODES
def test_gradients_of_micro_batches_add_up(tmp_path: Path, fast: bool) -> None:
    model = adapted(tmp_path, "mistral", recipe_of(NF4))
    stack, batches = stack_of(model, fast), [collate(rows()), collate(rows((5, 80), seed=1))]
    together = gradients(model, stack, *batches)
    assert_same(together, gradients(model, None, *batches))
    apart = [gradients(model, stack, batch)[1] for batch in batches]
    for name, gradient in together[1].items():
        torch.testing.assert_close(gradient, apart[0][name] + apart[1][name])


@EACH_FAMILY
def test_rows_do_not_see_each_other(tmp_path: Path, family: str) -> None:
    model, changed = adapted(tmp_path, family, recipe_of()), rows()
    changed[1] = rows(seed=1)[1]
    other = collate(changed)
    with torch.no_grad():
        pairs = [stack_of(model)(batch).split(LENGTHS) for batch in (BATCH, other)]
        losses = [
            [
                head_loss(hidden, model.base.get_output_embeddings().weight, collate([row]), 0.0)
                for hidden, row in zip(parts, given, strict=True)
            ]
            for parts, given in zip(pairs, (rows(), changed), strict=True)
        ]
    assert [bool(torch.equal(a, b)) for a, b in zip(*losses, strict=True)] == [True, False, True]
    assert [bool(torch.equal(a, b)) for a, b in zip(*pairs, strict=True)] == [True, False, True]


@MODES
def test_after_an_optimizers_step_the_new_adapters_are_used(tmp_path: Path, fast: bool) -> None:
    model = adapted(tmp_path, "llama", recipe_of(NF4))
    stack = stack_of(model, fast)
    (before,), _ = gradients(model, stack)
    torch.optim.AdamW(model.parameters_to_train(), lr=1e-2).step()
    after = gradients(model, stack)
    assert after[0][0] < before - 1
    assert_same(after, gradients(model, None))


@MODES
def test_biases_are_added(tmp_path: Path, fast: bool) -> None:
    model = adapted(tmp_path, "llama", recipe_of(NF4), attention_bias=True, mlp_bias=True)
    layer = model.base.get_decoder().layers[0]
    assert all(part.bias.norm() > 0 for part in (layer.self_attn.o_proj.base_layer, layer.mlp.up_proj))
    assert_same(gradients(model, stack_of(model, fast)), gradients(model, None))


def base_of(family: str, **config: Any) -> Any:
    return AutoModelForCausalLM.from_config(CONFIGS[family](**config))


@EACH_FAMILY
def test_the_families_fit(family: str) -> None:
    assert fits(base_of(family))


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("gemma", {"use_bidirectional_attention": True}),
        ("phi3", {"attention_dropout": 0.1}),
        ("llama", {"hidden_act": "relu"}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}),
    ],
)
def test_other_models_do_not_fit(family: str, config: dict[str, Any]) -> None:
    assert not fits(base_of(family, **config))


def test_a_base_in_eight_bits_is_left_to_transformers() -> None:
    """However it came to be in eight bits: the recipe may not say so."""
    from bitsandbytes.nn import Linear8bitLt

    model = base_of("llama")
    assert fits(model)
    model.set_submodule(
        "model.layers.0.mlp.up_proj", Linear8bitLt(64, 128, bias=False, has_fp16_weights=False)
    )
    model.model.layers[0].mlp.up_proj.weight.data = torch.zeros(128, 64, dtype=torch.int8)
    assert not fits(model)


def test_a_window_counts_where_the_model_looks_at_it(tmp_path: Path) -> None:
    model = adapted(tmp_path, "llama", recipe_of(), sliding_window=8)  # left over from a Mistral
    assert_same(gradients(model, stack_of(model)), gradients(model, None))


def test_recipes_that_are_allowed() -> None:
    assert all(
        map(allows, (recipe_of(), recipe_of(NF4), recipe_of(use_rslora=True, target_modules=["o_proj"])))
    )
    assert not allows(recipe_of(lora_dropout=0.1))
    assert not allows(recipe_of(use_dora=True))
    assert not allows(recipe_of({"load_in_8bit": True}))
    assert not allows(recipe_of(sft={"fp16": True}))


def test_a_cpu_has_no_kernels() -> None:
    assert not has_kernels(CPU)
