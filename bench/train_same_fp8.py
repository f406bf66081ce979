"""How far training in FP8 is from 16 bit, on real weights: python -m bench.train_same_fp8 [BASE ...]

Each BASE is a checkpoint; if none is given, SmolLM2-135M and Gemma-3-270M as their packages have them. In the
study `text` each arm trains 300 steps on pieces of Python's own reference, all in one order: a seed changes
where the adapter begins. `tour` is the recipe smollm2-quotes on the first BASE, whose seeds change the order
too. Both are measured in 16 bit on rows that no run is trained on. A run is kept when it ends, and the same
command goes on with those that are missing. The arms in FP8 need a GPU that has it.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import pydoc_data.topics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from bench.short_run import short_run
from bench.train_same_fp8_report import (
    AGAIN,
    BASE16,
    ENDS,
    FAST,
    FP8,
    NF4,
    STEPS,
    TEXT,
    TOUR,
    WARM,
    draw,
    key_of,
    report,
)
from core.command import ROOT
from core.errors import TrainError
from core.files import write_whole
from train.base import find_base
from train.batches import Batch, Order
from train.data import prepare
from train.fused.fuse import fuse
from train.model import Adapted
from train.recipe import Recipe, changed, load_recipe, parse
from train.run import score
from train.sections import Model
from train.session import Base, Session

RESULTS = Path(__file__).with_name("results") / "train-same-fp8.json"
SEEDS = (0, 1, 2)
SIZE = 1200  # characters of a piece of text, some 300 tokens
# What an arm changes in a recipe whose base is in NF4 and whose products are in 16 bit
ARMS: dict[str, dict[str, Any]] = {
    BASE16: {"BitsAndBytesConfig": None},
    NF4: {},
    FP8: {"precision": "fp8"},
    AGAIN: {},
    FAST: {"precision": "fp8", "memory": "fast"},
}
ARMS |= dict.fromkeys(ENDS, ARMS[FP8])
ONCE = (AGAIN, FAST)  # what they show, one seed shows
GEMMA = Model(base_model=str(ROOT / ".cache"), gguf_file="gemma-3-270m.gguf", license="gemma")


@dataclass(frozen=True)
class Cell:
    """One run."""

    study: str
    base: str  # a folder
    arm: str
    seed: int
    steps: int = STEPS

    @property
    def key(self) -> str:
        return key_of(self.study, Path(self.base).name, self.arm, self.seed)


def cells_of(bases: list[str], arms: list[str], seeds: list[int], steps: int) -> list[Cell]:
    """All runs, those of the bases in turns: two processes then have a base each."""
    texts = [
        Cell(TEXT, base, arm, seed, steps)
        for seed in seeds
        for arm in arms
        for base in bases
        if not (seed and arm in ONCE)
    ]
    toured = [arm for arm in arms if arm not in ONCE]
    return texts + [Cell(TOUR, bases[0], arm, seed, steps) for arm in toured for seed in seeds]


def write_text(to: Path) -> None:
    """Python's reference, as `help` shows it, in pieces; of paragraphs that topics share, the first."""
    seen = set[str]()
    with to.open("w", encoding="utf-8") as file:
        for topic, text in sorted(pydoc_data.topics.topics.items()):
            paragraphs = [part for part in dict.fromkeys(text.split("\n\n")) if part not in seen]
            seen.update(paragraphs)
            whole = "\n\n".join(paragraphs)
            for begin in range(0, len(whole), SIZE):
                file.write(json.dumps({"text": whole[begin : begin + SIZE], "topic": topic}) + "\n")


def recipe_of(cell: Cell, text: Path) -> Recipe:
    """The recipe of a run; `text` is what `write_text` wrote."""
    model = {"base_model": cell.base, "license": "none"}
    if cell.study == TOUR:
        values = {"model": model, "SFTConfig.seed": cell.seed, "SFTConfig.logging_steps": 1}
        if cell.steps < STEPS:  # a trial
            values |= {"SFTConfig.max_steps": cell.steps, "data.limit": 30 * cell.steps}
        return changed(load_recipe("smollm2-quotes"), values | ARMS[cell.arm], "the benchmark's recipe")
    sft = {
        "max_length": 512,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 8,
        "max_steps": cell.steps,
        "warmup_steps": min(WARM, cell.steps - 1),
        "learning_rate": 2e-4,
        "logging_steps": 1,
        "eval_steps": min(100, cell.steps),
        "seed": cell.seed,
    }
    content = {
        "model": model,
        "data": {"path": str(text), "license": "PSF-2.0", "format": "text", "group_by": "topic"}
        | {"validation": 0.2, "test": 0, "limit": None if cell.steps >= STEPS else 30 * cell.steps},
        "BitsAndBytesConfig": {"load_in_4bit": True},
        "LoraConfig": {"r": 16, "lora_alpha": 32},
        "SFTConfig": sft,
        "memory": "lean",
    }
    return changed(parse(content, "the benchmark's recipe"), ARMS[cell.arm], "the benchmark's recipe")


