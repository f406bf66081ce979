"""FP8 on CUDA: the kernels' bytes are the formulas', the products those of 16 bit but for e4m3's error."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from train.fused import fp8_reference
from train.fused.fp8 import Frozen8, Projection8
from train.fused.layer import Layer

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU, and there is none", allow_module_level=True)

from train.fused import fp8_kernels, triton_ops

CUDA = torch.device("cuda")


def differing(one: torch.Tensor, other: torch.Tensor) -> float:
    """The share of bytes that differ."""
    return (one.view(torch.uint8) != other.view(torch.uint8)).float().mean().item()


@pytest.mark.parametrize(("width", "rank"), [(48, 0), (3072, 16), (9216, 48), (16384, 32)])
def test_rows_are_quantised_as_the_formula_says(width: int, rank: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(500, width + 16, device=CUDA).bfloat16()[:, :width]
    inner = torch.randn(500, rank, device=CUDA).bfloat16()
    unit = torch.tensor([0.7], device=CUDA)
    for factors in (None, torch.rand(width, device=CUDA)):
        found, scales = fp8_kernels.quantise(x, factors, inner, unit)
        wanted, wanted_scales = fp8_reference.quantise(x, factors, inner, unit)
        torch.testing.assert_close(scales, wanted_scales)
        assert differing(found, wanted) < 1e-4  # a quotient that lies between two, rounded otherwise


@pytest.mark.parametrize("shape", [(70, 96), (128, 128), (3072, 9216)])
def test_matrices_are_quantised_as_the_formula_says(shape: tuple[int, int]) -> None:
    from bitsandbytes.functional import quantize_4bit

    torch.manual_seed(0)
    matrix = torch.randn(shape, device=CUDA, dtype=torch.bfloat16)
    rows, columns = shape
    scales = matrix.abs().amax(1).float() / fp8_reference.LARGEST

    def places() -> tuple[torch.Tensor, torch.Tensor]:
        empty = [torch.zeros(a, b + 16, device=CUDA).to(fp8_reference.FP8) for a, b in (shape, shape[::-1])]
        return empty[0][:, :columns], empty[1][:, :rows]

    found, wanted = places(), places()
    fp8_kernels.quantise_matrix(matrix, scales, *found)
    fp8_reference.quantise_matrix(matrix, scales, *wanted)
    for one, other in zip(found, wanted, strict=True):
        assert differing(one.contiguous(), other.contiguous()) < 1e-4
    packed: Any = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    packed.data, packed.quant_state = quantize_4bit(matrix, quant_type="nf4", compress_statistics=True)
    fp8_kernels.quantise_nf4(packed, scales, *found)
    fp8_reference.quantise_nf4(packed, scales, *wanted)
    for one, other in zip(found, wanted, strict=True):
        assert differing(one.contiguous(), other.contiguous()) < 1e-4


def test_a_projection_is_that_of_16_bit_but_for_the_error_of_e4m3() -> None:
    """e4m3's error of a product of random numbers is 3.75 %."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(1024, 512, bias=False, device=CUDA, dtype=torch.bfloat16).requires_grad_(False)
    projection = Projection8([linear], torch.bfloat16, triton_ops)
    layer: Any = type("OneLayer", (Layer,), {"projections": (projection,) * 4})
    frozen = Frozen8([layer.__new__(layer)], True, torch.bfloat16, triton_ops)
    frozen.begin()
    weight = frozen[0].all[0]
    x = torch.randn(300, 1024, device=CUDA, dtype=torch.bfloat16)
    y, _ = projection.onto(None, x, weight)
    wanted = x.float() @ linear.weight.float().T
    assert 0.01 < (y.float() - wanted).norm() / wanted.norm() < 0.05
    gradient = torch.randn(300, 512, device=CUDA, dtype=torch.bfloat16)
    of_x, _ = projection.backward(gradient, weight)
    wanted = gradient.float() @ linear.weight.float()
    assert 0.01 < (of_x.float() - wanted).norm() / wanted.norm() < 0.05
