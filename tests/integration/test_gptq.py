"""GPTQ checkpoints with known weights: read back exactly, and merged like any other base."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from core.checkpoint import SINGLE, Checkpoint
from core.errors import ConvertError
from core.gptq import open_checkpoint
from tests.integration.merge_bases import changed, edit_json, merged, save_adapter, save_base

INPUTS, OUTPUTS = 64, 96


def packed(values: np.ndarray, bits: int) -> torch.Tensor:
    """Pack rows of small numbers into 32-bit words, the lowest bits first: (rows, n) to (rows*bits/32, n)."""
    count = 32 // bits
    words = np.zeros((len(values) // count, values.shape[1]), dtype=np.uint32)
    for position in range(count):
        words |= values[position::count].astype(np.uint32) << np.uint32(bits * position)
    return torch.from_numpy(words.view(np.int32))


def quantised(
    bits: int, group_size: int, desc_act: bool, kind: str, shape: tuple[int, int] = (OUTPUTS, INPUTS)
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The four parts of a random layer, and the weights that they stand for."""
    random = np.random.default_rng(bits)
    outputs, inputs = shape
    groups = 1 if group_size < 0 else inputs // group_size
    values = random.integers(0, 2**bits, (inputs, outputs))
    zeros = random.integers(1, 2**bits, (groups, outputs))
    scales = torch.from_numpy(random.uniform(0.001, 0.1, (groups, outputs)).astype(np.float16))
    g_idx = np.arange(inputs) // (inputs // groups)
    if desc_act:
        random.shuffle(g_idx)
    exact = scales.double()[g_idx] * torch.from_numpy(values - zeros[g_idx])
    parts = {
        "qweight": packed(values, bits),
        "qzeros": packed((zeros - (kind == "gptq")).T, bits).T.contiguous(),
        "scales": scales,
        "g_idx": torch.from_numpy(g_idx.astype(np.int32)),
    }
    return parts, exact.T.half()


def write(folder: Path, parts: dict[str, torch.Tensor], **about: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(
        {f"layer.{name}": tensor for name, tensor in parts.items()} | {"norm": torch.ones(3)}, folder / SINGLE
    )
    config = {"quantization_config": {"quant_method": "gptq"} | about}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize("group_size", [16, -1])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_come_back_exactly(
    bits: int, group_size: int, desc_act: bool, kind: str, tmp_path: Path
) -> None:
    parts, expected = quantised(bits, group_size, desc_act, kind)
    about = {"bits": bits, "group_size": group_size, "desc_act": desc_act, "checkpoint_format": kind}
    checkpoint = open_checkpoint(write(tmp_path, parts, **about))
    assert sorted(checkpoint.names) == ["layer.weight", "norm"]
    assert checkpoint.shape("layer.weight") == (OUTPUTS, INPUTS)
    assert checkpoint.dtype("layer.weight") == torch.float16
    assert checkpoint.size_bytes == OUTPUTS * INPUTS * 2 + 12
    assert torch.equal(checkpoint.read("layer.weight"), expected)
    assert torch.equal(checkpoint.read("norm"), torch.ones(3))
    assert "quantization_config" not in checkpoint.config


def test_an_old_file_has_no_format_and_no_g_idx(tmp_path: Path) -> None:
    parts, expected = quantised(4, 16, False, "gptq")
    del parts["g_idx"]
    checkpoint = open_checkpoint(write(tmp_path, parts, bits=4, group_size=16))
    assert torch.equal(checkpoint.read("layer.weight"), expected)


def test_a_zero_point_of_zero_borrows_from_its_neighbour(tmp_path: Path) -> None:
    """As GPTQModel writes it: one less from the word as a whole."""
    parts, _ = quantised(4, -1, False, "gptq_v2")
    zeros = torch.tensor([[0x80, *[0x88888888 - 2**32] * 11]], dtype=torch.int32)
    parts["qzeros"] = zeros - 0x11111111
    read = open_checkpoint(write(tmp_path / "v1", parts, bits=4)).read("layer.weight")
    parts["qzeros"] = zeros
    v2 = write(tmp_path / "v2", parts, bits=4, checkpoint_format="gptq_v2")
    assert torch.equal(read, open_checkpoint(v2).read("layer.weight"))


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("scales", None, "layer.scales is missing"),
        ("scales", torch.ones(5, OUTPUTS).half(), "disagree"),
        ("g_idx", torch.full((INPUTS,), 9, dtype=torch.int32), "groups that have no scales"),
        ("g_idx", torch.full((INPUTS,), -1, dtype=torch.int32), "groups that have no scales"),
        ("qweight", torch.zeros(6, OUTPUTS, dtype=torch.int32), "3.0 bits; only 2, 4 and 8"),
    ],
)
def test_a_broken_layer_is_refused(
    part: str, value: torch.Tensor | None, reason: str, tmp_path: Path
) -> None:
    parts, _ = quantised(4, 16, False, "gptq")
    if value is None:
        del parts[part]
    else:
        parts[part] = value
    with pytest.raises(ConvertError, match=reason):
        open_checkpoint(write(tmp_path, parts, bits=4, group_size=16)).read("layer.weight")


def test_another_layout_is_refused(tmp_path: Path) -> None:
    parts, _ = quantised(4, 16, False, "gptq")
    with pytest.raises(ConvertError, match="GPTQ format 'marlin'"):
        open_checkpoint(write(tmp_path, parts, bits=4, checkpoint_format="marlin"))


def test_an_adapter_is_merged_into_what_the_layers_stand_for(tmp_path: Path) -> None:
    plain = save_base("llama", tmp_path / "plain", torch.float16)
    adapter = save_adapter(plain, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    base = save_base("llama", tmp_path / "base", torch.float16)
    with changed(base / SINGLE) as tensors, changed(plain / SINGLE) as dense:
        for name in [name for name in dense if "_proj.weight" in name]:
            outputs, inputs = tensors.pop(name).shape
            parts, weight = quantised(4, 16, True, "gptq", (outputs, inputs))
            tensors |= {name.replace("weight", part): tensor for part, tensor in parts.items()}
            dense[name] = weight.contiguous()
    edit_json(base / "config.json", quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 16})
    found = Checkpoint(merged(base, adapter, tmp_path / "out"))
    expected = Checkpoint(merged(plain, adapter, tmp_path / "expected"))
    assert set(found.names) == set(expected.names)
    assert found.config == expected.config
    for name in expected.names:
        assert torch.equal(found.read(name), expected.read(name)), name
