"""Keys of other programs that people write into a recipe, and what a recipe has instead.

From older releases of transformers, TRL and PEFT, and the files of Unsloth, Axolotl, LLaMA-Factory and
torchtune. What the installed classes have is in `train.refused`, or works.
"""

from __future__ import annotations

from train import refused

# What is said, and the keys, apart by spaces, to which it is the answer.
_SAID = {
    refused.BF16: """
        bfloat16 torch_dtype compute_dtype""",
    refused.CHECKPOINTS: """
        save_safetensors saves_per_epoch save_every_n_steps checkpoint_every save_interval""",
    refused.BEST: "save_best",
    refused.VALIDATION: """
        evaluation_strategy evals_per_epoch""",
    refused.FOLDER: """
        output logging_dir overwrite_output_dir project_name""",
    "say model.base_model": "model_name_or_path model_name model_id base pretrained_model checkpoint",
    "say data.path": "dataset datasets dataset_name dataset_path train_file train_data data_files data_path",
    "say data.validation, a share of the rows": "val_set_size val_size eval_dataset validation_split",
    "say data.test, a share of the rows": "test_size test_split",
    "say data.limit": "max_samples num_samples max_train_samples",
    refused.COLUMNS: """
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
    refused.TRAINED: """
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
    refused.MEMORY: """
        use_gradient_checkpointing""",
    refused.TEMPLATE: """
        chat_template template special_tokens tokenizer tokenizer_name""",
    refused.CHOSEN: """
        attn_implementation flash_attention use_flash_attention_2 device_map max_memory""",
    refused.LAUNCH: "num_gpus",
    "say --resume when it is started; leave it out": "resume",
    "say SFTConfig.adam_beta1 and SFTConfig.adam_beta2": "betas",
    "say SFTConfig.report_to: [tensorboard], or [trackio], or [wandb]": """
        wandb_project wandb use_wandb log_with""",
}
_INSTEAD = {key: said for said, keys in _SAID.items() for key in keys.split()}


def instead(key: str) -> str | None:
    """What a recipe has instead of `key`; None if no program that we know has it."""
    plain = key.lower().replace("-", "_")
    return _INSTEAD.get(plain) or refused.reason(plain)
