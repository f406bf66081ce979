"""Keys that a recipe can't set, each with its reason or with what a recipe has instead.

Upstream's own, all others of which work: `tests/unit/test_train_upstream.py` holds the table against the
classes that are installed. And those of other programs that people write into a recipe: older releases of
transformers, TRL and PEFT, and the files of Unsloth, Axolotl, LLaMA-Factory and torchtune.
"""

from __future__ import annotations

BF16 = "training is in bf16 unless SFTConfig.fp16: true is said; leave it out"
CHECKPOINTS = (
    "a checkpoint is kept at each evaluation (SFTConfig.eval_steps) and every save_minutes, a key beside "
    "SFTConfig; leave it out"
)
BEST = "the adapter with the lowest validation loss is always the one that is kept; leave it out"
VALIDATION = "validation is every SFTConfig.eval_steps, or once an epoch; leave it out"
_VALIDATED = "what validation gives is the mean loss of all tokens; leave it out"
FOLDER = "a run's folder is outputs/NAME: say name: here, or --name and --root when it is started"
MEMORY = "say memory: lean, beside SFTConfig, to compute again what would take memory"
TEMPLATE = "the base's own chat template and tokens are used, as in the chat; leave it out"
CHOSEN = "that is chosen for the model and the machine; leave it out"
LAUNCH = "for several GPUs, start it with accelerate launch; leave it out"
SHARDED = "say fully_shard: true, beside SFTConfig, and start it with accelerate launch"
_LOADED = "rows are tokens in memory before the first step, so nothing is loaded beside it; leave it out"
_LOGGED = "a line is logged every SFTConfig.logging_steps; leave it out"
_SAMPLED = (
    "rows are shuffled by SFTConfig.seed; say SFTConfig.group_by_length: true to put like lengths together"
)
_PACKED = "say SFTConfig.packing; rows are packed whole, and no token is padding"
TRAINED = "say SFTConfig.assistant_only_loss: true trains the answers only, false the whole chat"
COLUMNS = "formats are known by their columns: rename them in the data, or say data.task"
_LOSS = "the loss is the negative log likelihood, from the trained positions only; leave it out"
_UPLOAD = "nothing is uploaded by training; leave it out"
_CODE = "code that comes with a model is never run; leave it out"
_BY_BASE = "it changes the base's own weights, and the merge is on the base as published; leave it out"
_BASE_STAYS = "the base stays as it was loaded, since other runs of a sweep share it; leave it out"
_NO_BIAS = "neither the merge nor a LoRA in a GGUF has a place for an adapter's biases; leave it out"
_UNMERGED = "a merge into the base can't express it; leave it out"
_SELF = "it is written by the program itself; leave it out"
_OTHER_LAYERS = "it is for other layers than a language model's linear ones; leave it out"

