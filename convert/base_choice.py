"""Which base to merge on, measured: the 16-bit weights, or those that QLoRA's NF4 made of them.

A QLoRA adapter was trained on NF4 weights, so part of it makes up for their error; on the 16-bit base that
part is wrong, but the base is better. Which wins differs by model and run (LLaMA-Factory and Unsloth merge on
16 bit, Axolotl simulates NF4). Here both are merged and the held-out loss decides.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from convert.merge import merge
from convert.verify.adapted import simulate_nf4, with_adapter
from core.errors import ConvertError
from core.families import text_options
from core.gptq import GptqCheckpoint, open_checkpoint
from core.log_probs import idle_threads
from core.progress import Progress
from core.rows import Row

ADAPTER_ON_NF4, MERGED_FULL, MERGED_NF4 = "adapter on NF4", "merged on 16 bit", "merged on NF4"


def choose_base(
    base: Path, adapter: Path, rows: Sequence[Row], progress: Progress
) -> tuple[Literal["full", "nf4"], dict[str, float]]:
    """Return the base whose merge has the lower loss on the `test` rows, and the losses in nats a token.

    Loads the whole model, on the GPU if there is one. A GPTQ base was never NF4: it is "full", unmeasured.
    Raises ConvertError.
    """
    tests = [row for row in rows if row.split == "test" and any(row.mask[1:])]
    if not tests:
        raise ConvertError(
            "the run kept no test rows to choose a base by; say which: --base full or --base nf4"
        )
    if isinstance(open_checkpoint(base), GptqCheckpoint):
        return "full", {}
    losses: dict[str, float] = {}
    for left in adapter.parent.glob(".choose-*"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)

    def step(done: int, total: int) -> None:
        progress(len(losses) * total + done, 3 * total)

    with idle_threads():
        losses[ADAPTER_ON_NF4] = _loss(_with_adapter(base, adapter), tests, step)
    for name, simulate in ((MERGED_FULL, False), (MERGED_NF4, True)):
        with idle_threads(), tempfile.TemporaryDirectory(dir=adapter.parent, prefix=".choose-") as scratch:
            merge(base, adapter, Path(scratch, "merged"), lambda done, total: None, simulate)
            losses[name] = _loss(_load(Path(scratch, "merged")), tests, step)
    return ("nf4" if losses[MERGED_NF4] < losses[MERGED_FULL] else "full"), losses


def _load(folder: Path) -> PreTrainedModel:
    """Load for measuring: in bf16 on a GPU, and in fp32 on a CPU, where bf16 is slow."""
    gpu = torch.cuda.is_available()
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        **text_options(config),
        dtype=torch.bfloat16 if gpu else torch.float32,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    model.train(False).to("cuda" if gpu else "cpu")
    return model


def _with_adapter(base: Path, adapter: Path) -> torch.nn.Module:
    """The model as training saw it: the adapter live on the values that NF4 left."""
    model = _load(base)
    simulate_nf4(model, open_checkpoint(base))
    return with_adapter(model, adapter)


@torch.no_grad()
def _loss(model: torch.nn.Module, rows: Sequence[Row], progress: Progress) -> float:
    """The mean negative log likelihood of all masked tokens, in nats."""
    device = next(model.parameters()).device
    total = count = 0.0
    for number, row in enumerate(rows, 1):
        ids = torch.tensor(row.ids, device=device)
        wanted = torch.tensor(row.mask[1:], device=device, dtype=torch.bool)
        logits = model(ids[None]).logits[0, :-1][wanted].float()
        total += torch.nn.functional.cross_entropy(logits, ids[1:][wanted], reduction="sum").item()
        count += int(wanted.sum())
        progress(number, len(rows))
    return total / count
