"""A run of before, by its name: its recipe, and its base as it was, for an adapter that is asked again."""

from __future__ import annotations

from pathlib import Path

from core.command import command_line
from core.errors import TrainError
from train import folder as files
from train.earlier import WEIGHTS, check_form, runs_in
from train.recipe import Recipe, parse, read_yaml
from train.session import Base


def find_run(given: str, outputs: Path) -> Path:
    """The folder of a run that has an adapter, by its name in `outputs` or its path. Raises TrainError."""
    for folder in (outputs / given, Path(given).expanduser()):
        if (folder / "adapter" / WEIGHTS).is_file():
            return folder
    raise TrainError(f"no run is called {given!r}; runs: {runs_in(outputs)}")


def refuse_unfinished(folder: Path) -> None:
    """Raise TrainError where a run hasn't ended: its adapter may yet be another."""
    if not (folder / files.MANIFEST).is_file():
        root = ["--root", str(folder.parents[1])] if folder.parent.name == "outputs" else []
        again = command_line("train/qlora.py", [folder / files.RECIPE, "--resume", *root])
        raise TrainError(f"{folder} has no {files.MANIFEST}: the run hasn't ended. Go on with it: {again}")


def reopen(folder: Path, rendered: str = "") -> tuple[Recipe, Base]:
    """Recipe and base of a run; `rendered`: the time that the base's template is told, now where it is empty.

    The recipe is for one process, and for 16 bit. Raises TrainError, too, if the base has other content now.
    """
    recipe = parse(read_yaml(folder / files.RECIPE), folder / files.RECIPE)
    recipe = recipe.model_copy(update={"fully_shard": False, "precision": "16-bit"})
    base = Base(recipe, rendered)
    check_form(folder / "adapter", recipe.lora, base)
    begun = files.read_inputs(folder)
    if "base" in begun and base.content not in ("", begun["base"]):
        raise TrainError(
            f"{base.folder} has other content than when {folder.name!r} was trained on it, and its adapter "
            "is worth nothing on another base; bring back what it was"
        )
    return recipe, base
