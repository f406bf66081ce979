"""A recipe as TRL's SFTConfig or DPOConfig."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.sft_config import SFTConfig

from core.errors import TrainError
from train.dpo_config import Dpo
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
# Rows are tokens already, with their own labels.
OF_ANSWERS = {
    "packing": False,
    "assistant_only_loss": False,
    "dataset_kwargs": {"skip_prepare_dataset": True},
}
TRIED = 2**13  # weights: bitsandbytes keeps the states of less than 4,096 in 32 bit


def arguments(recipe: Recipe, steps: int, folder: Path, device: torch.device) -> SFTConfig | DPOConfig:
    """The arguments of `train.trainer`, for which a step is one item of the data. Raises TrainError."""
    args, cpu = recipe.args, device.type == "cpu"
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")  # its callback takes no other way
    optim = UNPAGED.get(args.optim, args.optim.removeprefix("paged_")) if cpu else args.optim
    # A tracker that makes a Space makes a private one, unless the recipe says otherwise.
    given: dict[str, Any] = {"project": args.project, "hub_private_repo": True} | args.passed()
    given |= _of_pairs(recipe.dpo) if recipe.dpo else OF_ANSWERS
    kind: Any = DPOConfig if recipe.dpo else SFTConfig
    made: SFTConfig | DPOConfig = kind(
        **given,
        output_dir=str(folder),
        run_name=folder.name,
        report_to=list(args.report_to) or "none",
        seed=args.seed,
        use_cpu=cpu,
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler_type,
        warmup_steps=warmup_steps(args, steps),
        optim=optim,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm or math.inf,  # at 0 upstream wouldn't measure the norm either
        logging_steps=args.logging_steps,
        logging_nan_inf_filter=False,  # it waits for the device in each micro-batch, and hides what broke
        # Types, checkpointed layers, rows and their labels are `train.model`'s and `train.batches`'.
        fp16=args.fp16 and not cpu,
        bf16=False,
        activation_checkpointing=False,
        max_length=None,
        remove_unused_columns=False,
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


def _of_pairs(dpo: Dpo) -> dict[str, Any]:
    """What DPOConfig has beside. What the reference says beforehand is asked by `train.dpo`."""
    return {"beta": dpo.beta, "loss_type": list(dpo.loss_type), "disable_dropout": dpo.disable_dropout}


def check_arguments(recipe: Recipe, steps: int, folder: Path, device: torch.device) -> None:
    """Ask the libraries, before a base is loaded, whether they do what the recipe says. Raises TrainError."""
    args, key = recipe.args, "report_to"
    try:
        asked: Any = get_reporting_integration_callbacks  # untyped
        for callback in asked(list(args.report_to)):
            callback()
        key = "its keywords"
        made = arguments(recipe, steps, folder, device)
        key = f"optim {args.optim}"
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(made)
        weight = torch.nn.Parameter(torch.zeros(TRIED // 64, 64, device=device))
        weight.grad = torch.zeros_like(weight)
        optimizer = kind([weight], **settings)
        optimizer.step()
        key = f"lr_scheduler_type {args.lr_scheduler_type}"
        get_scheduler(
            made.lr_scheduler_type,
            optimizer,
            made.get_warmup_steps(steps),
            steps,
            scheduler_specific_kwargs=args.passed().get("lr_scheduler_kwargs"),
        )
    except torch.OutOfMemoryError:
        raise
    except REFUSES as error:
        cure = f"; what it needs goes into {args.title}.lr_scheduler_kwargs" if key.startswith("lr_") else ""
        raise TrainError(f"{args.title}.{key}: {' '.join(str(error).split())[:400]}{cure}") from None
