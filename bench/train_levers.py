"""Where a training step's time goes, and what each lever is worth: python -m bench.train_levers

Phi-3.5 with random weights of full size, NF4, r 16 on all linear layers, 8,192 tokens a step in documents
of a chat data set's lengths. Each variant has one lever taken out. The times of the kernels are summed up by
kind from one profiled step; what the step took beyond them is waiting. Needs CUDA.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from bench.train_documents import documents
from bench.train_models import CONFIGS, random_base
from train.batches import Batch, Order
from train.fused import attention, reference_ops
from train.fused.cudnn_attention import plan_for
from train.fused.decoder import Saved, Stack
from train.fused.frozen import Frozen
from train.fused.fuse import fuse, fused, unfuse
from train.fused.lora_linear import Projection
from train.model import Adapted
from train.recipe import Recipe, parse

RESULTS = Path(__file__).with_name("results") / "train-levers.json"
MODEL = "microsoft/Phi-3.5-mini-instruct"
WARM, STEPS = 3, 8
KINDS = {  # the first that a kernel's name matches
    "matrix products": r"nvjet|gemm|cutlass::Kernel|splitKreduce",
    "attention": r"flash|fmha|cudnn",
    "NF4 decoding": r"_decode|kDequantize",
    "norms, gates, rotation, loss": r"_rms_norm|_gated|_rotate|_cross_entropy",
    "copies to and from the host, beside the rest": r"Memcpy (HtoD|DtoH)",
}
Lever = Callable[[Stack], None]


def recipe_of(mode: str) -> Recipe:
    """The recipe of all variants."""
    return parse(
        {
            "model": {"base_model": MODEL, "license": "none"},
            "data": {"path": "none"},
            "BitsAndBytesConfig": {"load_in_4bit": True},
            "memory": mode,
        },
        "the benchmark's recipe",
    )


def with_operations(**changed: Any) -> Lever:
    """A lever that has other functions between the matrix products."""

    def take(stack: Stack) -> None:
        from train.fused import triton_ops

        ops: Any = SimpleNamespace(
            **{name: getattr(triton_ops, name) for name in triton_ops.__all__} | changed
        )
        stack.frozen.ops = ops
        for part in (*stack.layers, *(norm for layer in stack.layers for norm in layer.norms)):
            part.ops = ops
        for projection in (projection for layer in stack.layers for projection in layer.projections):
            projection.ops = ops

    return take


def without_borders(stack: Stack) -> None:
    """Adapters added to what the products made, in passes of their own."""

    def apart(projection: Projection, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        values, inner = projection.split(x)
        torch.mm(values, projection.a.T, out=inner)
        return (values @ projection.split(weight)[0].T).addmm_(inner, projection.b.T)

    for layer in stack.layers:
        for projection in (layer.qkv, layer.gate_up):
            projection.bordered = partial(apart, projection)  # type: ignore[method-assign]


def without_cudnn(stack: Stack) -> None:
    """Attention by PyTorch's own kernels."""
    attention.plan_for = lambda *_: None


class OnGpu:
    """What `Offload` does, without leaving the GPU."""

    def __init__(self) -> None:
        self.kept: dict[int, Any] = {}

    def put(self, number: int, tensors: Any) -> None:
        """Keep them."""
        self.kept[number] = tensors

    def get(self, number: int) -> Any:
        """Give them back."""
        return self.kept.pop(number)


def decoded_each_time(stack: Stack) -> None:
    """Matrices in four bits, decoded when they are used."""
    stack.frozen = Frozen(stack.layers, False, stack.dtype, stack.frozen.ops)


def kept_on_gpu(stack: Stack) -> None:
    """Without the host's memory."""
    keeping: Any = OnGpu
    stack.saved = lambda: Saved(keeping())  # type: ignore[method-assign]


def formulas() -> dict[str, Any]:
    """The functions of plain.py."""
    names = ("rms_norm", "rms_norm_backward", "gated", "gated_backward", "rotate", "rotate_backward")
    return {name: getattr(reference_ops, name) for name in names}