# Of each section: what is said, and the keys, apart by spaces, to which it is the answer.
_SAID: dict[str, list[tuple[str, str]]] = {
    "SFTConfig": [
        (BF16, "bf16 bf16_full_eval fp16_full_eval tf32"),
        (
            CHECKPOINTS,
            """save_only_model save_strategy save_steps save_on_each_node save_total_limit
            enable_jit_checkpoint""",
        ),
        (BEST, "load_best_model_at_end metric_for_best_model greater_is_better"),
        (VALIDATION, "eval_strategy eval_delay eval_on_start do_train do_eval do_predict"),
        (
            _VALIDATED,
            """prediction_loss_only eval_do_concat_batches eval_use_gather_object eval_accumulation_steps
            include_for_metrics batch_eval_metrics label_names""",
        ),
        (FOLDER, "output_dir run_name"),
        (
            MEMORY,
            """activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing_kwargs
            activation_offloading auto_find_batch_size torch_empty_cache_steps""",
        ),
        (TEMPLATE, "chat_template_path eos_token pad_token"),
        (
            CHOSEN,
            """use_cpu use_cache use_liger_kernel liger_kernel_config torch_compile torch_compile_backend
            torch_compile_mode accelerator_config debug full_determinism""",
        ),
        (
            LAUNCH,
            """deepspeed parallelism_config local_rank ddp_backend ddp_timeout
            ddp_find_unused_parameters ddp_broadcast_buffers ddp_static_graph
            average_tokens_across_devices""",
        ),
        (SHARDED, "fsdp fsdp_config"),
        (
            _LOADED,
            """dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_in_order
            dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context
            dataset_num_proc dataset_kwargs remove_unused_columns""",
        ),
        (
            _LOGGED,
            """logging_strategy log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen
            log_level log_level_replica disable_tqdm skip_memory_metrics""",
        ),
        (_SAMPLED, "train_sampling_strategy length_column_name data_seed shuffle_dataset"),
        (_PACKED, "packing_strategy padding_free eval_packing pad_to_multiple_of truncation_mode"),
        (TRAINED, "completion_only_loss"),
        (COLUMNS, "dataset_text_field"),
        (_LOSS, "loss_type label_smoothing_factor router_aux_loss_coef"),
        (
            "its noise is scaled by a row's length, and a packed row holds many texts; leave it out",
            "neftune_noise_alpha",
        ),
        ("GaLore and APOLLO, which it is for, are for full training; leave it out", "optim_target_modules"),
        (
            _UPLOAD,
            """push_to_hub hub_token hub_model_id hub_strategy hub_always_push
            hub_revision trackio_static_space_id""",
        ),
        (
            "say --resume when it is started, which goes on with everything as it was; leave it out",
            "resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint",
        ),
        (_CODE, "trust_remote_code"),
        ("say model.base_model, model.revision and model.dtype", "model_init_kwargs"),
    ],
    "LoraConfig": [
        (_SELF, "task_type peft_type auto_mapping peft_version inference_mode runtime_config"),
        ("say model.base_model and model.revision", "base_model_name_or_path revision"),
        (_BASE_STAYS, "bias"),
        (_NO_BIAS, "lora_bias"),
        (
            "it is for an init of LoRA that reads the data first, which isn't done here; leave it out",
            "eva_config",
        ),
        (_BY_BASE, "loftq_config corda_config lora_ga_config kasa_config layer_replication"),
        (
            _UNMERGED,
            """alora_invocation_tokens use_qalora qalora_group_size monteclora_config target_parameters
            use_bdlora arrow_config""",
        ),
        ("say LoraConfig.modules_to_save: [embed_tokens], which trains all of it", "trainable_token_indices"),
        (_OTHER_LAYERS, "fan_in_fan_out megatron_config megatron_core"),
        ("the backward pass of its adapters is another than theirs here; leave it out", "velora_config"),
        (
            "modules_to_save can't hold an embedding that is tied to the head; leave it out",
            "ensure_weight_tying",
        ),
    ],
    "BitsAndBytesConfig": [
        (BF16, "bnb_4bit_compute_dtype"),
        ("the base is on one device; leave it out", "llm_int8_enable_fp32_cpu_offload"),
        (
            "it keeps 16-bit weights: leave BitsAndBytesConfig out to train on such",
            "llm_int8_has_fp16_weight",
        ),
    ],
}
# Of DPOConfig, what SFTConfig hasn't or has for another reason; the rest is refused as there.
_PAIRS: list[tuple[str, str]] = [
    (
        "a pair is trained whole, padded to the longest of its batch, or left out and counted; leave it out",
        "padding_free pad_to_multiple_of truncation_mode",
    ),
    (
        "the reference stays what the model was before the first step; leave it out",
        "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps",
    ),
    ("its noise would be in the reference, too; leave it out", "neftune_noise_alpha"),
    ("say DPOConfig.label_smoothing, with loss_type robust", "label_smoothing_factor"),
    ("it is for mixtures of experts; leave it out", "router_aux_loss_coef"),
]
_SFT_ALONE = """chat_template_path eos_token dataset_kwargs shuffle_dataset packing_strategy eval_packing
    completion_only_loss dataset_text_field loss_type"""

REFUSED: dict[str, dict[str, str]] = {
    section: {key: said for said, keys in answers for key in keys.split()}
    for section, answers in _SAID.items()
}
REFUSED["DPOConfig"] = {
    key: said.replace("SFTConfig", "DPOConfig")
    for key, said in REFUSED["SFTConfig"].items()
    if key not in _SFT_ALONE.split()
} | {key: said for said, keys in _PAIRS for key in keys.split()}

