"""Ask a run's adapter one prompt before anything is converted: train/qlora.py --try RUN"""

from __future__ import annotations

from pathlib import Path

from accelerate import PartialState

from train import folder as files
from train.errors import TrainError
from train.model import Adapted
from train.paths import read_yaml
from train.recipe import parse
from train.session import Base, Session, device_of

MAX_NEW_TOKENS = 256


def answer(folder: Path, prompt: str | None) -> str:
    """The adapter's greedy reply. Raises TrainError."""
    if not (folder / "adapter" / "adapter_model.safetensors").is_file():
        runs = sorted(path.parent.parent.name for path in folder.parent.glob("*/adapter/adapter_config.json"))
        raise TrainError(f"no run is called {folder.name!r}; runs: {', '.join(runs) or 'none yet'}")
    recipe = parse(read_yaml(folder / files.RECIPE), folder / files.RECIPE)
    before = files.read_json(folder / files.BEFORE) or {}
    chats = before.get("prompts") or [[{"role": "user", "content": "Hello!"}]]
    chat = [{"role": "user", "content": prompt}] if prompt else chats[0]
    base, device = Base(recipe), device_of(PartialState())
    begun: files.Inputs = files.read_json(folder / files.INPUTS) or {}
    if "base" in begun and base.content not in ("", begun["base"]):
        raise TrainError(
            f"{base.folder} has other content than when {folder.name!r} was trained on it, and its adapter "
            "is worth nothing on another base; bring back what it was"
        )
    session = Session(Adapted(base.load(recipe, device), recipe, device), base.tokenizer, recipe, device)
    session.load_adapter(folder / "adapter")
    asked = "" if prompt else f"> {chat[-1]['content']}\n"
    return asked + session.answer([chat], MAX_NEW_TOKENS)[0]
