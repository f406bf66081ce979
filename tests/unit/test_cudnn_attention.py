"""What cuDNN is told of its tensors, on a stand-in that reads them as cuDNN 9.19 did on an H200.

Whether the real one computes it is asked in tests/gpu, and by `agrees` before each run.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from train.fused import cudnn_attention
from train.fused.cudnn_attention import Plan
from train.fused.reference_ops import Heads

CPU = torch.device("cpu")


@dataclass
class Named:
    """A tensor of a graph."""

    dim: Any = None
    stride: Any = None
    data_type: Any = None
    uid: int = 0
    ragged_offset: Any = None

    def __getattr__(self, name: str) -> Any:
        def keep(value: Any) -> Named:
            setattr(self, name.removeprefix("set_"), value)
            return self

        if not name.startswith("set_"):
            raise AttributeError(name)
        return keep


class Graph:
    """Attention, or its gradients, of the rows that the offsets and lengths tell of."""

    shift = 0  # where gradients go, beside where they should

    def __init__(self, **types: Any) -> None:
        self.given: dict[str, Any] = {}
        self.results: list[Named] = []

    def tensor(self, **about: Any) -> Named:
        return Named(**about)

    def sdpa(self, **given: Any) -> list[Named]:
        self.given, self.results = given, [Named(), Named()]
        return self.results

    def sdpa_backward(self, **given: Any) -> list[Named]:
        self.given, self.results = given, [Named(), Named(), Named()]
        return self.results

    def build(self, modes: list[Any]) -> None:
        assert all(tensor.uid for tensor in self.results)

    def get_workspace_size(self) -> int:
        return 1

    def execute(self, tensors: dict[int, torch.Tensor], workspace: torch.Tensor, handle: Any) -> None:
        def part(named: Named, row: int, like: Named) -> torch.Tensor:
            """Heads, tokens and width of a row, whose offset is that of `like`."""
            at, whole = int(tensors[like.ragged_offset.uid][row]), tensors[named.uid].detach()
            size = named.dim[1], int(lengths[row]), named.dim[3]
            return whole.as_strided(size, named.stride[1:], whole.storage_offset() + at)

        lengths = tensors[self.given["seq_len_q"].uid]
        inputs = [self.given[name] for name in "qkv"]
        for row in range(len(lengths)):
            source = [part(named, row, named).float().requires_grad_() for named in inputs]
            out = functional.scaled_dot_product_attention(
                *(x[None] for x in source), is_causal=True, scale=self.given["attn_scale"], enable_gqa=True
            )[0]
            if len(self.results) == 2:
                part(self.results[0], row, self.results[0]).copy_(out)
                continue
            gradient = part(self.given["dO"], row, self.given["dO"]).float()
            gradients = torch.autograd.grad(out, source, gradient) if len(gradient[0]) else source
            # It looks at the offsets of the tensor, whatever the gradient was given.
            for gradient, named, like in zip(gradients, self.results, inputs, strict=True):
                part(named, row, like).copy_(gradient.roll(self.shift, 1))


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    types = SimpleNamespace(BFLOAT16=0, FLOAT=1, INT32=2, INT64=3)
    stand_in = SimpleNamespace(pygraph=Graph, data_type=types, heur_mode=SimpleNamespace(A=0))
    stand_in.set_stream = lambda **_: None
    monkeypatch.setitem(sys.modules, "cudnn", stand_in)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0))


@pytest.mark.parametrize("counts", [(4, 4), (4, 2), (4, 1)])
def test_cudnn_is_told_where_each_row_lies(
    counts: tuple[int, int], cudnn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = Heads(*counts, head=16, scale=0.25, window=None)
    plan = Plan(
        heads, cudnn_attention.ROWS, cudnn_attention.LONGEST, cudnn_attention.TOKENS, exact=False, handle=None
    )
    assert cudnn_attention.agrees(plan, heads, CPU)
    assert cudnn_attention.agrees(plan, heads, CPU), "another batch of rows"
    monkeypatch.setattr(Graph, "shift", 1)
    assert not cudnn_attention.agrees(plan, heads, CPU), "one that gets it wrong isn't used"
