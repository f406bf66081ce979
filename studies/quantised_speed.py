"""The report's tables of speed and memory, from results.json alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from studies.quantised_cells import ARM_NAMES, Content, cells, place
from studies.tables import section, training_table


def speed_table(content: Content) -> str:
    """Inference by precision and batch, wherever it was measured."""
    rows = []
    for key, cell in content["cells"].items():
        kind, _, name = key.partition("|")
        if kind in ("speed", "processor", "gguf"):
            engine = f"{'llama.cpp' if kind == 'gguf' else 'transformers'}, {place(content, kind)}"
            rows += _written(engine, ARM_NAMES.get(name, name), cell)
    tokens = content["settings"]["sizes"]["new_tokens"]
    note = (
        f"Prompts of {tokens} tokens and as many written; medians with ranges over repeats on one "
        "machine. Stored are a model's packed weights with what else it keeps, and a file with all that is "
        "in it; the peak is the GPU's, or on a processor that of the process, libraries included. On a "
        "processor transformers computes in fp32, and its bf16 is stored so."
    )
    if not cells(content, "gguf"):
        note += " llama.cpp wasn't there, so there are no GGUF files in this table."
    head = ["engine", "weights", "batch", "first token, s", "tokens/s", "GB stored", "GB at the peak"]
    return section(head, rows, note)


def _written(engine: str, title: str, cell: dict[str, Any]) -> Iterator[list[str]]:
    """A row for each batch."""
    for batch, found in cell["batches"].items():
        speeds, peak = found["tokens_per_s"], found["memory_gb"]
        range_ = f"{statistics.median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f})"
        first = f"{statistics.median(found['first_s']):.3f}"
        yield [
            engine,
            title,
            batch,
            first,
            range_,
            f"{cell['weights_gb']:.3f}",
            f"{peak:.2f}" if peak else "",
        ]


def full_size_table(content: Content) -> str:
    """Inference and training of the full-size recipe."""
    found = {arm: content["cells"][f"full|{arm}"] for arm in ARM_NAMES if f"full|{arm}" in content["cells"]}
    rows = [row[1:] for arm, cell in found.items() for row in _written("", ARM_NAMES[arm], cell)]
    tokens = content["settings"]["sizes"]["new_tokens"]
    note = (
        "The recipe `llama2-7b-gptq-quotes` with each arm's base in place of its own, on the same GPU. **The "
        "weights are random**, as the real ones can't be had here: speed and memory don't depend on them, "
        "and nothing is said of losses. Above is inference, with prompts of "
        f"{tokens} tokens and as many written; below is training, on documents of random tokens."
    )
    head = ["base", "batch", "first token, s", "tokens/s", "GB stored", "GB at the peak"]
    return section(head, rows, note, [training_table({ARM_NAMES[arm]: cell for arm, cell in found.items()})])
