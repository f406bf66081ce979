"""Training that goes on from an adapter: `model.adapter`, an earlier run or a folder with PEFT's files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import TrainError
from core.files import ADAPTER_CONFIG, file_hash
from train.folder import read_inputs, read_json
from train.layers import targets
from train.recipe import Recipe, changed, parse, read_yaml
from train.refused import REFUSED
from train.sections import Lora
from train.upstream import keywords

if TYPE_CHECKING:
    from train.session import Base

WEIGHTS = "adapter_model.safetensors"
# What is written anew into each adapter, or says nothing of its form.
_WRITTEN = (
    *("task_type", "peft_type", "auto_mapping", "peft_version", "inference_mode", "runtime_config"),
    *("base_model_name_or_path", "revision", "megatron_core"),
)
_FREE = ("lora_dropout", "init_lora_weights")  # of a training, and not of the adapter's form


def with_earlier(recipe: Recipe, outputs: Path) -> Recipe:
    """The recipe with the folder of its adapter in full, and that adapter's LoraConfig. Raises TrainError."""
    given = recipe.model.adapter
    if not given:
        return recipe
    folder = _found(given, outputs)
    if folder.parent == (outputs / recipe.name).resolve():
        raise TrainError(f"model.adapter: {given} is this run itself; give the new one a name: --name")
    theirs = _lora(folder, given)
    ours, plain = recipe.lora, Lora()
    for name in Lora.model_fields:
        wanted = getattr(ours, name)
        if name not in _FREE and wanted != getattr(plain, name) and wanted != getattr(theirs, name):
            raise TrainError(
                f"LoraConfig.{name}: {wanted!r} isn't what the adapter {given} has, "
                f"{getattr(theirs, name)!r}; leave it out, since training goes on from that adapter"
            )
    kept = {name: getattr(ours, name) for name in _FREE}
    lora = theirs.model_dump() | kept
    return changed(recipe, {"LoraConfig": lora, "model.adapter": str(folder)}, "model.adapter")


def content_of(recipe: Recipe) -> dict[str, str]:
    """The hash of the adapter that training goes on from, by which a run that goes on knows it."""
    return {"adapter": file_hash(Path(recipe.model.adapter) / WEIGHTS)} if recipe.model.adapter else {}


def check_base(recipe: Recipe, content: str, base: str) -> None:
    """Raise TrainError where the earlier run was on other weights; `content` is the hash of the base's."""
    if not recipe.model.adapter:
        return
    begun = read_inputs(Path(recipe.model.adapter).parent)
    if content and begun.get("base", content) != content:
        raise TrainError(
            f"the adapter {recipe.model.adapter} was trained on another base than {base}, and is worth "
            "nothing on it; say the same model.base_model"
        )


def check_form(folder: Path, lora: Lora, base: Base) -> None:
    """Raise TrainError where a saved adapter's settings aren't `lora`, before anything is allocated."""
    path = folder / ADAPTER_CONFIG
    config = read_json(path, cure="or train it anew")
    if config is None:
        raise TrainError(f"{folder} has no {ADAPTER_CONFIG}; bring it back, or train the adapter anew")
    for name in ("r", "lora_alpha"):
        if config.get(name) != (wanted := getattr(lora, name)):
            raise TrainError(_other_form(path, name, config.get(name), wanted))
    theirs, ours = config.get("target_modules"), lora.target_modules
    # An adapter of a part is saved with the names of the whole: there, its tensors decide.
    if theirs != ours and not hasattr(base.config, "part_of"):
        there = base.shape.linears
        known = isinstance(theirs, str) or (isinstance(theirs, list) and {*map(type, theirs)} <= {str})
        if not known or targets(theirs, there)[0] != targets(ours, there)[0]:
            raise TrainError(_other_form(path, "target_modules", theirs, ours))


def _other_form(path: Path, name: str, theirs: Any, ours: Any) -> str:
    return (
        f"{path} says {name}: {theirs!r}, and the recipe LoraConfig.{name}: {ours!r}: one of them was "
        "changed after the training; bring back what it was"
    )


def _found(given: str, outputs: Path) -> Path:
    """The folder with the adapter. Raises TrainError."""
    for path in (outputs / given / "adapter", Path(given).expanduser() / "adapter", Path(given).expanduser()):
        if (path / ADAPTER_CONFIG).is_file():
            if not (path / WEIGHTS).is_file():
                raise TrainError(f"model.adapter: {path} has no {WEIGHTS}")
            return path.resolve()
    raise TrainError(f"model.adapter: no run and no folder is called {given!r}; runs: {runs_in(outputs)}")


def runs_in(outputs: Path) -> str:
    """The names of the runs that have an adapter, for a message."""
    runs = sorted(path.parent.parent.name for path in outputs.glob(f"*/adapter/{ADAPTER_CONFIG}"))
    return ", ".join(runs) or "none yet"


def _lora(folder: Path, given: str) -> Lora:
    """LoraConfig of an adapter: of its run's recipe, or of its own file. Raises TrainError."""
    recipe = folder.parent / "recipe.yaml"
    if recipe.is_file():
        return parse(read_yaml(recipe), recipe).lora
    config: dict[str, Any] = read_json(folder / ADAPTER_CONFIG, cure="or train it anew")
    if (kind := config.get("peft_type")) != "LORA":
        raise TrainError(f"model.adapter: {given} is a {kind}, and only LoRA is trained here")
    known = keywords("LoraConfig")
    for key, why in REFUSED["LoraConfig"].items():
        if key not in _WRITTEN and config.get(key) not in (None, False, [], {}, known[key].default):
            raise TrainError(
                f"model.adapter: {given} has {key}: {config[key]!r}, which can't be trained: {why}"
            )
    values = {
        name: value
        for name in Lora.model_fields
        if name not in _FREE and (value := config.get(name)) is not None
    }
    content = {"model": {"base_model": "-", "license": "-"}, "data": {"path": "-"}, "LoraConfig": values}
    return parse(content, folder / ADAPTER_CONFIG).lora
