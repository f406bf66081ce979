"""Keys of other programs that people write into a recipe, and what a recipe has instead.

From older releases of transformers, TRL and PEFT, and the files of Unsloth, Axolotl, LLaMA-Factory and
torchtune. What the installed classes have is in `train.refused`, or works.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.errors import LeftOut
from train.cells import cell_text, missing, number
from train.refused import reason

# What is said, and the keys, apart by spaces, to which it is the answer.
_SAID = {
    "training is in bf16 unless SFTConfig.fp16: true is said; leave it out": """
        bfloat16 torch_dtype compute_dtype""",
    "a checkpoint is kept at each evaluation (SFTConfig.eval_steps) and every save_minutes, a key "
    "beside SFTConfig; leave it out": """
        save_safetensors saves_per_epoch save_every_n_steps checkpoint_every save_interval""",
    "the adapter with the lowest validation loss is always the one that is kept; leave it out": "save_best",
    "validation is every SFTConfig.eval_steps, or once an epoch; leave it out": """
        evaluation_strategy evals_per_epoch""",
    "a run's folder is outputs/NAME: say name: here, or --name and --root when it is started": """
        output logging_dir overwrite_output_dir project_name""",
    "say model.base_model": "model_name_or_path model_name model_id base pretrained_model checkpoint",
    "say data.path": "dataset datasets dataset_name dataset_path train_file train_data data_files data_path",
    "say data.validation, a share of the rows": "val_set_size val_size eval_dataset validation_split",
    "say data.test, a share of the rows": "test_size test_split",
    "say data.limit": "max_samples num_samples max_train_samples",
    "formats are known by their columns: rename them in the data, or say data.task": """
        columns prompt_column response_column text_field text_column dataset_prompt_field
        field_instruction field_output""",
    "say SFTConfig.max_length": """
        max_seq_length max_seq_len seq_length sequence_len seq_len cutoff_len model_max_length
        block_size context_length max_tokens""",
    "say SFTConfig.per_device_train_batch_size": """
        batch_size micro_batch_size train_batch_size per_gpu_train_batch_size""",
    "say SFTConfig.per_device_eval_batch_size": "eval_batch_size per_gpu_eval_batch_size",
    "say SFTConfig.gradient_accumulation_steps": """
        gradient_accumulation grad_accum grad_accumulation_steps accumulation_steps""",
    "say SFTConfig.num_train_epochs": "epochs num_epochs n_epochs max_epochs",
    "say SFTConfig.learning_rate": "lr rate",
    "say SFTConfig.lr_scheduler_type": "scheduler lr_scheduler lr_schedule",
    "say SFTConfig.warmup_steps or SFTConfig.warmup_ratio": "warmup num_warmup_steps",
    "say SFTConfig.optim": "optimizer optimizer_type",
    "say SFTConfig.max_grad_norm": "clip_grad_norm gradient_clip gradient_clipping",
    "say SFTConfig.seed": "random_state random_seed shuffle",
    "say SFTConfig.early_stopping_patience, a number of evaluations": "early_stopping early_stopping_steps",
    "say SFTConfig.packing": "sample_packing pad_to_sequence_len neat_packing",
    "say SFTConfig.assistant_only_loss: true trains the answers only, false the whole chat": """
        train_on_inputs train_on_prompt train_on_source mask_prompt roles_to_train
        train_on_responses_only""",
    "say LoraConfig.r": "lora_r lora_rank rank",
    "say LoraConfig.lora_alpha": "alpha lora_scale",
    "say LoraConfig.lora_dropout": "dropout",
    "say LoraConfig.target_modules: all-linear, or a list of names": """
        lora_target lora_targets lora_target_modules lora_target_linear lora_modules""",
    "say BitsAndBytesConfig.load_in_4bit: true": "use_4bit quantization_bit bits quantization",
    "say BitsAndBytesConfig.load_in_8bit: true": "use_8bit",
    "say BitsAndBytesConfig.bnb_4bit_quant_type": "quant_type bnb_4bit_type",
    "say BitsAndBytesConfig.bnb_4bit_use_double_quant": "use_double_quant double_quant use_nested_quant",
    "say memory: lean, beside SFTConfig, to compute again what would take memory": """
        use_gradient_checkpointing""",
    "the base's own chat template and tokens are used, as in the chat; leave it out": """
        chat_template template special_tokens tokenizer tokenizer_name""",
    "that is chosen for the model and the machine; leave it out": """
        attn_implementation flash_attention use_flash_attention_2 device_map max_memory""",
    "for several GPUs, start it with accelerate launch; leave it out": "num_gpus",
    "say --resume when it is started; leave it out": "resume",
    "say SFTConfig.adam_beta1 and SFTConfig.adam_beta2": "betas",
    "say SFTConfig.report_to: [tensorboard], or [trackio], or [wandb]": """
        wandb_project wandb use_wandb log_with""",
}
_INSTEAD = {key: said for said, keys in _SAID.items() for key in keys.split()}


def instead(key: str) -> str | None:
    """What a recipe has instead of `key`; None if no program that we know has it."""
    plain = key.lower().replace("-", "_")
    return _INSTEAD.get(plain) or reason(plain)


# OpenAI's weight, Axolotl's train, ms-swift's loss, torchtune's masked, scikit-learn's sample_weight.
WEIGHTS = ("weight", "loss_weight", "loss_scale", "sample_weight", "example_weight", "row_weight")
TRAINED = (
    *WEIGHTS,
    *("train", "training", "trained", "trainable", "train_on_turn", "loss", "loss_mask", "do_train"),
    *("is_train", "is_training", "train_on", "use", "use_for_training", "include", "included", "keep"),
)
NOT_TRAINED = ("masked", "mask", "ignore", "ignored", "skip", "skipped", "exclude", "excluded")
# Of people's judgement: false, or of the last three true, is an answer that isn't to be learnt.
JUDGED = ("label", "chosen", "accepted", "approved", "is_correct", "correct", "is_chosen")
JUDGED_BAD = ("rejected", "is_rejected", "deleted")

_WORDS = ("true", "false", "yes", "no")


def wanted(key: str, value: Any) -> bool:
    """Whether a weight or a switch says that something is to be trained. Raises LeftOut for a share."""
    asked = number(value)
    if asked not in (0, 1):
        raise LeftOut("a weight other than 0 and 1", {key: value})
    return bool(asked) != (key in NOT_TRAINED)


def is_switch(column: str, cells: Sequence[Any]) -> bool:
    """Whether a column of such a name is one.

    Weights are numbers. A switch says true or false in words, or 0 and 1 and nothing else: a column `loss` or
    `use` can also hold a figure or a text.
    """
    there = [cell for cell in cells if not missing(cell)]
    if column in WEIGHTS:
        return any(number(cell) is not None for cell in there)
    return all(number(cell) in (0, 1) for cell in there) or any(_word(cell) for cell in there)


def is_judgement(cells: Sequence[Any]) -> bool:
    """Whether a column holds true and false and nothing else: a label can also be the number of a class."""
    there = [cell for cell in cells if not missing(cell)]
    return bool(there) and all(_word(cell) in ("true", "false") for cell in there)


def is_bad(column: str, cell: Any) -> bool:
    """Whether a judgement says that people rejected the answer."""
    return _word(cell) == ("true" if column in JUDGED_BAD else "false")


def _word(cell: Any) -> str:
    """A cell that is true or false in words, in small letters; "" for another."""
    text = cell_text(cell).strip().lower() if isinstance(cell, str | bool) else ""
    return text if text in _WORDS else ""
