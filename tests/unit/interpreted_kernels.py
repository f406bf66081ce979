"""Triton's kernels against their formulas in Triton's interpreter; a program for test_fused_kernels.py.

The test runs it as a child, since TRITON_INTERPRET=1 must be there before Triton is imported. It prints each
case's relative error as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch

from train.fused.fp8_reference import FP8, LARGEST, border
from train.fused.reference_ops import HeadNorms, Heads
from train.fused.rotary import Angles

TOKENS, WIDTH, VOCABULARY = 37, 150, 5000  # none fills a block; the vocabulary takes two
ACTIVATIONS = {"silu": False, "gelu": True}
HEADS = {"3of24": Heads(3, 2, 24, 1.0, None), "8of16": Heads(8, 1, 16, 1.0, None)}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Draw:
    """Random numbers, always the same: such as `stored` can hold, in the type `used`."""

    stored: torch.dtype
    used: torch.dtype

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> torch.Tensor:
        return self.exact(*shape).to(self.stored).to(self.used)

    def exact(self, *shape: int) -> torch.Tensor:
        """In fp32."""
        return torch.randn(*shape, generator=self.generator)

    def strided(self, *shape: int) -> torch.Tensor:
        """Rows that don't lie one after the other."""
        return self(shape[0], shape[1] + 24)[:, : shape[1]]


# What a case makes with the kernels or the formulas; what is changed in place is a result too.
Case = Callable[[ModuleType, Draw], list[torch.Tensor]]


def rms_norm(ops: ModuleType, draw: Draw, offset: float, width: int, border: int = 0) -> list[torch.Tensor]:
    made = ops.rms_norm(draw(TOKENS, width), draw(width), 1e-5, offset, border)
    assert made.shape == (TOKENS, width + border)
    return [made[:, :width]]  # the border isn't written


def rms_norm_onto(ops: ModuleType, draw: Draw, offset: float, width: int) -> list[torch.Tensor]:
    x, residual = draw(TOKENS, width), draw(TOKENS, width)
    return [ops.rms_norm(x, draw(width), 1e-5, offset, residual=residual)]


def rms_norm_backward(
    ops: ModuleType, draw: Draw, offset: float, width: int, alone: bool = False
) -> list[torch.Tensor]:
    gradient, x, residual = (draw(TOKENS, width) for _ in range(3))
    made = ops.rms_norm_backward(gradient, x, draw(width), None if alone else residual, 1e-5, offset)
    return [made, residual]


def gated(ops: ModuleType, draw: Draw, gelu: bool, width: int = WIDTH) -> list[torch.Tensor]:
    return [ops.gated(draw(TOKENS, 2 * width), gelu)]


def gated_backward(ops: ModuleType, draw: Draw, gelu: bool, width: int = WIDTH) -> list[torch.Tensor]:
    gradient, gate_up = draw(TOKENS, width), draw(TOKENS, 2 * width)
    ops.gated_backward(gradient, gate_up, gelu)
    return [gradient, gate_up]


def angles_of(draw: Draw, half: int) -> Angles:
    angle = draw.exact(TOKENS, half)
    return Angles(angle.cos(), angle.sin())