_FULL = (
    "it is for training all of a model, and an adapter is small already; leave it out for adamw_torch_fused"
)
_OWN_MODE = "it needs its weights switched for each evaluation and checkpoint, which isn't done here"
_VALIDATED_BY = (
    "it waits for upstream's own evaluation, which isn't what validates here; say cosine or linear"
)
# What the values of a key begin with, and why they are refused.
VALUES: dict[str, dict[str, str]] = {
    "optim": {
        **dict.fromkeys(("galore", "apollo", "lomo", "adalomo"), _FULL),
        "schedule_free": _OWN_MODE,
        "adamw_torch_xla": "it is for TPUs",
        "adamw_torch_npu": "it is for Ascend's NPUs",
    },
    "lr_scheduler_type": {"reduce_lr_on_plateau": _VALIDATED_BY, "greedy": _VALIDATED_BY},
    "init_lora_weights": dict.fromkeys(
        ("pissa", "loftq", "olora", "corda", "mica", "lora_ga"),
        "changes the base's weights too, or starts from them: it survives neither NF4 nor the merge on the "
        "original base; leave it out, or use use_rslora or use_dora",
    )
    | {"eva": "reads the data first, which isn't done here; leave it out"},
}


def why_not(key: str, value: object) -> str | None:
    """Why a value of a key is refused; None if it isn't."""
    starts = VALUES.get(key, {})
    return next(
        (why for start, why in starts.items() if isinstance(value, str) and value.startswith(start)), None
    )


def reason(key: str) -> str | None:
    """Why a keyword of any of upstream's classes is refused; None if none refuses it."""
    return next((keys[key] for keys in REFUSED.values() if key in keys), None)


# Of other programs' keys: as above.
_FOREIGN = {
    BF16: """
        bfloat16 torch_dtype compute_dtype""",
    CHECKPOINTS: """
        save_safetensors saves_per_epoch save_every_n_steps checkpoint_every save_interval""",
    BEST: "save_best",
    VALIDATION: """
        evaluation_strategy evals_per_epoch""",
    FOLDER: """
        output logging_dir overwrite_output_dir project_name""",
    "say model.base_model": "model_name_or_path model_name model_id base pretrained_model checkpoint",
    "say data.path": "dataset datasets dataset_name dataset_path train_file train_data data_files data_path",
    "say data.validation, a share of the rows": "val_set_size val_size eval_dataset validation_split",
    "say data.test, a share of the rows": "test_size test_split",
    "say data.limit": "max_samples num_samples max_train_samples",
    COLUMNS: """
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
    "say DPOConfig.beta": "rl_beta dpo_beta pref_beta",
    "say DPOConfig.loss_type": "dpo_loss pref_loss dpo_loss_type",
    "say DPOConfig.loss_type: [sigmoid, sft], with loss_weights": "rpo_alpha pref_ftx dpo_ftx dpo_nll_loss",
    "say DPOConfig.label_smoothing, with loss_type robust": "dpo_label_smoothing",
    "say SFTConfig.max_length, of prompt and answer together": """
        max_prompt_length max_completion_length max_target_length""",
    "say DPOConfig in place of SFTConfig, which trains on preferences": "rl stage preference dpo",
    "TRL has dropped it; the reference is the base, or the adapter of model.adapter": """
        reference_free force_use_ref_model ref_model ref_adapter_name model_adapter_name""",
    "say SFTConfig.lr_scheduler_type": "scheduler lr_scheduler lr_schedule",
    "say SFTConfig.warmup_steps or SFTConfig.warmup_ratio": "warmup num_warmup_steps",
    "say SFTConfig.optim": "optimizer optimizer_type",
    "say SFTConfig.max_grad_norm": "clip_grad_norm gradient_clip gradient_clipping",
    "say SFTConfig.seed": "random_state random_seed shuffle",
    "say SFTConfig.early_stopping_patience, a number of evaluations": "early_stopping early_stopping_steps",
    "say SFTConfig.packing": "sample_packing pad_to_sequence_len neat_packing",
    TRAINED: """
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
    MEMORY: """
        use_gradient_checkpointing""",
    TEMPLATE: """
        chat_template template special_tokens tokenizer tokenizer_name""",
    CHOSEN: """
        attn_implementation flash_attention use_flash_attention_2 device_map max_memory""",
    LAUNCH: "num_gpus",
    "say --resume when it is started; leave it out": "resume",
    "say SFTConfig.adam_beta1 and SFTConfig.adam_beta2": "betas",
    "say SFTConfig.report_to: [tensorboard], or [trackio], or [wandb]": """
        wandb_project wandb use_wandb log_with""",
}
_INSTEAD = {key: said for said, keys in _FOREIGN.items() for key in keys.split()}


def instead(key: str) -> str | None:
    """What a recipe has instead of `key`; None if no program that we know has it."""
    plain = key.lower().replace("-", "_")
    return _INSTEAD.get(plain) or reason(plain)
