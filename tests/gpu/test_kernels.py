"""The kernels of train/fused on CUDA, in bf16: each against its formula in fp32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from train.batches import Packed
from train.fused import reference_ops
from train.fused.attention import attend
from train.fused.cudnn_attention import is_there, plan_for
from train.fused.reference_ops import HeadNorms, Heads
from train.fused.rotary import Angles

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU, and there is none", allow_module_level=True)

from train.fused import triton_ops  # needs Triton, which comes with PyTorch for CUDA
from train.fused.capped_attention import Capped

CUDA = torch.device("cuda")


@pytest.mark.skipif(not is_there(CUDA), reason="needs nvidia-cudnn-frontend and a Hopper GPU")
@pytest.mark.parametrize("lengths", [[1], [37, 200, 1, 90], [300] * 9, [64] * 8, [2500, 40]])
@pytest.mark.parametrize("heads", [(4, 4, 96), (4, 1, 256), (6, 2, 64)])
def test_attention_by_cudnn_is_that_of_fp32(lengths: list[int], heads: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    shape = Heads(*heads, scale=heads[2] ** -0.5, window=None)
    tokens, width = sum(lengths), (shape.query + 2 * shape.key) * shape.head
    starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    ids = torch.zeros(1, tokens, dtype=torch.long)
    batch = Packed(input_ids=ids, position_ids=ids, cu_seq_lens=starts, max_length=max(lengths))
    on_gpu = replace(batch, cu_seq_lens=starts.to(CUDA))
    qkv = torch.randn(tokens, width, device=CUDA, dtype=torch.bfloat16)
    gradient = torch.randn(tokens, shape.query, shape.head, device=CUDA, dtype=torch.bfloat16)
    plan = plan_for(qkv, shape, on_gpu)
    assert plan is not None
    out, lse = plan.forward(qkv, on_gpu.cu_seq_lens)
    made = [out, *plan.backward(gradient, qkv, out, lse, on_gpu.cu_seq_lens)]
    exact = qkv.float().cpu().requires_grad_()
    wanted, _ = attend(exact, shape, batch)
    wanted.backward(gradient.flatten(1).float().cpu())
    for found, reference in zip(made, [wanted, *shape.split(exact.grad)], strict=True):
        error = (found.float().cpu().flatten() - reference.flatten()).norm()
        # A row of one token has no gradient of its queries: the least is 1.
        assert error < 1e-2 * reference.norm().clamp(min=1)


@pytest.mark.parametrize("heads", [(4, 2, 64), (2, 1, 256), (4, 4, 96)])
@pytest.mark.parametrize("window", [None, 100])
def test_capped_attention_is_that_of_fp32(heads: tuple[int, int, int], window: int | None) -> None:
    """bf16's own error here is 0.3 % in the results, and 0.7 % in the gradients."""
    torch.manual_seed(0)
    shape = Heads(*heads, scale=heads[2] ** -0.5, window=window, softcap=3.0)
    starts = torch.tensor([0, 37, 237, 238, 900], dtype=torch.int32, device=CUDA)
    qkv = torch.randn(900, (shape.query + 2 * shape.key) * shape.head, device=CUDA, dtype=torch.bfloat16)
    gradient = torch.randn(900, shape.query * shape.head, device=CUDA, dtype=torch.bfloat16)
    out, lse = Capped(shape).forward(qkv, starts)
    made = [out.flatten(1), *Capped(shape).backward(gradient, qkv, out, lse, starts)]
    exact = shape.split(qkv.float())
    wanted = reference_ops.attend(exact, shape, starts)
    of_parts = reference_ops.attend_backward(gradient.float().view_as(wanted), exact, shape, starts)
    for found, reference in zip(made, [wanted.flatten(1), *of_parts], strict=True):
        assert (found - reference).norm() < 1e-2 * reference.norm()


@pytest.mark.parametrize("tokens", [1, 100, 321])
def test_kernels_are_the_formulas(tokens: int) -> None:
    torch.manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=CUDA, dtype=torch.bfloat16)

    heads = Heads(query=6, key=2, head=96, scale=1.0, window=None)
    angle = torch.rand(tokens, 48, device=CUDA)
    angles = Angles(angle.cos(), angle.sin())
    x, weight = some(tokens, 960), some(960)
    wide, gradient = some(tokens, 2 * 960), some(tokens, 960)
    parts = tuple(some(tokens, count, 96) for count in (6, 2, 2))
    labels = torch.randint(0, 960, (tokens,), device=CUDA)
    results = []
    for ops, kind in ((triton_ops, torch.bfloat16), (reference_ops, torch.float32)):
        x_, weight_ = (part.to(kind) for part in (x, weight))
        found = [ops.rms_norm(x_, weight_, 1e-5, 1.0, border)[:, :960] for border in (0, 16)]
        found.append(ops.rms_norm(x_, weight_, 1e-5, 1.0, residual=gradient.to(kind)))
        for residual in (x_.clone(), None):
            found.append(ops.rms_norm_backward(gradient.to(kind), x_, weight_, residual, 1e-5, 0.0))
        for gelu in (True, False):
            taken, gates = gradient.to(kind, copy=True), wide.to(kind, copy=True)
            found.append(ops.gated(gates, gelu))
            ops.gated_backward(taken, gates, gelu)
            found += [taken, gates]
        turned, back = x_.clone(), torch.zeros_like(x_)
        ops.rotate(turned, heads, angles, None, out=turned)
        ops.rotate_backward(tuple(part.to(kind) for part in parts), heads, angles, None, out=back)
        norms = HeadNorms((weight_[:96], weight_[96:192]), 1e-6, 1.0)
        normed, of_normed = torch.empty_like(x_), x_.clone()
        part_of = Angles(angles.cos[:, :36].contiguous(), angles.sin[:, :36].contiguous())
        ops.rotate(x_, heads, part_of, norms, out=normed)
        ops.rotate_backward(tuple(part.to(kind) for part in parts), heads, part_of, norms, out=of_normed)
        logits = x_.clone()
        found += [turned, back, normed, of_normed, ops.cross_entropy(logits, labels), logits]
        results.append(found)
    for number, (made, reference) in enumerate(zip(*results, strict=True)):
        error = (made.float() - reference).norm() / reference.norm()
        assert error < 5e-3, f"result {number}: relative error {error:.4f}"
