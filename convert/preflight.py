"""What a conversion needs of the disk and the memory, said and checked before anything starts."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from convert.adapter import Adapter
from convert.merge import MergePlan, rows_of
from convert.sentencepiece_file import is_byte_level
from convert.source import folder_name
from convert.tokenizer_files import CONFIG, TOKENIZER, TokenizerFiles
from core.checkpoint import Checkpoint
from core.errors import ConvertError
from core.files import read_json
from core.gguf_vocab import form_of
from core.gptq import open_checkpoint
from core.machine import available_bytes, human_size
from core.rows import Row

# Bits a weight of a file of each kind: llama.cpp's figures for Llama-3.1-8B (tools/quantize/README.md), and a
# little above them.
BITS = {"F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.6, "Q5_K_M": 5.9, "Q4_K_M": 5.1}
OTHER_BITS = 6.0
# Quantising holds one tensor as float beside its results; the largest is the embedding or the head.
QUANTISE_COPIES = 3


def disk_needed(
    checkpoint: Checkpoint,
    merges: bool,
    types: list[str],
    keep: bool,
    moved: bool = False,
    twice: bool = False,
) -> int:
    """Bytes at the worst moment beside the base: the merged checkpoint and the 16-bit GGUF together, or the
    GGUFs, when the merged checkpoint is gone. `moved`: each goes to another disk before the next is made.
    `twice`: the 16-bit GGUF is there twice for a moment."""
    sixteen = 2 * checkpoint.n_params
    quants = max(sizes(checkpoint, types), default=0) if moved else sum(sizes(checkpoint, types))
    merged = checkpoint.size_bytes if merges else 0
    return max(merged + sixteen * (1 + twice), sixteen + quants + (merged if keep else 0))


def sizes(checkpoint: Checkpoint, types: list[str]) -> list[int]:
    """Bytes that a file of each type will have, about."""
    return [round(BITS.get(kind, OTHER_BITS) / 8 * checkpoint.n_params) for kind in types]


def memory_needed(checkpoint: Checkpoint) -> int:
    """Bytes that merging and quantising hold at once; checking the checkpoint's answers needs it whole."""
    elements = max(_elements(checkpoint.shape(name)) for name in checkpoint.names)
    return max(QUANTISE_COPIES * 4 * elements, 2 * checkpoint.n_params)


def is_written_twice(base: Path, adapter: Path | None = None) -> bool:
    """Whether `convert.ends` will write the 16-bit GGUF once more to note the form of its tokenizer's text.

    What else it may have to put right is known only from that file; then it looks at the disk itself.
    """
    own = adapter and (adapter / CONFIG).is_file()
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(adapter if own else base, **options)
    except (OSError, ValueError, KeyError, ImportError):  # said when it is needed
        return False
    return bool(form_of(tokenizer))


def check(
    checkpoint: Checkpoint,
    merges: bool,
    types: list[str],
    keep: bool,
    folder: Path,
    models: Path,
    twice: bool = False,
) -> str:
    """Return the line that says what is needed in `folder`, and in `models` where that is another disk.

    Both are there. Raises ConvertError if a disk or the memory is too small.
    """
    moved = models.stat().st_dev != folder.stat().st_dev
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    # An earlier try may have made part of it.
    disks = {folder: max(0, disk_needed(checkpoint, merges, types, keep, moved, twice) - there)}
    if moved:  # a file of the same name stays until the new one is whole
        vocabulary = checkpoint.folder / TOKENIZER  # what stands in the header of each, of small models a lot
        header = vocabulary.stat().st_size if vocabulary.is_file() else 0
        disks[models] = sum(sizes(checkpoint, types)) + len(types) * header
    free = {place: shutil.disk_usage(place).free for place in disks}
    memory, free_memory = memory_needed(checkpoint), available_bytes()
    said = [
        f"{human_size(needed)} of disk{f' in {place}' if moved else ''} ({human_size(free[place])} free)"
        for place, needed in disks.items()
    ]
    needs = (
        f"Needs up to {', '.join(said)} and {human_size(memory)} of memory ({human_size(free_memory)} free)."
    )
    for place, needed in disks.items():
        if needed > free[place]:
            which = f"the disk of {place.resolve()}" if moved else "the disk"
            raise ConvertError(f"{which} is too small. {needs} Free some, or ask for fewer types at once")
    if memory > free_memory:
        raise ConvertError(f"the memory is too small. {needs} Close other programs, or use a larger machine")
    return needs


def check_tokenizer(base: Path, adapter: Path | None, origin: str, rows: Iterable[Row]) -> list[str]:
    """Find out now what the converter would refuse after the merge; return lines on what will be mended.

    `base`: also a whole checkpoint, without an adapter. `rows`: what training saw. Raises ConvertError.
    """
    checkpoint = open_checkpoint(base)
    config, embedded = checkpoint.config, rows_of(checkpoint)
    notes: list[str] = []
    if adapter:
        update = Adapter(adapter)
        plan = MergePlan(checkpoint, update)
        notes = update.notes()
        config, embedded = plan.config, plan.rows
    files = TokenizerFiles(base, adapter or base)
    lines = notes + files.check(config, embedded, origin, {i for row in rows for i in row.ids})
    return lines if files.template() else [*lines, "No chat template is left; the chat will use a plain one."]


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


SMALL_PARAMS = 1e9  # below, bf16's slowness on a CPU (six times, in tests) weighs more than its range
F16_MAX = torch.finfo(torch.float16).max


def outtype(checkpoint: Checkpoint) -> str:
    """F16 for an f16 checkpoint, which loses nothing, and for a small one without values beyond its range."""
    if all(checkpoint.dtype(name) == torch.float16 for name in checkpoint.names):
        return "F16"
    if checkpoint.n_params >= SMALL_PARAMS:
        return "BF16"
    overflows = any(checkpoint.read(name).abs().max() > F16_MAX for name in checkpoint.names)
    return "BF16" if overflows else "F16"


def model_name(base: Path, run: str) -> str:
    """general.name: the base's name and the run's. llama.cpp reads it (llama_vocab::impl::load).

    A Phi-3's always contains `Phi-3`, without which the newline after its special tokens isn't stripped. A
    vocabulary of bytes never does, a Phi-4's for one: under that name llama.cpp looks for `</s>` in it, and
    doesn't load the file.
    """
    config = read_json(base / "config.json")
    named = config.get("_name_or_path")
    origin = Path(str(named)).name if named else folder_name(base).rpartition("/")[2]
    name = origin if origin == run else f"{origin} {run}"
    tokenizer = base / "tokenizer.json"
    if tokenizer.is_file() and is_byte_level(read_json(tokenizer)):
        return re.sub("(phi)-?(3)", r"\1_\2", name, flags=re.IGNORECASE)
    if config.get("model_type") == "phi3" and not re.search("phi-?3", name, re.IGNORECASE):
        return f"Phi-3 {name}"
    return name
