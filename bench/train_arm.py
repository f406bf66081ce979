"""One arm of the training benchmark, in a process of its own: a burst of steps for each line from stdin.

    python -m bench.train_arm tune2chat|trl|unsloth lean|fast BASE [--batch N] [--steps N]

All arms train the same base (NF4, double quantisation) and adapter (r 16, all linear layers, no dropout,
fp32) on the same documents, packed to 2,048 tokens, with fused AdamW and bf16 arithmetic; every token counts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Before any of the libraries is imported: nothing is fetched, nothing is reported.
os.environ |= {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "TOKENIZERS_PARALLELISM": "false"}

LENGTH = 2048
RANK, ALPHA = 16, 32
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "trl", "liger-kernel", "unsloth", "triton")


class Bursts:
    """Reports what a burst of steps took, and waits for the word to begin the next."""

    def __init__(self, arm: str, mode: str) -> None:
        self.about = {"arm": arm, "mode": mode}

    def ready(self, trainable: int) -> None:
        """Say what will be trained, once the model is there."""
        self.about |= {"trainable": trainable, "versions": _versions()}

    def end(self, tokens: float, seconds: float, loss: float) -> None:
        """Print a line; return when the next one comes in. Raises SystemExit after the last."""
        import torch

        figures = {"tokens": tokens, "seconds": seconds, "loss": loss}
        figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        print(json.dumps(self.about | figures), flush=True)
        if not sys.stdin.readline():
            raise SystemExit


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def tune2chat(given: argparse.Namespace, bursts: Bursts) -> None:
    """This project's loop."""
    import torch
    from transformers import AutoConfig

    from bench.train_documents import documents
    from train.loop import Loop
    from train.model import Adapted, load_base
    from train.order import Order
    from train.recipe import parse

    sft = {"max_length": LENGTH, "per_device_train_batch_size": given.batch, "max_steps": 10_000}
    content = {
        "model": {"base_model": given.base, "license": "none"},
        "data": {"path": "none"},
        "BitsAndBytesConfig": {"load_in_4bit": True},
        "LoraConfig": {"r": RANK, "lora_alpha": ALPHA},
        "SFTConfig": sft | {"logging_steps": given.steps, "eval_steps": 10_000, "learning_rate": 2e-4},
        "memory": given.mode,
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
        Loop(adapted, recipe, order, [], Path(folder), note).run()


def trl(given: argparse.Namespace, bursts: Bursts) -> None:
    """TRL's SFTTrainer with packing and Liger's kernels, the fastest that it does without other packages."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        given.base, quantization_config=quantised, dtype=torch.bfloat16, device_map={"": 0}
    )
    adapter = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=_targets(given.base), task_type="CAUSAL_LM")
    options = {
        "use_liger_kernel": True,
        "gradient_checkpointing": given.mode == "lean",
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }
    _train(given, bursts, model, adapter, options)


def unsloth(given: argparse.Namespace, bursts: Bursts) -> None:
    """Unsloth, set up as its notebooks do it."""
    import torch
    import unsloth as library  # first: it patches the others

    model, _ = library.FastLanguageModel.from_pretrained(
        given.base, max_seq_length=LENGTH, load_in_4bit=True, dtype=torch.bfloat16, local_files_only=True
    )
    model = library.FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0,
        target_modules=_targets(given.base),
        use_gradient_checkpointing="unsloth" if given.mode == "lean" else False,
    )
    _train(given, bursts, model, None, {"gradient_checkpointing": given.mode == "lean"})


def _targets(base: str) -> list[str]:
    """All linear layers by the names that this model gives them."""
    if json.loads(Path(base, "config.json").read_text())["model_type"] == "phi3":
        return ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    return ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _train(
    given: argparse.Namespace, bursts: Bursts, model: Any, adapter: Any, options: dict[str, Any]
) -> None:
    """SFTTrainer, as TRL has it or as Unsloth has changed it."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from bench.train_documents import documents

    class Watch(TrainerCallback):  # type: ignore[misc]
        tokens, began = 0, 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not self.began:
                self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step % given.steps == 0:
                torch.cuda.synchronize()
                bursts.end(self.tokens, time.perf_counter() - self.began, float("nan"))
                self.tokens, self.began = 0, time.perf_counter()

    watch = Watch()
    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_length=LENGTH,
        packing=True,
        max_steps=10_000,
        per_device_train_batch_size=given.batch,
        gradient_accumulation_steps=1,
        learning_rate=2e-4,
        optim="adamw_torch_fused",
        bf16=True,
        logging_steps=given.steps,
        report_to=[],
        save_strategy="no",
        dataloader_num_workers=2,
        **options,
    )
    rows = documents(LENGTH, model.config.vocab_size, share=1.0)
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list([{"input_ids": row.ids} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(given.base),
        peft_config=adapter,
        callbacks=[watch],
    )
    step = trainer.training_step

    def counted(model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        mask = inputs.get("attention_mask")
        watch.tokens += inputs["input_ids"].numel() if mask is None else int(mask.ne(0).sum())
        return step(model, inputs, *rest, **more)

    trainer.training_step = counted
    bursts.ready(sum(p.numel() for p in trainer.model.parameters() if p.requires_grad))
    torch.cuda.reset_peak_memory_stats()
    trainer.train()


def main() -> None:
    """Run one arm until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arm", choices=("tune2chat", "trl", "unsloth"))
    parser.add_argument("mode", choices=("lean", "fast"))
    parser.add_argument("base")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    given = parser.parse_args()
    arm = {"tune2chat": tune2chat, "trl": trl, "unsloth": unsloth}[given.arm]
    arm(given, Bursts(given.arm, given.mode))


if __name__ == "__main__":
    main()