def trained(cell: Cell, text: Path) -> dict[str, Any]:
    """Do a run; its losses by step, those of held-out rows (nats a token), and of a tour the scores."""
    recipe = recipe_of(cell, text)
    base = Base(recipe)
    data = prepare(recipe, base.tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    adapted = Adapted(base.load(recipe, device), recipe, device)
    session = Session(adapted, base.tokenizer, recipe, device)
    args = recipe.sft.model_copy(update={"seed": 0}) if cell.study == TEXT else recipe.sft
    order = Order(data.train, args)
    fp8_steps = order.steps - round(ENDS.get(cell.arm, 0) * order.steps)
    ran = short_run(adapted, recipe, order, data.validation, fp8_steps=fp8_steps, best=True)
    found: dict[str, Any] = {
        "losses": [round(step["loss"], 5) for step in ran.steps],
        "held out": {str(line["step"]): round(line["eval_loss"], 5) for line in ran.evaluations},
    }
    if cell.study == TOUR:
        examples = data.examples
        found["scores"] = score(data.loaded.layout, session, examples.test, examples.train)
    elif cell.arm == NF4 and cell.seed == SEEDS[0]:
        found["gradients"] = gradient_errors(adapted, *(order.step(n)[0].to(device) for n in (0, 1)))
    del adapted, session
    gc.collect()  # the trainer and its callbacks know each other
    torch.cuda.empty_cache()
    return found


def gradient_errors(adapted: Adapted, batch: Batch, other: Batch) -> dict[str, Any]:
    """Gradients of `batch` in FP8 beside those in 16 bit, and beside them how far another batch's are.

    By matrix, as lists over the layers, and of all matrices together. The weights are the same; afterwards
    the model is one in FP8.
    """
    exact, apart = _gradients(adapted, batch), _gradients(adapted, other)
    fuse(adapted.base, adapted.dtype, fast=False, fp8=True)
    found = _gradients(adapted, batch)
    matrices: dict[str, list[list[float]]] = {}
    for name in exact:
        parts = name.split(".")
        kind = f"{parts[-4]} {parts[-3][-1]}"  # ...down_proj.lora_A.default.weight
        matrices.setdefault(kind, []).append(_error(found[name], exact[name]))
    flat = [torch.cat([part.flatten() for part in each.values()]) for each in (found, apart, exact)]
    whole = {FP8: _error(flat[0], flat[2]), "another batch": _error(flat[1], flat[2])}
    return {"matrices": matrices, "all": whole}


def _gradients(adapted: Adapted, batch: Batch) -> dict[str, torch.Tensor]:
    adapted.train()
    adapted.zero_grad()
    (adapted(batch) / batch.trained).backward()
    named = adapted.peft.named_parameters()
    return {name: p.grad.double() for name, p in named if p.grad is not None}


def _error(found: torch.Tensor, exact: torch.Tensor) -> list[float]:
    """Cosine, and relative error."""
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), exact.flatten(), dim=0)
    return [round(float(cosine), 6), round(float((found - exact).norm() / exact.norm()), 5)]


def opened(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What was measured before, with these bases among others. Raises TrainError for other settings."""
    if not out.exists():
        return {"settings": settings, "runs": {}}
    content: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    there = content["settings"]["bases"]
    if content["settings"] != settings | {"bases": there} or not {*settings["bases"]} <= {*there}:
        raise TrainError(
            f"{out} was measured with {content['settings']}, and now it is {settings}: move it, or give --out"
        )
    return content


def settings_of(bases: list[str], steps: int) -> dict[str, Any]:
    """What runs must have in common to be compared."""
    libraries = ("torch", "transformers", "peft", "bitsandbytes", "trl")
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "versions": {name: version(name) for name in libraries} | {"python": sys.version.split()[0]},
        "steps": steps,
        "bases": [Path(base).name for base in bases],
    }


def measure(cells: list[Cell], content: dict[str, Any], out: Path, processes: int) -> int:
    """Do the runs that are missing; how many failed."""
    missing = [cell for cell in cells if cell.key not in content["runs"]]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.jsonl")
        write_text(text)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
            begun = {pool.submit(trained, cell, text): cell for cell in missing}
            for number, done in enumerate(as_completed(begun), 1):
                cell = begun[done]
                if error := done.exception():
                    failed += 1
                    print(f"{cell.key}: {error}", file=sys.stderr, flush=True)
                    continue
                content["runs"][cell.key] = done.result()
                write_whole(out, json.dumps(content) + "\n")
                print(f"{number} of {len(missing)}: {cell.key}", file=sys.stderr, flush=True)
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, print the tables, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bases", nargs="*", metavar="BASE")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="SEED")
    parser.add_argument("--studies", nargs="+", choices=(TEXT, TOUR), default=[TEXT, TOUR], metavar="STUDY")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--processes", type=int, default=4, help="runs at once on one GPU (4)")
    parser.add_argument("--report", action="store_true", help="only what is in --out")
    given = parser.parse_args(argv)
    for base in given.bases:
        if not Path(base, "config.json").is_file():
            parser.error(f"{base!r} is no checkpoint: it has no config.json")
    failed = 0
    try:
        if given.report:
            content = json.loads(given.out.read_text(encoding="utf-8"))
        else:
            bases = given.bases or [find_base(load_recipe("smollm2-quotes").model), find_base(GEMMA)]
            content = opened(given.out, settings_of(bases, given.steps))
            cells = cells_of(bases, given.arms, given.seeds, given.steps)
            asked = [cell for cell in cells if cell.study in given.studies]
            failed = measure(asked, content, given.out, given.processes)
    except (TrainError, OSError) as error:
        parser.error(str(error))
    print(report(content))
    draw(content, given.out.with_suffix(".png"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
