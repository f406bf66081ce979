"""Which adapters a merge can express, by their config alone; what to do with the others."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from convert.errors import ConvertError
from convert.source import ADAPTER_CONFIG

# Initialisations (PEFT's init_lora_weights) that take their start out of the base's weights, and LoftQ, whose
# adapter makes up for the error of a base quantised its own way. On the plain base each would count twice.
CHANGE_THE_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
UNSUPPORTED = {
    "alora_invocation_tokens": "aLoRA works from a certain token on, which no weights can express",
    "use_qalora": "QALoRA's updates pool the inputs, which a merge doesn't cover",
    "layer_replication": "it repeats layers of the base",
    "target_parameters": "it changes parameters that are no layers (experts)",
    "trainable_token_indices": "it trains single tokens; list the embeddings in modules_to_save instead",
    "use_bdlora": "block-diagonal LoRA is not covered",
    "arrow_config": "Arrow mixes adapters by token, which no weights can express",
    "kasa_config": "KaSA cuts the base's weights down first",
    "monteclora_config": "MonteCLoRA samples its weights",
}


def refuse_kind(folder: Path, config: dict[str, Any]) -> None:
    """Refuse what a merge can't express, by adapter_config.json. Raises ConvertError."""
    kind = config.get("peft_type")
    if kind is None and ("lora_parameters" in config or (folder / "adapters.safetensors").is_file()):
        base, path = shlex.quote(str(config.get("model") or "MODEL")), shlex.quote(str(folder))
        raise ConvertError(
            f"{folder} is an adapter of MLX, which keeps other tensors than PEFT; let MLX merge it, where it "
            f"runs: mlx_lm.fuse --model {base} --adapter-path {path} --save-path fused; then: "
            "python convert/to_gguf.py fused"
        )
    if kind != "LORA":
        raise ConvertError(f"{folder / ADAPTER_CONFIG}: peft_type is {kind!r}; only LORA can be merged")
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(CHANGE_THE_BASE):
        raise ConvertError(
            f"{folder} was started with init_lora_weights={start!r}, which changed the base's weights, so it "
            "doesn't fit the base as published; save it as plain LoRA with PEFT's "
            "path_initial_model_for_weight_conversion, or train again without it"
        )
    for option, reason in UNSUPPORTED.items():
        if config.get(option):
            raise ConvertError(f"{folder} was trained with {option} and can't be merged: {reason}")
    if not isinstance(config.get("lora_alpha"), int | float):
        raise ConvertError(f"{folder / ADAPTER_CONFIG} has no lora_alpha")
