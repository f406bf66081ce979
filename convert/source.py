"""What is to be converted, a run of `train/`, an adapter or a checkpoint, and what its files are called."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from core.command import command_line
from core.errors import ConvertError
from core.files import ADAPTER_CONFIG, PROMPTS
from core.other_formats import other_format


@dataclass(frozen=True)
class Source:
    """Exactly one of `adapter` and `checkpoint` is there; `prompts` only where a run recorded them."""

    name: str  # of the run; file names begin with it
    folder: Path  # outputs/<name>, where intermediate files go
    adapter: Path | None = None
    checkpoint: Path | None = None
    prompts: Path | None = None


def find_source(given: str | None, outputs: Path) -> Source:
    """Find a run in `outputs` or a folder by its name; None is the newest run. Raises ConvertError."""
    if given is None:
        return _run(_newest(outputs))
    for path in (outputs / given, Path(given)):
        if (path / "adapter" / ADAPTER_CONFIG).is_file():
            return _run(path)
    path = Path(given)
    if path.suffix == ".gguf":
        chat = command_line("app.py", ["--model", given])
        raise ConvertError(f"{given!r} is a GGUF already; chat with it: {chat}")
    if _is_adapter(path):
        name = bounded(folder_name(path.resolve().parent if path.resolve().name == "adapter" else path))
        name = name.rpartition("/")[2]
        return Source(name, outputs / name, adapter=path)
    if (path / "config.json").is_file():
        name = bounded(folder_name(path).rpartition("/")[2])
        return Source(name, outputs / name, checkpoint=path)
    if path.is_dir():
        if other := other_format([file.name for file in path.iterdir()], repr(given)):
            raise ConvertError(other)
        inside = [
            found.parent for name in (ADAPTER_CONFIG, "config.json") for found in path.glob(f"*/{name}")
        ]
        cure = f"; {inside[0].name} in it does: {command_for(str(inside[0]))}" if inside else ""
        raise ConvertError(
            f"{given!r} holds neither {ADAPTER_CONFIG} (an adapter) nor config.json (a checkpoint){cure}"
        )
    runs = ", ".join(sorted(path.parent.parent.name for path in outputs.glob(f"*/adapter/{ADAPTER_CONFIG}")))
    raise ConvertError(f"no run or folder is called {given!r}; runs: {runs or 'none yet'}")


def command_for(source: str) -> str:
    """The command that converts a source, to be pasted into a shell."""
    return command_line("convert/to_gguf.py", ["--"] * source.startswith("-") + [source])


def _is_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter, for transformers even where a whole model is beside it.

    A config without the adapter's weights, beside a whole model, is what an earlier save left.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return False
    whole = any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))
    weights = any((folder / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin"))
    if whole and weights:
        print(
            f"{folder} holds an adapter and a whole model; the adapter is taken, as transformers does it "
            f"(for the model, move {ADAPTER_CONFIG} away).",
            flush=True,
        )
    return weights or not whole


def _newest(outputs: Path) -> Path:
    adapters = outputs.glob(f"*/adapter/{ADAPTER_CONFIG}")
    newest = max(adapters, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise ConvertError(
            f"there is no run in {outputs.name}/ yet. Train one, or name the folder of an adapter or of a "
            f"checkpoint: {command_for('FOLDER')} --quant q5"
        )
    return newest.parent.parent


def _run(folder: Path) -> Source:
    prompts = folder / PROMPTS
    adapter = folder / "adapter"
    return Source(
        bounded(folder.resolve().name),
        folder,
        adapter=adapter,
        prompts=prompts if prompts.is_file() else None,
    )


# A file's name has 255 bytes; ours add at most "-IQ3_XXS.unverified.json.partial" and the like.
MAX_BYTES = 200
OLLAMA_LENGTH = 80  # types/model/name.go, isValidLen


def bounded(name: str) -> str:
    """A name that leaves room for what is added to it; one that is cut ends in a hash of the whole."""
    if len(name.encode()) <= MAX_BYTES:
        return name
    tail = hashlib.sha256(name.encode()).hexdigest()[:8]
    return name.encode()[: MAX_BYTES - 9].decode("utf-8", "ignore") + "-" + tail


def folder_name(folder: Path) -> str:
    """What a folder is called; in the hub's cache, where that is a commit's hash, the repository's name."""
    path = folder.resolve()
    if path.parent.name == "snapshots" and path.parents[1].name.startswith("models--"):
        return path.parents[1].name.removeprefix("models--").replace("--", "/")
    return path.name


def ollama_name(name: str) -> str:
    """A name that `ollama create` takes: ASCII letters, digits, "-", "_" and ".", the first no mark."""
    plain = unicodedata.normalize("NFKD", name.replace("ß", "ss")).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_.]+", "-", plain).strip("-_.")[:OLLAMA_LENGTH].strip("-_.") or "model"