@dataclass(frozen=True)
class Turn:
    """How heads are turned: with rows that lie apart, all of a head's columns or `half` times two, normed."""

    heads: Heads
    strided: bool = False
    half: int = 0
    normed: bool = False

    def settings(self, draw: Draw) -> tuple[Heads, Angles, HeadNorms | None]:
        head = self.heads.head
        norms = HeadNorms((draw(head), draw(head)), 1e-5, 1.0) if self.normed else None
        return self.heads, angles_of(draw, self.half or head // 2), norms

    def rows(self, draw: Draw, width: int) -> torch.Tensor:
        return (draw.strided if self.strided else draw)(TOKENS, width)


def rotate(ops: ModuleType, draw: Draw, turn: Turn) -> list[torch.Tensor]:
    heads = turn.heads
    qkv = turn.rows(draw, (heads.query + 2 * heads.key) * heads.head)
    out = torch.empty_like(qkv) if turn.normed else qkv
    ops.rotate(qkv, *turn.settings(draw), out=out)
    return list(heads.split(out))


def rotate_backward(ops: ModuleType, draw: Draw, turn: Turn) -> list[torch.Tensor]:
    heads, counts = turn.heads, (turn.heads.query, turn.heads.key, turn.heads.key)
    parts = tuple(turn.rows(draw, count * heads.head).unflatten(1, (count, heads.head)) for count in counts)
    out = turn.rows(draw, sum(counts) * heads.head)
    ops.rotate_backward(parts, *turn.settings(draw), out=out)
    return list(heads.split(out))


def capped(ops: ModuleType, draw: Draw, heads: Heads, gradients: bool) -> list[torch.Tensor]:
    """Attention with capped scores of three rows; its kernels aren't among `triton_ops`."""
    from train.fused import reference_ops
    from train.fused.capped_attention import Capped

    starts = torch.tensor([0, 70, 71, 150], dtype=torch.int32)
    qkv = 2 * draw(150, (heads.query + 2 * heads.key) * heads.head)
    gradient = draw(150, heads.query * heads.head)
    if ops is reference_ops:
        parts = heads.split(qkv)
        if not gradients:
            return [reference_ops.attend(parts, heads, starts).flatten(1)]
        of_out = gradient.view(150, heads.query, heads.head)
        return list(reference_ops.attend_backward(of_out, parts, heads, starts))
    out, lse = Capped(heads).forward(qkv, starts)
    if not gradients:
        return [out.flatten(1)]
    return list(Capped(heads).backward(gradient, qkv, out, lse, starts))


def cross_entropy(ops: ModuleType, draw: Draw, vocabulary: int) -> list[torch.Tensor]:
    logits = 3 * draw(9, vocabulary)
    labels = torch.randint(0, vocabulary, (9,), generator=draw.generator)
    labels[:2] = torch.tensor([0, vocabulary - 1])
    return [ops.cross_entropy(logits, labels), logits]


def four_bits(matrix: torch.Tensor, **options: bool | str) -> Any:
    """A weight as bitsandbytes stores it."""
    from bitsandbytes.nn import Params4bit

    settings = {"quant_type": "nf4", "compress_statistics": True} | options
    return Params4bit(matrix, requires_grad=False, **settings).to("cpu")


def decode(
    ops: ModuleType, draw: Draw, shape: tuple[int, int], border: int = 0, **options: bool | str
) -> list[torch.Tensor]:
    """`shape[1]` is a multiple of 64, as bitsandbytes 0.50 decodes others wrongly on a CPU."""
    weight = four_bits(draw.exact(*shape), **options)
    whole = torch.zeros(shape[0], shape[1] + border, dtype=draw.used)
    ops.decode(weight, whole[:, : shape[1]])
    return [whole]


TURNS = {
    f"{name}{where}{how}": Turn(heads, strided, half, normed)
    for name, heads in HEADS.items()
    for where, strided in (("", False), ("-strided", True))
    for how, half, normed in (("", 0, False), ("-partial", 5, False), ("-normed", 0, True))
} | {"normed-partial": Turn(HEADS["3of24"], False, 7, True)}


def quantise(ops: ModuleType, draw: Draw, width: int, rank: int, scaled: bool) -> list[torch.Tensor]:
    """Rows for a product in FP8, with what the adapters add, of rows that lie apart; the bytes as numbers."""
    factors = draw.exact(width).abs() if scaled else None
    rows, scales = ops.quantise(
        draw.strided(TOKENS, width), factors, draw(TOKENS, rank), torch.full((1,), 0.7)
    )
    return [rows.float(), scales]


def quantise_matrices(ops: ModuleType, draw: Draw, shape: tuple[int, int], nf4: bool) -> list[torch.Tensor]:
    """A frozen matrix both ways, and the adapters' borders."""
    matrix, (rows, columns) = draw(*shape), shape
    scales = matrix.abs().amax(1).float() / LARGEST
    values, turned = torch.zeros(rows, columns + 16).to(FP8), torch.zeros(columns, rows + 16).to(FP8)
    to = values[:, :columns], turned[:, :rows]
    if nf4:
        ops.quantise_nf4(four_bits(matrix), scales, *to)
    else:
        ops.quantise_matrix(matrix, scales, *to)
    of_b, of_a = torch.zeros(rows, border(16)).to(FP8), torch.zeros(columns, border(16)).to(FP8)
    units = torch.tensor([[3.0], [200.0]])
    ops.quantise_borders(draw(rows, 16), draw(16, columns), scales * LARGEST, units, of_b, of_a)
    return [part.float() for part in (values, turned, of_b, of_a)]


def cases() -> dict[str, Case]:
    """All by name, which ends with a type. The interpreter cuts bf16 off where a GPU rounds."""
    found: dict[str, Case] = {}
    for offset, width in ((0.0, 48), (1.0, 256), (1.0, 1100)):
        norm = {"offset": offset, "width": width}
        found[f"rms_norm+{offset:.0f}-{width}"] = partial(rms_norm, **norm)
        found[f"rms_norm+{offset:.0f}-{width}-border"] = partial(rms_norm, **norm, border=16)
        found[f"rms_norm+{offset:.0f}-{width}-onto"] = partial(rms_norm_onto, **norm)
        found[f"rms_norm_backward+{offset:.0f}-{width}"] = partial(rms_norm_backward, **norm)
        found[f"rms_norm_backward+{offset:.0f}-{width}-alone"] = partial(
            rms_norm_backward, **norm, alone=True
        )
    for name, turn in TURNS.items():
        found[f"rotate-{name}"] = partial(rotate, turn=turn)
        found[f"rotate_backward-{name}"] = partial(rotate_backward, turn=turn)
    for name, gelu in ACTIVATIONS.items():
        for width in (WIDTH, 1100):  # the second takes two blocks
            found[f"gated-{name}-{width}"] = partial(gated, gelu=gelu, width=width)
            found[f"gated_backward-{name}-{width}"] = partial(gated_backward, gelu=gelu, width=width)
    for vocabulary in (57, VOCABULARY):
        found[f"cross_entropy-{vocabulary}"] = partial(cross_entropy, vocabulary=vocabulary)
    return (
        {f"{name}-{kind}": case for name, case in found.items() for kind in TYPES} | DECODED | CAPPED | FP8S
    )


# The second has more than the 256 scales that share one, the third rows that lie apart; bitsandbytes decodes
# the last two itself.
DECODED: dict[str, Case] = {
    "decode-64x128-fp32": partial(decode, shape=(64, 128)),
    "decode-101x192-fp32": partial(decode, shape=(101, 192)),
    "decode-bordered-fp32": partial(decode, shape=(101, 192), border=16),
    "decode-fp4-fp32": partial(decode, shape=(64, 128), quant_type="fp4"),
    "decode-quantised-once-fp32": partial(decode, shape=(64, 128), compress_statistics=False),
}
# Not in bf16, of which the interpreter makes no products.
CAPPED: dict[str, Case] = {
    f"{what}-{name}-{kind}": partial(capped, heads=heads, gradients=gradients)
    for name, heads in (
        ("capped-4of24", Heads(4, 2, 24, 0.2, None, 5.0)),
        ("capped-2of16-window", Heads(2, 1, 16, 0.2, 20, 3.0)),
    )
    for what, gradients in (("attend", False), ("attend_backward", True))
    for kind in ("fp32", "fp16")
}
# Bytes: a number of the fourth fraction bit more or less would show.
FP8S: dict[str, Case] = {
    f"fp8-rows-{width}-{rank}{'-scaled' if scaled else ''}-fp32": partial(
        quantise, width=width, rank=rank, scaled=scaled
    )
    for width, rank, scaled in ((48, 0, False), (150, 16, True), (1100, 48, True))
} | {
    "fp8-matrix-fp32": partial(quantise_matrices, shape=(70, 100), nf4=False),
    "fp8-nf4-fp32": partial(quantise_matrices, shape=(101, 192), nf4=True),
}
# A kernel's case, and a formula that isn't its own.
WRONG: dict[str, tuple[Case, Case]] = {
    "gelu-is-not-silu": (partial(gated, gelu=True), partial(gated, gelu=False)),
    "gelu-backward-is-not-silu": (partial(gated_backward, gelu=True), partial(gated_backward, gelu=False)),
    "heads-are-normed": (
        partial(rotate_backward, turn=Turn(HEADS["8of16"], normed=True)),
        partial(rotate_backward, turn=Turn(HEADS["8of16"])),
    ),
    "scores-are-capped": (
        partial(capped, heads=Heads(2, 1, 16, 0.2, None, 3.0), gradients=True),
        partial(capped, heads=Heads(2, 1, 16, 0.2, None, 30.0), gradients=True),
    ),
    "an-offset-counts": (partial(rms_norm, offset=1.0, width=48), partial(rms_norm, offset=0.0, width=48)),
}


def error(made: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The largest relative error of the tensors: 0 is bit for bit the same."""
    pairs = list(zip(made, wanted, strict=True))
    if all(torch.equal(a, b.to(a.dtype)) for a, b in pairs):
        return 0.0
    return max(((a.float() - b).norm() / b.norm()).item() for a, b in pairs)


def main() -> None:
    from train.fused import reference_ops, triton_ops

    errors: dict[str, float] = {}
    for name, case in cases().items():
        dtype = TYPES[name.rpartition("-")[2]]
        errors[name] = error(
            case(triton_ops, Draw(dtype, dtype)), case(reference_ops, Draw(dtype, torch.float32))
        )
    for name, (case, other) in WRONG.items():
        exact = partial(Draw, torch.float32, torch.float32)
        errors[name] = error(case(triton_ops, exact()), other(reference_ops, exact()))
    json.dump(errors, sys.stdout)


if __name__ == "__main__":
    main()