def variants() -> Iterator[tuple[str, str, Lever | None]]:
    """Name, mode and what is taken out."""
    for mode in ("fast", "lean"):
        yield "all levers", mode, lambda stack: None
        yield "adapters added in passes of their own", mode, without_borders
        yield "formulas instead of kernels", mode, with_operations(**formulas())
        yield "attention by FlashAttention 2", mode, without_cudnn
    yield "matrices decoded each time", "fast", decoded_each_time
    yield "decoded by bitsandbytes", "lean", with_operations(decode=reference_ops.decode)
    yield "nothing in the host's memory", "lean", kept_on_gpu
    yield "transformers and PEFT", "fast", None
    yield "transformers and PEFT", "lean", None


class Measured:
    """Steps of one variant."""

    def __init__(self, adapted: Adapted, recipe: Recipe, batches: list[Batch]) -> None:
        self.adapted, self.batches, self.sft = adapted, batches, recipe.sft
        rate = recipe.sft.learning_rate
        self.optimizer = torch.optim.AdamW(adapted.parameters_to_train(), lr=rate, fused=True)

    def step(self, number: int) -> int:
        """One step of training; return its tokens."""
        batch = self.batches[number % len(self.batches)].to(torch.device("cuda"))
        (self.adapted(batch) / batch.trained).backward()
        torch.nn.utils.clip_grad_norm_(self.adapted.parameters_to_train(), self.sft.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return batch.tokens

    def run(self) -> dict[str, Any]:
        """Speed, memory and where the time goes."""
        for number in range(WARM):
            self.step(number)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        tokens = sum(self.step(number) for number in range(STEPS))
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        peak = torch.cuda.memory_stats()["active_bytes.all.peak"] / 2**30
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            self.step(0)
            torch.cuda.synchronize()
        milliseconds, launches = Counter[str](), 0
        for event in profile.key_averages():
            kind = next((kind for kind, names in KINDS.items() if re.search(names, event.key)), "other")
            milliseconds[kind] += event.self_device_time_total / 1e3
            launches += event.count * (event.device_type == torch.autograd.DeviceType.CUDA)
        beside = milliseconds[list(KINDS)[-1]]
        step = 1e3 * seconds / STEPS
        table = {kind: round(milliseconds[kind], 1) for kind in (*KINDS, "other")}
        table["waiting, and slower clocks than in one step alone"] = round(
            step - (milliseconds.total() - beside), 1
        )
        figures = {"tokens_per_s": round(tokens / seconds), "peak_gib": round(peak, 2)}
        return figures | {"step_ms": round(step, 1), "launches": launches, "milliseconds": table}


def take_out(lever: Lever | None, adapted: Adapted, mode: str) -> None:
    """Give the model a stack with this lever taken out; None trains by transformers and PEFT."""
    attention.plan_for = plan_for
    base: Any = adapted.base
    unfuse(base)
    gc.collect()
    torch.cuda.empty_cache()
    if lever:
        fuse(base, adapted.dtype, mode == "fast")
        forward = fused(base)
        assert forward is not None
        lever(forward.stack(torch.device("cuda")))
    elif mode == "lean":
        base.gradient_checkpointing_enable({"use_reentrant": False})


def main() -> None:
    """Measure all variants and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this needs a CUDA GPU, and there is none")
    recipe, config = recipe_of("lean"), CONFIGS[MODEL]
    adapted = Adapted(random_base(recipe, torch.device("cuda"), config), recipe, torch.device("cuda"))
    order = Order(documents(2048, config.vocab_size, share=1.0), recipe.sft)
    batches = [order.step(number)[0] for number in range(WARM + STEPS)]
    rows = []
    for name, mode, lever in variants():
        take_out(lever, adapted.train(), mode)
        row = {"variant": name, "mode": mode} | Measured(adapted, recipe, batches).run()
        print(json.dumps(row), flush=True)
        rows.append(row)
    about = {"device": torch.cuda.get_device_name(), "date": date.today().isoformat(), "model": MODEL}
    about |= {"versions": {name: version(name) for name in ("torch", "transformers", "peft", "triton")}}
    given.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
