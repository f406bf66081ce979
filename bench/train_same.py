"""Whether it is the same training: 100 steps beside TRL's on real weights: python -m bench.train_same [BASE]

BASE is SmolLM2-135M as a checkpoint; if it isn't given, what the recipe smollm2-quotes trains on. All arms
see the same documents in the same order, in NF4 with an adapter on all linear layers; a seed changes where
the adapter begins. TRL's curves in fp32 are the truth: ours, in bf16, have to be as near to it as TRL's in
bf16, and their means where those of TRL's seeds are. Needs TRL, and CUDA to say something of train/fused.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from itertools import combinations, product
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from transformers import AutoTokenizer

from bench.train_peers import in_fp32
from train.base import find_base
from train.batches import Order
from train.examples import Encoded
from train.model import Adapted, load_base
from train.recipe import RECIPES, load_recipe, parse
from train.sft import SFTTrainer

RESULTS = Path(__file__).with_name("results") / "train-same.json"
STEPS, BATCH, SEEDS = 100, 16, (0, 1, 2)
RANK, ALPHA, RATE, WARM = 16, 32, 2e-4, 10
TRUTH, PLAIN, LEAN = "TRL, fp32", "TRL, bf16", "tune2chat lean"
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "trl")


class InTurn(Order):
    """The rows as they come."""

    def _shuffled(self, epoch: int) -> list[int]:
        return list(range(len(self.blocks)))


def documents(base: str) -> list[Encoded]:
    """Enough quotations for all steps, each of whose tokens is trained, in an order drawn once."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    lines = (RECIPES / "quotes.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [" - ".join(str(value) for value in json.loads(line).values()) for line in lines]
    drawn = np.random.default_rng(0).choice(len(texts), STEPS * BATCH)
    rows = [tokenizer(texts[number])["input_ids"][:256] for number in drawn]
    return [Encoded(ids, [1] * len(ids), []) for ids in rows]


def tune2chat(base: str, rows: list[Encoded], seed: int, memory: str) -> list[float]:
    """The loss of each step by this project."""
    sft = {"max_length": 256, "packing": False, "per_device_train_batch_size": BATCH, "max_steps": STEPS}
    content = {
        "model": {"base_model": base, "license": "none"},
        "data": {"path": "none"},
        "BitsAndBytesConfig": {"load_in_4bit": True},
        "LoraConfig": {"r": RANK, "lora_alpha": ALPHA},
        "SFTConfig": sft
        | {
            "learning_rate": RATE,
            "warmup_steps": WARM,
            "logging_steps": 1,
            "eval_steps": 10_000,
            "seed": seed,
        },
        "memory": memory,
    }
    recipe = parse(content, "the benchmark's recipe")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    adapted = Adapted(load_base(base, recipe, device), recipe, device)
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        SFTTrainer(adapted, recipe, InTurn(rows, recipe.sft), [], Path(folder), lines.append).run()
    return [line["loss"] for line in lines if "loss" in line]


def trl(base: str, rows: list[Encoded], seed: int, dtype: torch.dtype) -> list[float]:
    """The loss of each step by TRL's SFTTrainer, with nothing of speed."""
    from datasets import Dataset
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=quantised, dtype=dtype)
    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_length=256,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        warmup_steps=WARM,
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        bf16=dtype == torch.bfloat16,
        logging_steps=1,
        seed=seed,
        report_to=[],
        save_strategy="no",
        gradient_checkpointing=False,
    )
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    torch.manual_seed(seed)
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list([{"input_ids": row.ids} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names, task_type="CAUSAL_LM"),
    )
    in_fp32(trainer)
    trainer._get_train_sampler = lambda *_: SequentialSampler(trainer.train_dataset)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def compare(curves: dict[str, list[list[float]]]) -> dict[str, Any]:
    """How far two runs are apart, a step and on average, for each arm and each of TRL's (nats)."""
    found: dict[str, Any] = {}
    for reference in (TRUTH, PLAIN):
        of_trl = curves[reference]
        for name, lines in curves.items():
            pairs = combinations(lines, 2) if name == reference else product(lines, of_trl)
            apart = np.array([np.subtract(one, other) for one, other in pairs])
            found[f"{name} and {reference}"] = {
                "a step": round(float(np.abs(apart).mean()), 4),
                f"a step after the first {WARM}": round(float(np.abs(apart[:, WARM:]).mean()), 4),
                "on average": round(float(apart.mean()), 4),
            }
    means = {name: [round(float(np.mean(line)), 4) for line in lines] for name, lines in curves.items()}
    return found | {"mean losses": means}


def plot(curves: dict[str, list[list[float]]], to: Path) -> None:
    """All curves of an arm in one colour, and below how far their means are from the truth."""
    from matplotlib import pyplot

    truth = np.array(curves[TRUTH])
    figure, (losses, apart) = pyplot.subplots(2, sharex=True, figsize=(8, 6))
    for number, (name, lines) in enumerate(curves.items()):
        colour = f"C{number}"
        losses.plot(np.array(lines).T, color=colour, lw=0.8, alpha=0.7)
        dashes = "--" if name == LEAN else "-"  # it lies on fast's
        apart.plot(np.array(lines).mean(0) - truth.mean(0), dashes, color=colour, lw=1.2, label=name)
    spread = truth.std(0, ddof=1)
    apart.fill_between(range(len(spread)), -spread, spread, alpha=0.2, label="between TRL's seeds in fp32")
    losses.set_ylabel("loss (nats a token)")
    losses.set_title("SmolLM2-135M on quotations, three seeds each")
    apart.set_xlabel("step")
    apart.set_ylabel(f"mean minus that of {TRUTH}")
    apart.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(to, dpi=110)


def main() -> None:
    """Train all arms and seeds, keep the curves, say how far apart they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", nargs="?")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.base and not Path(given.base, "config.json").is_file():
        parser.error(f"{given.base!r} is no checkpoint: it has no config.json")
    if not find_spec("trl"):
        parser.error("this needs TRL, which isn't installed: pip install trl==1.16.0")
    base = given.base or find_base(load_recipe("smollm2-quotes").model)
    rows = documents(base)
    curves = {
        TRUTH: [trl(base, rows, seed, torch.float32) for seed in SEEDS],
        PLAIN: [trl(base, rows, seed, torch.bfloat16) for seed in SEEDS],
        "tune2chat fast": [tune2chat(base, rows, seed, "fast") for seed in SEEDS],
        LEAN: [tune2chat(base, rows, seed, "lean") for seed in SEEDS],
    }
    apart = compare(curves)
    print(json.dumps(apart, indent=1))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    about = {"device": device, "date": date.today().isoformat(), "steps": STEPS, "apart": apart}
    about |= {"versions": {name: version(name) for name in LIBRARIES}, "curves": curves}
    given.out.write_text(json.dumps(about) + "\n")
    plot(curves, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
