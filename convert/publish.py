"""What leaves the conversion: the file in `models/`, its quality, its entry, a Modelfile and a model card."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from convert.source import ollama_name
from convert.verify.report import Report
from core.command import ROOT
from core.errors import ConvertError
from core.files import whole
from core.gguf_model import GgufFile, read_gguf
from core.lora import Adapter
from core.machine import human_size
from core.registry import MADE, Entry, Source, add, load_registry

CONTEXT = 4096  # tokens that the chat gives a new model: a Phi's own 131,072 would want 48 GiB of memory

WORD = r"[\w./-]+"


def models_folder(root: Path) -> Path:
    """Return `root`/models, made if it must be, in which files can be written. Raises ConvertError."""
    models = root / "models"
    try:
        models.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=models).close()
    except FileExistsError:
        what = f"a link to {models.readlink()}, which isn't there" if models.is_symlink() else "no folder"
        raise ConvertError(f"{models} is {what}; the GGUF files go in there") from None
    except OSError as error:
        raise ConvertError(f"can't write in {models.resolve()}: {error.strerror}") from None
    return models


def publish(gguf: Path, name: str, report: Report, models: Path, about: dict[str, Any], move: bool) -> Path:
    """Put a verified file under its final name with all that goes with it, and return that name.

    The JSON that says that the file is good gets its name last, and what can't be written whole leaves
    nothing. A file that failed a check becomes `.unverified`. `about` has `base`, `run` and `tested_on`.
    Raises ConvertError for a disk that is full.
    """
    final = models / f"{name}.gguf"
    quality = json.dumps({**about, **report.quality_json()}, indent=1, ensure_ascii=False) + "\n"
    if report.verdict == "fail":  # an older file of this name, which passed, stays as it is
        texts = {f"{name}.unverified.json": quality}
        return place(gguf, final.with_suffix(".unverified"), move, texts)
    file = read_gguf(gguf)
    card = model_card(name, replace(file, path=final), report, about)
    texts = {f"{name}.quality.json": quality, f"{name}.md": card, f"{name}.Modelfile": modelfile(name, file)}
    place(gguf, final, move, texts)
    for end in (".unverified", ".unverified.json"):
        (models / f"{name}{end}").unlink(missing_ok=True)
    return final


def register(
    final: Path, name: str, quant: str, quality: dict[str, Any], registry: Path, about: dict[str, Any]
) -> None:
    """Have the file in `registry`, the menu of what was made here, with what was measured."""
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


def register_adapter(file: Path, run: str, base: str, root: Path) -> str:
    """Have the menu of what was made here offer the base, as the menu in `root` has it, with the adapter.

    Returns the new entry's name; empty where the menu has no such base.
    """
    menu, made = load_registry(root / "models.json"), root / MADE
    found = next((e for e in menu.entries.values() if e.base == base and not (e.run or e.adapters)), None)
    if found is None:
        return ""

    def beside(path: str) -> str:  # the menus are in two folders
        return Path(os.path.relpath(root / os.path.expanduser(path), made.parent)).as_posix()

    sources = [s.model_copy(update={"path": beside(s.path)}) if s.path else s for s in found.sources]
    adapter = Adapter(path=beside(str(file)))
    name = f"{run} lora"
    add(made, name, found.model_copy(update={"sources": sources, "adapters": [adapter], "run": run}))
    return name


def modelfile(name: str, file: GgufFile) -> str:
    """The file for `ollama create`. Ollama finds its own template by the GGUF's; the stops are ours."""
    ends = sorted(text for text, i in file.vocab.control.items() if i in file.vocab.eog_ids)
    path = f"./{name}.gguf"
    lines = [
        f"FROM {path if re.fullmatch(WORD, path, re.ASCII) else _quoted(path)}",
        f"PARAMETER num_ctx {min(file.n_ctx_train or CONTEXT, CONTEXT)}",
    ]
    lines += [f"PARAMETER stop {_quoted(text)}" for text in ends]
    return "\n".join(lines) + "\n"


def model_card(name: str, file: GgufFile, report: Report, about: dict[str, Any]) -> str:
    """A README for the file, with the measured table; its commands are typed in the repository."""
    base = about["base"]
    models = file.path.absolute().parent
    there = Path("models") if models.resolve() == (ROOT / "models").resolve() else models
    based = f"base_model: {json.dumps(base)}\n" if "/" in base else ""  # the hub knows only its own names
    return (
        f"---\n{based}library_name: gguf\npipeline_tag: text-generation\n---\n\n"
        f"# {name}\n\n"
        f"`{base}`, fine-tuned in the run `{about['run']}`: a GGUF of type {file.file_type} "
        f"({human_size(file.file_size)}), made by tune2chat.\n\n"
        f"    python app.py --model {shlex.quote(str(there / file.path.name))}\n"
        f"    ollama create {ollama_name(name)} -f {shlex.quote(str(there / f'{name}.Modelfile'))}\n\n"
        "## What was measured\n\n"
        f"On {about['tested_on']}, token for token as the chat sends them.\n\n"
        f"```\n{report.table()}\n```\n"
    )


def place(source: Path, target: Path, move: bool, texts: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Give a file its final name, and write `texts`, by name, beside it: all, the file first, or nothing.

    A second name for the same file where the disk allows it, else a copy; with `move` the first name goes.
    Raises ConvertError where there is no room.
    """
    try:
        with ExitStack() as files:  # the last that was opened gets its name first
            for name, text in texts.items():
                files.enter_context(whole(target.with_name(name))).write_bytes(text.encode())
            _bring(source, files.enter_context(whole(target)), move)
    except OSError as error:
        free, size = shutil.disk_usage(target.parent).free, source.stat().st_size
        raise ConvertError(
            f"can't write {target} ({human_size(size)}): {error.strerror or error}; "
            f"{target.parent.resolve()} has {human_size(free)} free. Make room there, and repeat the command"
        ) from None
    if move:
        source.unlink(missing_ok=True)
    return target


def _quoted(text: str) -> str:
    """As a Modelfile takes any text: between quotes, nothing escaped (Ollama's parser.go, `unquote`)."""
    mark = '"""' if '"' in text else '"'
    return f"{mark}{text}{mark}"


def _bring(source: Path, target: Path, move: bool) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        if move and source.stat().st_dev == target.parent.stat().st_dev:
            source.replace(target)
        else:
            shutil.copyfile(source, target)
