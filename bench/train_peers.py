"""TRL and Unsloth as arms of the training benchmark, set up as their own documentation does it."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.bursts import ALPHA, LENGTH, RANK, Bursts


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
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from bench.train_documents import documents

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
    )
    in_fp32(trainer)
    _watch(trainer, bursts)
    bursts.ready(sum(p.numel() for p in trainer.model.parameters() if p.requires_grad))
    torch.cuda.reset_peak_memory_stats()
    trainer.train()


def in_fp32(trainer: Any) -> None:
    """Have fp32 adapters, as this project and Unsloth do: TRL makes them bf16 on a quantised base."""
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _watch(trainer: Any, bursts: Bursts) -> None:
    """Count tokens, and end a burst where the loss is logged."""
    import torch
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        tokens: Any = 0
        began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = self.began or time.perf_counter()

        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            torch.cuda.synchronize()
            bursts.end(int(self.tokens), time.perf_counter() - self.began, logs["loss"])
            self.tokens, self.began = 0, time.perf_counter()

    watch, step = Watch(), trainer.training_step

    def counted(model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        mask = inputs.get("attention_mask")
        watch.tokens += inputs["input_ids"].numel() if mask is None else mask.ne(0).sum()  # read later
        return step(model, inputs, *rest, **more)

    trainer.add_callback(watch)
    trainer.training_step = counted
