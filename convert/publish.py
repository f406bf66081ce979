"""What leaves the conversion: the file in `models/`, its quality, its entry, a Modelfile and a model card."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

from chat.gguf_file import GgufFile, read_gguf
from chat.machine import human_size
from chat.registry import Entry, Source, add
from convert.names import ollama_name
from convert.verify.report import Report
from core.files import whole

CONTEXT = 4096  # tokens that the chat gives a new model: a Phi's own 131,072 would want 48 GiB of memory


def publish(gguf: Path, name: str, report: Report, models: Path, about: dict[str, Any], move: bool) -> Path:
    """Put a verified file under its final name with all that goes with it, and return that name.

    A file that failed a check becomes `.unverified`. `about` has `base`, `run` and `tested_on`.
    """
    models.mkdir(exist_ok=True)
    final = models / f"{name}.gguf"
    quality = json.dumps({**about, **report.quality_json()}, indent=1, ensure_ascii=False) + "\n"
    if report.verdict == "fail":  # an older file of this name, which passed, stays as it is
        _write(models / f"{name}.unverified.json", quality)
        return place(gguf, final.with_suffix(".unverified"), move)
    _write(models / f"{name}.quality.json", quality)
    for end in (".unverified", ".unverified.json"):
        (models / f"{name}{end}").unlink(missing_ok=True)
    place(gguf, final, move)
    file = read_gguf(final)
    _write(models / f"{name}.Modelfile", modelfile(file))
    _write(models / f"{name}.md", model_card(name, file, report, about))
    return final


def register(
    final: Path, name: str, quant: str, quality: dict[str, Any], registry: Path, about: dict[str, Any]
) -> None:
    """Have the file in `models.json`, with what was measured, so that the chat's menu shows it."""
    file = read_gguf(final)
    path = os.path.relpath(final, registry.parent) if final.is_relative_to(registry.parent) else str(final)
    entry = Entry(
        sources=[Source(path=Path(path).as_posix())],
        n_ctx=min(file.n_ctx_train or CONTEXT, CONTEXT),
        base=about["base"],
        run=about["run"],
        quant=quant,
        quality=quality,
        size_bytes=file.file_size,
        kv_bytes_per_token=file.kv_bytes_per_token,
    )
    add(registry, name, entry)


def modelfile(file: GgufFile) -> str:
    """The file for `ollama create`. Ollama finds its own template by the GGUF's; the stops are ours."""
    ends = sorted(text for text, i in file.vocab.control.items() if i in file.vocab.eog_ids)
    lines = [
        f"FROM {_quoted(f'./{file.path.name}')}",
        f"PARAMETER num_ctx {min(file.n_ctx_train or CONTEXT, CONTEXT)}",
    ]
    lines += [f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}" for text in ends]
    return "\n".join(lines) + "\n"


def model_card(name: str, file: GgufFile, report: Report, about: dict[str, Any]) -> str:
    """A README for the file, with the measured table."""
    base = about["base"]
    based = f"base_model: {json.dumps(base)}\n" if "/" in base else ""  # the hub knows only its own names
    return (
        f"---\n{based}library_name: gguf\npipeline_tag: text-generation\n---\n\n"
        f"# {name}\n\n"
        f"`{base}`, fine-tuned in the run `{about['run']}`: a GGUF of type {file.file_type} "
        f"({human_size(file.file_size)}), made by tune2chat.\n\n"
        f"    python app.py --model {shlex.quote(f'models/{file.path.name}')}\n"
        f"    ollama create {ollama_name(name)} -f {shlex.quote(f'models/{name}.Modelfile')}\n\n"
        "## What was measured\n\n"
        f"On {about['tested_on']}, token for token as the chat sends them.\n\n"
        f"```\n{report.table()}\n```\n"
    )


def place(source: Path, target: Path, move: bool) -> Path:
    """Rename; or copy, where the file is still needed or the target is on another disk."""
    if move:
        try:
            return source.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
    with whole(target) as partial:
        _copy(source, partial)
    if move:
        source.unlink()
    return target


def _quoted(path: str) -> str:
    """A path as a Modelfile takes it: in quotes where it isn't one word."""
    return path if re.fullmatch(r"[\w./-]+", path, re.ASCII) else f'"{path}"'


def _copy(source: Path, target: Path) -> None:
    """A second name for the same file, where the disk allows it."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _write(path: Path, text: str) -> None:
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
