"""Memory and speed of a recipe for a full-size model, whose weights are random: they don't depend on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from bench.cells import Cell, number
from bench.comparison import Section, table_of
from bench.inference import written
from bench.inference_report import measures
from bench.memory import free
from bench.short_run import WARM, short_run
from bench.train_documents import documents
from bench.train_models import CONFIGS, random_base
from train import forecast
from train.batches import Order
from train.card import table
from train.model import Adapted
from train.recipe import Recipe, changed, load_recipe
from train.run import load_of
from train.shape import gpu_of, shape_of

LONGEST = 2048  # tokens of a document


def measure(
    name: str, values: dict[str, Any], steps: int, batches: Sequence[int] = (), tokens: int = 32
) -> dict[str, Any]:
    """Train the recipe `name`, with `values` in place of its own, some steps on documents of random tokens.

    With `batches`, the base writes before, as bench/inference.py has it. Needs CUDA. Raises TrainError.
    """
    free(cuda=True)
    device = torch.device("cuda")
    recipe = changed(load_recipe(name), values, name)
    sft = recipe.sft.model_copy(update={"max_steps": steps, "logging_steps": 1, "eval_steps": steps})
    recipe = recipe.model_copy(update={"sft": sft})
    config = CONFIGS[recipe.model.base_model]
    order = Order(documents(min(sft.max_length, LONGEST), config.vocab_size), sft)
    load, gpu = load_of(order), gpu_of(torch.cuda.get_device_name())
    available, _ = torch.cuda.mem_get_info()
    recipe = forecast.settle(recipe, shape_of(config), load, gpu, available)
    base = random_base(recipe, device, config)
    found = written(base, batches, tokens, repeats=3) if batches else {}
    return found | {"tokens_a_batch": round(load.tokens), "pace": recipe.pace} | _trained(recipe, base, order)


def cells(
    name: str,
    steps: int,
    arms: Mapping[str, Mapping[str, Any]],
    batches: Sequence[int] = (),
    tokens: int = 32,
) -> list[Cell]:
    """A cell full|<arm> for each arm, by how it says that the recipe's base is quantised."""
    plain = {"GPTQConfig": None, "BitsAndBytesConfig": None}
    return [
        Cell(f"full|{arm}", partial(measure, name, plain | dict(values), steps, batches, tokens), alone=True)
        for arm, values in arms.items()
    ]


def _trained(recipe: Recipe, base: Any, order: Order) -> dict[str, Any]:
    adapted = Adapted(base, recipe, torch.device("cuda"))
    ran = short_run(adapted, recipe, order)
    return {
        "training_tokens_per_s": number(ran.tokens_per_s(WARM)),
        "training_memory_gb": number(ran.memory_gb),
        "trainable": sum(part.numel() for part in adapted.parameters_to_train()),
    }


def training_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Memory and speed of training, by what the arms are called."""
    rows = [
        [
            name,
            cell["pace"],
            f"{cell['tokens_a_batch']:,}",
            f"{cell['training_tokens_per_s']:,.0f}",
            f"{cell['training_memory_gb']:.2f}",
            f"{cell['trainable']:,}",
        ]
        for name, cell in found.items()
    ]
    head = ["base", "memory", "tokens a batch", "tokens/s of training", "GB at the peak"]
    return table([*head, "trained parameters"], rows)


def section(found: Mapping[str, Mapping[str, Any]], arms: Iterable[str], device: str) -> Section:
    """Inference and training of what was measured, by what the arms are called."""
    made = measures(found)
    return Section([table_of(made, found), training_table(found), made[0].lacking(arms, f" on {device}")])
