"""A folder with the files of several saves: those that transformers reads are taken, and only those."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.merge import surplus_head
from convert.source import find_source
from convert.without_code import copy_without_code
from core.checkpoint import INDEX, SINGLE, Checkpoint
from core.errors import ConvertError
from tests.integration.merge_bases import changed, edit_json, load, save_adapter, save_base

NORM = "model.norm.weight"


def sharded(folder: Path) -> Path:
    return save_base("llama", folder, torch.float32, shard="20KB")


def older_save(folder: Path, name: str) -> None:
    """The same tensors with other values, under another name."""
    tensors = {key: tensor + 1 for key, tensor in load_file(folder / SINGLE).items()}
    save_file(tensors, folder / name, {"format": "pt"})


def single_beside_shards(folder: Path) -> None:
    sharded(folder)
    save_base("llama", folder / "other", torch.float32)
    older_save(folder / "other", SINGLE)
    (folder / "other" / SINGLE).rename(folder / SINGLE)


def foreign_shards(folder: Path) -> None:
    sharded(folder)
    some = next(folder.glob("model-0*"))
    (folder / "model-00001-of-00009.safetensors").write_bytes(some.read_bytes())
    (folder / "model-00002-of-00009.safetensors").write_bytes(b"cut short")


def other_programs_weights(folder: Path) -> None:
    save_base("llama", folder, torch.float32)
    older_save(folder, "consolidated.safetensors")
    older_save(folder, "model.fp16.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")


def a_name_of_its_own(folder: Path) -> None:
    save_base("llama", folder, torch.float32)
    older_save(folder, "mine.safetensors")
    edit_json(folder / "config.json", transformers_weights="mine.safetensors")


def shards_with_names_of_their_own(folder: Path) -> None:
    sharded(folder)
    index = json.loads((folder / INDEX).read_text())
    for path in folder.glob("model-0*"):
        path.rename(path.with_name(path.name.replace("model", "weights")))
    index["weight_map"] = {k: v.replace("model", "weights") for k, v in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))


def an_index_that_forgets_a_tensor(folder: Path) -> None:
    """transformers reads all of a shard that the index names."""
    sharded(folder)
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][NORM]
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "arrange",
    [
        single_beside_shards,
        foreign_shards,
        other_programs_weights,
        a_name_of_its_own,
        shards_with_names_of_their_own,
        an_index_that_forgets_a_tensor,
    ],
    ids=lambda arrange: arrange.__name__,
)
def test_the_files_that_transformers_reads(arrange: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    arrange(folder)
    copy_without_code(folder, tmp_path / "copy")
    expected, made = load(folder).state_dict(), Checkpoint(tmp_path / "copy")
    for name in made.names:
        assert torch.equal(made.read(name), expected[name]), name
    assert set(made.names) == set(expected)
    linked = {path.resolve() for path in (tmp_path / "copy").glob("*.safetensors")}
    assert linked == set(Checkpoint(folder).paths)
    assert all(path.name.startswith("model") for path in (tmp_path / "copy").glob("*.safetensors"))


def test_shards_without_their_index(tmp_path: Path) -> None:
    (sharded(tmp_path / "base") / INDEX).unlink()
    with pytest.raises(ConvertError, match=r"holds model-00001-of-\d+.safetensors, and neither"):
        Checkpoint(tmp_path / "base")


@pytest.mark.parametrize("named", ["../model.safetensors", "/etc/passwd", 7, "gone.safetensors"])
def test_weights_that_config_puts_elsewhere(named: object, tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base")
    edit_json(base / "config.json", transformers_weights=named)
    with pytest.raises(ConvertError, match=r"is no file beside it|lacks gone"):
        Checkpoint(base)


def test_a_stored_head_that_the_converter_has_no_name_for(tmp_path: Path) -> None:
    base = save_base("cohere", tmp_path / "base")
    with changed(base / SINGLE) as tensors:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    copy_without_code(base, tmp_path / "copy", surplus_head(Checkpoint(base)))
    made = Checkpoint(tmp_path / "copy")
    assert set(Checkpoint(base).names) - set(made.names) == {"lm_head.weight"}
    assert torch.equal(made.read(NORM), Checkpoint(base).read(NORM))


def test_an_adapter_and_a_whole_model_in_one_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_base("llama", tmp_path / "base")
    save_adapter(base, tmp_path / "base", target_modules=["q_proj"])
    assert find_source(str(base), tmp_path / "outputs").adapter == base
    assert "the adapter is taken" in capsys.readouterr().out
    (base / "adapter_model.safetensors").unlink()  # only the config is left of an earlier save
    assert find_source(str(base), tmp_path / "outputs").checkpoint == base


def test_a_folder_of_checkpoints_names_one_of_them(tmp_path: Path) -> None:
    save_base("llama", tmp_path / "my run" / "checkpoint-5")
    with pytest.raises(ConvertError, match=r"python convert/to_gguf.py '.*my run/checkpoint-5'"):
        find_source(str(tmp_path / "my run"), tmp_path / "outputs")
