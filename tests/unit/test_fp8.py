"""Products in FP8 by their formulas: how far from exact, and that what adapters add is nearly so."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, Phi3Config

from core.errors import TrainError
from tests.unit.test_train_plan import recipe_of
from train.fused import reference_ops
from train.fused.fp8 import Frozen8, Projection8
from train.fused.fp8_reference import FP8, LARGEST, border, quantise, quantise_borders
from train.fused.layer import Layer
from train.fused.supports import fp8_obstacle
from train.layers import Linears
from train.model import Adapted
from train.recipe import changed

CPU = torch.device("cpu")


def model_of(scale: float | None) -> Any:
    """A small model whose adapters' B have this size; None for one without."""
    torch.manual_seed(0)
    config = Phi3Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=99,
        pad_token_id=0,
        eos_token_id=2,
    )
    auto: Any = AutoModelForCausalLM
    base = auto.from_config(config)
    if scale is None:
        return base
    model = peft.get_peft_model(base, peft.LoraConfig(r=8, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale)
    return model.get_base_model()


def projection_of(model: Any) -> tuple[Projection8, Any]:
    """Its first layer's queries, keys and values, ready for a pass."""
    layers = [
        Layer(module, model.config, torch.float32, reference_ops, False, "", Projection8)
        for module in model.get_decoder().layers
    ]
    for projection in layers[0].projections:
        for copy, source, scale in zip(projection.copies, projection.sources, projection.scales, strict=True):
            copy.copy_(source.detach() * scale)
    frozen = Frozen8(layers, False, torch.float32, reference_ops)
    frozen.begin()
    return layers[0].o, frozen[0].o


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("scale", [1e-5, 0.02, 1.0])
def test_what_adapters_add_is_nearly_exact(scale: float) -> None:
    projection, weight = projection_of(model_of(scale))
    without, bare = projection_of(model_of(0.0))
    x, gradient = torch.randn(50, 64), torch.randn(50, 64)
    exact = projection.bases[0].weight
    y, inner = projection.onto(None, x, weight)
    of_x, inner_gradient = projection.backward(gradient, weight)
    wholes = [
        (y, x @ exact.T + inner @ projection.b.T),
        (of_x, gradient @ exact + inner_gradient @ projection.a),
    ]
    for found, wanted in wholes:
        assert apart(found, wanted) < 0.05
    if scale == 1.0:  # the adapters' part is the larger one
        assert apart(y, wholes[0][1]) < 0.01
    small = without.onto(None, x, bare)[0]
    assert apart(small, x @ exact.T) == pytest.approx(0.0375, abs=0.02)


def test_an_outlier_takes_the_precision_of_its_own_row_only() -> None:
    x = torch.randn(2, 64)
    x[0, 0] = 1e6
    rows, scales = quantise(x, None, torch.zeros(2, 0), torch.ones(1))
    made = rows.float() * scales
    assert apart(made[1], x[1]) < 0.05 < apart(made[0, 1:], x[0, 1:])
    assert torch.isfinite(made).all()
    assert rows[0, 0].float() == LARGEST


def test_borders_hold_a_number_in_two_parts() -> None:
    torch.manual_seed(0)
    b, a, units = torch.randn(5, 16), torch.randn(16, 7), torch.tensor([[50.0], [3.0]])
    of_b, of_a = torch.zeros(5, border(16)).to(FP8), torch.zeros(7, border(16)).to(FP8)
    quantise_borders(b, a, torch.ones(5), units, of_b, of_a)
    for found, wanted in ((of_b.float(), b * 50), (of_a.float(), a.T * 3)):
        assert torch.equal(found[:, :16], found[:, 32:48])
        assert apart(found[:, :16] + found[:, 16:32], wanted) < 2**-7
        assert not found[:, 48:].any()


def test_the_widths_of_borders_suit_the_product() -> None:
    assert [border(rank) for rank in (0, 16, 32, 48)] == [0, 128, 128, 256]


def test_a_recipe_gets_fp8_or_a_reason() -> None:
    fp8 = recipe_of(precision="fp8")
    assert fp8_obstacle(recipe_of(), "", [], CPU) == ""
    assert "there is no CUDA GPU; leave precision out (--set precision=16-bit)" in fp8_obstacle(
        fp8, "", [], CPU
    )
    odd = fp8_obstacle(fp8, "", [Linears("o_proj", 576, 72, ("a.o_proj",))], CPU)
    assert "here o_proj is 576 by 72, and both sides have to be multiples of 16; leave precision out" in odd
    assert "a gpt2 is none of" in fp8_obstacle(fp8, "a gpt2 is none of the families", [], CPU)
    dora = recipe_of(precision="fp8", LoraConfig={"use_dora": True})
    assert "LoraConfig.use_dora is set" in fp8_obstacle(dora, "", [], torch.device("cuda"))
    with pytest.raises(TrainError, match="precision"):
        changed(recipe_of(), {"precision": "fp4"}, "the command line")
    with pytest.raises(TrainError, match="here there is no CUDA GPU"):
        Adapted(model_of(None), fp8, CPU)


def test_the_first_steps_of_a_run_are_in_fp8() -> None:
    fp8 = recipe_of(precision="fp8")
    assert [fp8.fp8_steps(steps) for steps in (1, 4, 10, 300)] == [1, 3, 7, 210]
    assert recipe_of().fp8_steps(300) == 0


def test_runs_from_before_there_was_the_key_go_on() -> None:
    assert recipe_of().config_hash() == recipe_of(precision="16-bit").config_hash()
    assert recipe_of().config_hash() != recipe_of(precision="fp8").config_hash()
