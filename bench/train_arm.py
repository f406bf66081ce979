"""One arm of the training benchmark, in a process of its own: a burst of steps for each line from stdin.

    python -m bench.train_arm tune2chat|trl|unsloth lean|fast|lean-fp8|fast-fp8 BASE [--batch N] [--steps N]

All arms train the same base (NF4, double quantisation) and adapter (r 16, all linear layers, no dropout,
fp32) on the same documents, packed to 2,048 tokens, with fused AdamW and bf16 arithmetic; every token counts.
The steps are a run's first ones: in FP8 all of them, where a run's last ones are in 16 bit.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from bench.bursts import ALPHA, LENGTH, RANK, Bursts

# Before any of the libraries is imported: nothing is fetched, nothing is reported.
os.environ |= {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "TOKENIZERS_PARALLELISM": "false"}


def tune2chat(given: argparse.Namespace, bursts: Bursts) -> None:
    """This project's loop."""
    import torch
    from transformers import AutoConfig

    from bench.train_documents import documents
    from train.batches import Order
    from train.model import Adapted, load_base
    from train.recipe import parse
    from train.sft import SFTTrainer

    memory, _, precision = given.mode.partition("-")
    sft = {"max_length": LENGTH, "per_device_train_batch_size": given.batch, "max_steps": 10_000}
    content = {
        "model": {"base_model": given.base, "license": "none"},
        "data": {"path": "none"},
        "BitsAndBytesConfig": {"load_in_4bit": True},
        "LoraConfig": {"r": RANK, "lora_alpha": ALPHA},
        "SFTConfig": sft | {"logging_steps": given.steps, "eval_steps": 10_000, "learning_rate": 2e-4},
        "memory": memory,
        "precision": precision or "16-bit",
    }
    recipe = parse(content, "the benchmark's recipe")
    device = torch.device("cuda")
    adapted = Adapted(load_base(given.base, recipe, device), recipe, device)
    vocabulary = AutoConfig.from_pretrained(given.base).vocab_size
    order = Order(documents(LENGTH, vocabulary, share=1.0), recipe.sft)
    bursts.ready(sum(parameter.numel() for parameter in adapted.parameters_to_train()))
    before = 0

    def note(line: dict[str, Any]) -> None:
        nonlocal before
        tokens, before = line["tokens"] - before, line["tokens"]
        bursts.end(tokens, tokens / line["tokens_per_s"], line["loss"])

    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        SFTTrainer(adapted, recipe, order, [], Path(folder), note).run()


def main() -> None:
    """Run one arm until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arm", choices=("tune2chat", "trl", "unsloth"))
    parser.add_argument("mode", choices=("lean", "fast", "lean-fp8", "fast-fp8"))
    parser.add_argument("base")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    given = parser.parse_args()
    bursts = Bursts(given.arm, given.mode)
    if given.arm == "tune2chat":
        tune2chat(given, bursts)
    else:
        from bench.train_peers import trl, unsloth

        {"trl": trl, "unsloth": unsloth}[given.arm](given, bursts)


if __name__ == "__main__":
    main()
