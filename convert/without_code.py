"""A checkpoint as it came, without what could run: some bring Python files, and ask to load them."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from convert.merge import rows_of
from convert.tokenizer_files import TokenizerFiles, to_convert
from core.checkpoint import INDEX, SINGLE, Checkpoint, CheckpointWriter, TextCheckpoint
from core.files import read_json, whole_folder, write_json
from core.gptq import GptqCheckpoint, open_checkpoint

CONFIGS = ("config.json", "generation_config.json")


def copy_without_code(checkpoint: Path, out: Path, leave_out: Collection[str] = ()) -> None:
    """Make `out`: the weights as links, tokenizer and configs as copies that ask for no code (`auto_map`).

    Only the files that transformers would read are linked, under the names that llama.cpp's converter looks
    for. Tensors to `leave_out` can't be left out of a link, nor GPTQ's be de-quantised in one: then the
    weights are copied; so is the text model of a checkpoint with more parts, alone.
    llama.cpp's converter loads some tokenizers with trust_remote_code; so there must be nothing to trust.
    Phi-3.5 is one of many that transformers knows itself and that bring code all the same.
    """
    read, files = open_checkpoint(checkpoint), TokenizerFiles(checkpoint, checkpoint)
    files.check(read.config, rows_of(read), checkpoint.name)
    shutil.rmtree(out, ignore_errors=True)
    if leave_out or isinstance(read, GptqCheckpoint | TextCheckpoint):
        with CheckpointWriter(out) as writer:
            for name in read.names:
                if name not in leave_out:
                    writer.add(name, read.read(name))
            _copy_small(read, files, writer.partial)
        return
    with whole_folder(out) as partial:
        _link(read, partial)
        _copy_small(read, files, partial)


def _link(read: Checkpoint, target: Path) -> None:
    count = len(read.paths)
    names = {
        path: SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        for number, path in enumerate(read.paths, 1)
    }
    for path, name in names.items():
        (target / name).symlink_to(path.resolve())
    if count > 1:
        weight_map = {name: names[path] for name, path in read.weight_map.items()}
        write_json(target / INDEX, {"metadata": {"total_size": read.size_bytes}, "weight_map": weight_map})


def _copy_small(read: Checkpoint, files: TokenizerFiles, target: Path) -> None:
    for name in CONFIGS:
        if (read.folder / name).is_file():
            content = read.config if name == "config.json" else read_json(read.folder / name)
            for key in ("auto_map", "transformers_weights", "quantization_config"):
                content.pop(key, None)
            write_json(target / name, to_convert(content, rows_of(read)))
    files.copy(target, read.config)
