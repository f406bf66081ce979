"""Find the base that an adapter was trained on: a folder given, named by the run, in the cache, or the hub's.

A base that came as a GGUF is written out as a checkpoint once, beside the run.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import constants, errors, snapshot_download
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2

from convert.tokenizer_files import SENTENCEPIECE, needs_sentencepiece
from core.checkpoint import Checkpoint
from core.errors import ConvertError
from core.families import refusal
from core.files import ADAPTER_CONFIG, file_hashes, read_json
from core.from_gguf import GGUF_WRITERS, checkpoint_from_gguf
from core.gguf_reader import check_parts
from core.gptq import refuse_quantised, refuse_quantised_name
from core.hub import files_of, hub_error
from core.other_formats import other_format

# Weights as safetensors and what a tokenizer needs; nothing that is code or could become it.
WANTED = ("*.safetensors", "*.json", SENTENCEPIECE, "*.jinja", "merges.txt")
UNWANTED = ("*/*", "consolidated*")  # the same weights again, for other programs
REPO_ID = r"[\w.-]+(/[\w.-]+)?"
# In a checkpoint written from a GGUF: the hashes of the file and of what wrote it.
MADE_FROM = "made_from.json"


def find_base(adapter: Path, override: str | None = None, work: Path | None = None) -> Path:
    """Return a folder with the checkpoint of the adapter's base, downloading or writing it if it must.

    `override`: a folder, a GGUF or a hub name that goes before what the run says. `work`: where a GGUF is
    written out, as `work`/base. Raises ConvertError.
    """
    config = read_json(adapter / ADAPTER_CONFIG)
    named, gguf = config.get("base_model_name_or_path"), None
    manifest = adapter.parent / "manifest.json"
    made_of = read_json(manifest).get("base") if manifest.is_file() else None
    # Training wrote a GGUF base out as a checkpoint; while that is there, nobody has to do it again.
    if isinstance(base := made_of, dict) and not Path(str(named)).is_dir():
        named, gguf = base.get("base_model", named), base.get("gguf_file")
    if override:
        named, gguf = override, None
    if not named:
        raise ConvertError(
            f"{adapter / ADAPTER_CONFIG} doesn't say what it was trained on; say it: --base-model DIR"
        )
    path = Path(str(named), gguf) if gguf else Path(str(named)).expanduser()
    if path.suffix == ".gguf":
        return _from_gguf(path, (work or adapter.parent / "convert") / "base")
    if path.is_dir():
        return path
    if not re.fullmatch(REPO_ID, str(named)) or ".." in str(named):
        raise ConvertError(
            f"the base {str(named)!r} is not on this machine; say where it is: --base-model DIR"
        )
    return _from_hub(str(named), None if override else config.get("revision"))


def _from_gguf(gguf: Path, out: Path) -> Path:
    """Write a GGUF out as a checkpoint, unless that was done before with the same content."""
    if not gguf.is_file():
        raise ConvertError(
            f"the base {str(gguf)!r} is not on this machine; say where it is: --base-model FILE.gguf"
        )
    made_from = {"gguf": file_hashes(check_parts(gguf)), "writers": file_hashes(GGUF_WRITERS)}
    if (out / MADE_FROM).is_file() and read_json(out / MADE_FROM) == made_from:
        return out
    shutil.rmtree(out, ignore_errors=True)
    print(f"{gguf.name}: {checkpoint_from_gguf(gguf, out)}", flush=True)
    (out / MADE_FROM).write_text(json.dumps(made_from) + "\n", encoding="utf-8")
    return out


def _from_hub(name: str, revision: Any) -> Path:
    """Return a hub model's folder in the cache, complete; download what is missing."""
    constants.HF_HUB_DISABLE_TELEMETRY = True
    refuse_quantised_name(name)
    options: dict[str, Any] = {"revision": revision, "allow_patterns": WANTED, "ignore_patterns": UNWANTED}
    try:
        folder = Path(snapshot_download(name, local_files_only=True, **options))
        if not _missing(folder):
            return folder
    except errors.LocalEntryNotFoundError:
        pass
    give = "or say where it is: --base-model DIR"
    try:
        about = options | {"allow_patterns": ("config.json", "README.md")}
        folder = Path(snapshot_download(name, **about))
        if not (folder / "config.json").is_file():
            if other := other_format(files_of(name, revision), repr(name)):
                raise ConvertError(other)  # else what is missing is said below
        else:
            refuse_quantised(folder, name)
            if refused := refusal(read_json(folder / "config.json"), repr(name)):
                raise ConvertError(refused)
        print(f"Downloading {name}, the base, from the hub.", flush=True)
        folder = Path(snapshot_download(name, **options))
    except (HTTPError, OSError) as error:
        said = hub_error(error, name, revision, f"the hub has no {name!r}; check the name") or error
        raise ConvertError(
            f"the base {name!r} is not in the cache and can't be downloaded ({said}); {give}"
        ) from None
    if reason := _missing(folder):  # offline, the library returns what it has
        raise ConvertError(f"the base {name!r} is not whole: {reason}. Get online, {give}")
    return folder


def _missing(folder: Path) -> str:
    """What a checkpoint lacks: weights, or tokenizer.model, which transformers doesn't always fetch."""
    try:
        config = Checkpoint(folder).config
    except ConvertError as error:
        return str(error)
    found = (folder / SENTENCEPIECE).is_file() or not needs_sentencepiece(config, folder)
    return "" if found else f"{folder} has no {SENTENCEPIECE}"
