"""A checkpoint as it came, without what could run: some bring Python files, and ask to load them."""

from __future__ import annotations

import shutil
from pathlib import Path

from convert.source import read_json
from convert.tokenizer_files import TokenizerFiles, write_json

CONFIGS = ("config.json", "generation_config.json")


def copy_without_code(checkpoint: Path, out: Path) -> None:
    """Make `out`: the weights as links, tokenizer and configs as copies that ask for no code (`auto_map`).

    llama.cpp's converter loads some tokenizers with trust_remote_code; so there must be nothing to trust.
    Phi-3.5 is one of many that transformers knows itself and that bring code all the same.
    """
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in [*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.safetensors.index.json")]:
        (partial / path.name).symlink_to(path.resolve())
    for name in CONFIGS:
        if (checkpoint / name).is_file():
            content = read_json(checkpoint / name)
            content.pop("auto_map", None)
            write_json(partial / name, content)
    TokenizerFiles(checkpoint, checkpoint).copy(partial)
    partial.rename(out)
