"""A recipe as TRL's SFTConfig."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from trl.trainer.sft_config import SFTConfig

from core.errors import TrainError
from train.recipe import Recipe
from train.sections import warmup_steps

# Only CUDA has memory to be paged; the names of the same without.
UNPAGED = {
    "paged_adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_32bit": "adamw_torch",
    "paged_ademamix_32bit": "ademamix",
}
# What libraries raise for a setting that they don't take.
REFUSES = (ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)
TRIED = 2**13  # weights: bitsandbytes keeps the states of less than 4,096 in 32 bit


def arguments(recipe: Recipe, steps: int, folder: Path, device: torch.device) -> SFTConfig:
    """The arguments of `train.trainer`, for which a step is one item of the data. Raises TrainError."""
    sft, cpu = recipe.sft, device.type == "cpu"
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")  # its callback takes no other way
    optim = UNPAGED.get(sft.optim, sft.optim.removeprefix("paged_")) if cpu else sft.optim
    # A tracker that makes a Space makes a private one, unless the recipe says otherwise.
    given: dict[str, Any] = {"project": sft.project, "hub_private_repo": True} | sft.passed()
    made = SFTConfig(
        **given,
        output_dir=str(folder),
        run_name=folder.name,
        report_to=list(sft.report_to) or "none",
        seed=sft.seed,
        use_cpu=cpu,
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=sft.learning_rate,
        lr_scheduler_type=sft.lr_scheduler_type,
        warmup_steps=warmup_steps(sft, steps),
        optim=optim,
        weight_decay=sft.weight_decay,
        max_grad_norm=sft.max_grad_norm or math.inf,  # at 0 upstream wouldn't measure the norm either
        logging_steps=sft.logging_steps,
        logging_nan_inf_filter=False,  # it waits for the device in each micro-batch, and hides what broke
        # Types, checkpointed layers, rows and their labels are `train.model`'s and `train.batches`'.
        fp16=sft.fp16 and not cpu,
        bf16=False,
        activation_checkpointing=False,
        packing=False,
        assistant_only_loss=False,
        max_length=None,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        # Evaluations and checkpoints are the trainer's own, and so is the bar.
        eval_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
    )
    # Of the argument before, which torch 2.13 means to rename.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    made._n_gpu = min(made.n_gpu, 1)  # without a launcher it would split a batch over all cards
    return made


def check_arguments(recipe: Recipe, steps: int, folder: Path, device: torch.device) -> None:
    """Ask the libraries, before a base is loaded, whether they do what the recipe says. Raises TrainError."""
    sft, key = recipe.sft, "report_to"
    try:
        asked: Any = get_reporting_integration_callbacks  # untyped
        for callback in asked(list(sft.report_to)):
            callback()
        key = "its keywords"
        made = arguments(recipe, steps, folder, device)
        key = f"optim {sft.optim}"
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(made)
        weight = torch.nn.Parameter(torch.zeros(TRIED // 64, 64, device=device))
        weight.grad = torch.zeros_like(weight)
        optimizer = kind([weight], **settings)
        optimizer.step()
        key = f"lr_scheduler_type {sft.lr_scheduler_type}"
        get_scheduler(
            made.lr_scheduler_type,
            optimizer,
            made.get_warmup_steps(steps),
            steps,
            scheduler_specific_kwargs=sft.passed().get("lr_scheduler_kwargs"),
        )
    except torch.OutOfMemoryError:
        raise
    except REFUSES as error:
        raise TrainError(f"SFTConfig.{key}: {' '.join(str(error).split())[:400]}") from None
