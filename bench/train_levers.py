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
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from bench.train_documents import documents
from bench.train_models import CONFIGS, random_base
from core.files import write_whole
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
STEPS = 8
WARM = 2 * STEPS  # each batch twice: a size is recorded when it comes for the second time
BLOCKS = 4  # of 2,048 tokens, a step
KINDS = {  # the first that a kernel's name matches
    "matrix products": r"nvjet|gemm|cutlass::Kernel|splitKreduce",
    "attention": r"flash|fmha|cudnn",
    "NF4 decoding": r"_decode|kDequantize",
    "operands in FP8": r"_quantise|_borders",
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

    def settle(self) -> None:
        """Nothing is on its way."""

    places = ()


def decoded_each_time(stack: Stack) -> None:
    """Matrices in four bits, decoded when they are used."""
    stack.frozen = Frozen(stack.layers, False, stack.dtype, stack.frozen.ops)


def kept_on_gpu(stack: Stack) -> None:
    """Without the host's memory."""
    keeping: Any = OnGpu
    stack.saved = lambda: Saved(keeping())  # type: ignore[method-assign]


def copied_too(stack: Stack) -> None:
    """Nothing that was copied to the host before is made again."""
    for layer in stack.layers:
        layer.o.quick = False


def formulas() -> dict[str, Any]:
    """The functions of plain.py."""
    names = ("rms_norm", "rms_norm_backward", "gated", "gated_backward", "rotate", "rotate_backward")
    return {name: getattr(reference_ops, name) for name in names}


def nothing(stack: Stack) -> None:
    """All levers stay."""


@dataclass(frozen=True)
class Variant:
    """Which lever is taken out, in which mode, with how many blocks of 2,048 tokens a step."""

    name: str
    mode: str
    lever: Lever | None  # None trains by transformers and PEFT
    fp8: bool = False
    blocks: int = BLOCKS
    recorded: bool = True  # where passes are, by themselves

    @property
    def row(self) -> dict[str, Any]:
        """What stands in the results of it."""
        precision = "fp8" if self.fp8 else "16-bit"
        return {"variant": self.name, "mode": self.mode, "precision": precision, "blocks": self.blocks}


def variants() -> Iterator[Variant]:
    """All that are measured."""
    for mode in ("fast", "lean"):
        yield Variant("all levers", mode, nothing)
        yield Variant("adapters added in passes of their own", mode, without_borders)
        yield Variant("formulas instead of kernels", mode, with_operations(**formulas()))
        yield Variant("attention by FlashAttention 2", mode, without_cudnn)
    yield Variant("matrices decoded each time", "fast", decoded_each_time)
    yield Variant("decoded by bitsandbytes", "lean", with_operations(decode=reference_ops.decode))
    yield Variant("nothing in the host's memory", "lean", kept_on_gpu)
    yield Variant("transformers and PEFT", "fast", None)
    yield Variant("transformers and PEFT", "lean", None)
    for mode, blocks in product(("fast", "lean"), (BLOCKS, 1)):
        for fp8 in (True, False):
            if fp8 or blocks == 1:
                yield Variant("all levers", mode, nothing, fp8, blocks)
            if fp8 or blocks == 1:
                yield Variant("kernels launched one by one", mode, nothing, fp8, blocks, recorded=False)
    yield Variant("h copied too", "lean", copied_too, True)
    yield Variant("nothing in the host's memory", "lean", kept_on_gpu, True)


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


def take_out(variant: Variant, adapted: Adapted) -> None:
    """Give the model a stack with the variant's lever taken out."""
    attention.plan_for = plan_for
    base: Any = adapted.base
    unfuse(base)
    gc.collect()
    torch.cuda.empty_cache()
    if variant.lever:
        fuse(base, adapted.dtype, variant.mode == "fast", variant.fp8)
        forward = fused(base)
        assert forward is not None
        graphs = forward.graphs(torch.device("cuda"))
        graphs.on &= variant.recorded
        variant.lever(graphs.stack)
    elif variant.mode == "lean":
        base.gradient_checkpointing_enable({"use_reentrant": False})


def main() -> None:
    """Measure all variants and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--last", type=int, default=0, help="only so many of the variants, from the end")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this needs a CUDA GPU, and there is none")
    recipe, config = recipe_of("lean"), CONFIGS[MODEL]
    adapted = Adapted(random_base(recipe, torch.device("cuda"), config), recipe, torch.device("cuda"))
    rows = documents(2048, config.vocab_size, share=1.0)
    orders = {
        n: Order(rows, recipe.sft.model_copy(update={"per_device_train_batch_size": n})) for n in (1, BLOCKS)
    }
    batches = {n: [order.step(number)[0] for number in range(STEPS)] for n, order in orders.items()}
    about = {"device": torch.cuda.get_device_name(), "date": date.today().isoformat()}
    about |= {"versions": {name: version(name) for name in ("torch", "transformers", "peft", "triton")}}
    content: dict[str, Any] = {"model": MODEL, "rows": []}
    if given.out.exists():
        content = json.loads(given.out.read_text())
    for variant in list(variants())[-given.last :]:
        take_out(variant, adapted.train())
        row = variant.row | Measured(adapted, recipe, batches[variant.blocks]).run()
        print(json.dumps(row), flush=True)
        others = [each for each in content["rows"] if each | variant.row != each]
        content["rows"] = [*others, row | about]
        write_whole(given.out, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
