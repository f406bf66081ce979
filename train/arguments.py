"""A recipe as TRL's SFTConfig."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from trl.trainer.sft_config import SFTConfig

from train.recipe import Recipe, warmup_steps

PROJECT = "tune2chat"  # what trackers call all runs of this program together
UNPAGED = {"paged_adamw_8bit": "adamw_bnb_8bit", "paged_adamw_32bit": "adamw_torch"}


def arguments(recipe: Recipe, steps: int, folder: Path, device: torch.device) -> SFTConfig:
    """The arguments of `train.trainer`, for which a step is one item of the data. Raises TrainError."""
    sft, cpu = recipe.sft, device.type == "cpu"
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")  # its callback takes no other way
    made = SFTConfig(
        output_dir=str(folder),
        run_name=folder.name,
        project=PROJECT,
        report_to=list(sft.report_to) or "none",
        seed=sft.seed,
        use_cpu=cpu,
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=sft.learning_rate,
        lr_scheduler_type=sft.lr_scheduler_type,
        warmup_steps=warmup_steps(sft, steps),
        optim=UNPAGED.get(sft.optim, sft.optim) if cpu else sft.optim,  # only CUDA has memory to be paged
        weight_decay=sft.weight_decay,
        max_grad_norm=sft.max_grad_norm,
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
    made._n_gpu = min(made.n_gpu, 1)  # without a launcher it would split a batch over all cards
    return made
