"""One arm of `bench/train_sharded.py`, as one of its processes: the first prints a line of figures.

python -m bench.train_sharded_arm ARM FOLDER [--steps N] [--length N] [--storage TYPE] [--deterministic]
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoConfig

from bench.bursts import ALPHA, LENGTH, RANK
from bench.train_documents import documents
from train.batches import Order
from train.forecast import forecast
from train.model import Adapted, load_base
from train.recipe import Recipe, parse
from train.run import load_of
from train.session import device_of
from train.sft import SFTTrainer
from train.shape import gpu_of, shape_of

CARDS = 2
FIGURES = "figures: "  # what the line begins with


def recipe_of(base: Path, given: argparse.Namespace, cards: int, shared: bool, storage: str) -> Recipe:
    """All arms see the same micro-batches: what isn't done by several cards is accumulated by one."""
    content = {
        "model": {"base_model": str(base), "license": "none"},
        "data": {"path": "none"},
        "BitsAndBytesConfig": {"load_in_4bit": True, "bnb_4bit_quant_storage": storage},
        # One that no layer has: the kernels of train/fused leave such a recipe to transformers and PEFT.
        "LoraConfig": {"r": RANK, "lora_alpha": ALPHA, "rank_pattern": {"none": RANK}},
        "SFTConfig": {
            "max_length": given.length,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": CARDS // cards,
            "max_steps": given.steps,
            "eval_steps": given.steps // 2,
            "logging_steps": 1,
        },
        "memory": "lean",
        "fully_shard": shared,
    }
    return parse(content, "the benchmark's recipe")


def work(given: argparse.Namespace) -> None:
    """Train as one of the processes of an arm; the first prints a line of figures."""
    state = PartialState(cpu=not torch.cuda.is_available())
    device, cards, folder = device_of(state), state.num_processes, given.folder
    base = folder / "base"
    recipe = recipe_of(base, given, cards, cards > 1, given.storage)
    found: dict[str, Any] = {"arm": given.arm, "cards": cards, "storage": given.storage}
    expected = whole_digests(base, given, device) if given.arm == "shared" and state.is_main_process else {}
    began = time.perf_counter()
    adapted = Adapted(load_base(str(base), recipe, device), recipe, device)
    found |= {"load_s": time.perf_counter() - began, "weights_gb": most(taken(device, "current"), device)}
    digests = watched(adapted)
    config = AutoConfig.from_pretrained(base)
    order = Order(
        documents(given.length, config.vocab_size, share=1.0), recipe.sft, cards, state.process_index
    )
    lines: list[dict[str, Any]] = []

    def note(line: dict[str, Any]) -> None:
        lines.append(line)
        # The checkpoint of the middle, for the arm that goes on from there
        if given.arm == "shared" and line["step"] == given.steps // 2 + 1 and state.is_main_process:
            shutil.copytree(folder / "shared" / "checkpoint", folder / "resumed" / "checkpoint")

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    (folder / given.arm).mkdir(exist_ok=True)
    trainer = SFTTrainer(adapted, recipe, order, [], folder / given.arm, note)
    trainer.resume()
    trainer.run()
    speeds = sorted(line["tokens_per_s"] for line in lines[2:] or lines)
    found |= {
        "losses": {line["step"]: line["loss"] for line in lines},
        "tokens_per_s": speeds[len(speeds) // 2],
        "peak_gb": most(taken(device, "peak"), device),
        "packed": len(digests),
        "changed": sum(digests.get(name) != digest for name, digest in expected.items()),
    }
    if gpu := gpu_of(torch.cuda.get_device_name() if device.type == "cuda" else "H100"):
        foreseen = forecast(shape_of(config), recipe, load_of(order), gpu, cards)
        found |= {
            "forecast_gb": foreseen.memory_gb,
            "forecast_tokens_per_s": foreseen.tokens_per_s * cards,
            "forecast_host_gb": foreseen.host_gb,
        }
    end(state, found)


def end(state: PartialState, found: dict[str, Any]) -> None:
    """Print the figures once, and close what is between the processes."""
    if state.is_main_process:
        print(FIGURES + json.dumps(found), flush=True)
    state.destroy_process_group()


def taken(device: torch.device, kind: str) -> float:
    """Bytes of tensors on the device."""
    return torch.cuda.memory_stats(device)[f"active_bytes.all.{kind}"] if device.type == "cuda" else 0.0


def most(count: float, device: torch.device) -> float:
    """The most that any process has, in GB."""
    shared = torch.tensor(count, device=device, dtype=torch.float64)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return shared.item() / 1e9


def whole_digests(base: Path, given: argparse.Namespace, device: torch.device) -> dict[str, str]:
    """SHA-256 of the packed weights as one GPU has them, by layer."""
    recipe = recipe_of(base, given, 1, False, "uint8")
    adapted = Adapted(load_base(str(base), recipe, device), recipe, device)
    digests = {name: digest_of(layer.weight) for name, layer in packed(adapted)}
    del adapted
    gc.collect()  # its parts know each other, and would count among what the arm keeps
    return digests


def packed(adapted: Adapted) -> Iterator[tuple[str, Any]]:
    """The layers whose weights are packed."""
    for name, module in adapted.base.named_modules():
        if getattr(module, "quant_state", None) is not None:
            yield name, module


def digest_of(weight: torch.Tensor) -> str:
    """SHA-256 of a weight's bytes."""
    there = weight.detach().contiguous().view(torch.uint8).to("cpu", copy=True)
    return hashlib.sha256(there.numpy().tobytes()).hexdigest()


def watched(adapted: Adapted) -> dict[str, str]:
    """SHA-256 of the packed weights as the first forward pass finds them, by layer; empty until then."""
    digests: dict[str, str] = {}

    def look(name: str, module: Any, handles: list[Any]) -> None:
        handles.pop().remove()
        digests[name] = digest_of(module.weight)

    for name, module in packed(adapted):
        handles: list[Any] = []

        def before(module: Any, _: Any, name: str = name, handles: list[Any] = handles) -> None:
            look(name, module, handles)

        handles.append(module.register_forward_pre_hook(before))
    return digests


def main() -> None:
    """Read the options, and work."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arm", choices=("one", "shared", "resumed", "bfloat16"))
    parser.add_argument("folder", type=Path, help="with the base in it")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--storage", default="uint8")
    parser.add_argument("--deterministic", action="store_true")
    given = parser.parse_args()
    torch.use_deterministic_algorithms(given.deterministic)
    work(given)


if __name__ == "__main__":
    main()
