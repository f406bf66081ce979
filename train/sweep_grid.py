"""A sweep's file: a recipe, a grid of its keys, seeds and arms; and the runs that it stands for."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from core.command import ROOT
from core.errors import TrainError
from train.recipe import Recipe, changed, find_file, load_recipe, located, read_yaml, sentence
from train.sections import Lora, Seed
from train.upstream import Section

SWEEPS = Path(__file__).with_name("sweeps")
FEWEST_SEEDS = 3

Arm = Literal["fixed", "compensated"]


class Sweep(Section):
    """The file: a recipe (a name or a path), what to change in it, and how often.

    Arm "fixed" keeps the recipe's learning rate, "compensated" divides it by how much larger the adapter's
    scale is than the recipe's: the step that the weights see stays as long, so that what is left is alpha's
    own effect. Less than three seeds give no spread to judge by: only with `allow_few_seeds`, to have a look.
    """

    name: str = ""  # the file's
    recipe: str
    grid: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
    seeds: tuple[Seed, ...] = (1, 2, 3)
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)] = ("fixed",)
    allow_few_seeds: bool = False


@dataclass(frozen=True)
class Cell:
    """One run of the sweep; cells of two arms can be the same run."""

    arm: Arm
    values: dict[str, Any]  # of the grid's keys
    seed: int
    recipe: Recipe


def load_sweep(given: str) -> Sweep:
    """Read a sweep by its path, or by the name of one of the project's. Raises TrainError, all at once."""
    path = find_file(given, SWEEPS, "sweep")
    try:
        sweep = Sweep.model_validate({"name": path.stem} | read_yaml(path))
    except ValidationError as error:
        mistakes = []
        for each in error.errors():
            near = difflib.get_close_matches(str(each["loc"][-1]), Sweep.model_fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(Sweep.model_fields)}"
            unknown = f"{each['loc'][-1]}: unknown key; {hint}"
            mistakes.append(unknown if each["type"] == "extra_forbidden" else sentence(each))
        raise TrainError("\n  ".join([f"{path}:", *mistakes])) from None
    if Path(sweep.name).name != sweep.name or sweep.name.startswith("."):
        raise TrainError(f"{path}: name: {sweep.name!r} can't be a folder's")
    seeds = tuple(dict.fromkeys(sweep.seeds))
    if len(seeds) < (1 if sweep.allow_few_seeds else FEWEST_SEEDS):
        raise TrainError(
            f"{path}: seeds: {list(sweep.seeds)} are less than {FEWEST_SEEDS} different ones, too few to "
            "tell an effect from chance; add some, or to have a look say allow_few_seeds: true"
        )
    starts = (path.parent, ROOT)
    grid = {key: [_located(key, value, *starts) for value in values] for key, values in sweep.grid.items()}
    recipe = located(sweep.recipe, *starts)
    recipe = recipe if Path(recipe).is_file() else sweep.recipe  # the name of one of the project's
    return sweep.model_copy(update={"recipe": recipe, "seeds": seeds, "grid": grid})


def _located(key: str, value: Any, *starts: Path) -> Any:
    """A path in the grid means the same from anywhere, as in a recipe."""
    is_path = key in ("data.path", "model.base_model") and isinstance(value, str)
    return located(value, *starts) if is_path else value


def cells(sweep: Sweep, max_steps: int | None = None) -> list[Cell]:
    """All runs, in the order of the file. Raises TrainError with every mistake of the grid."""
    base = load_recipe(sweep.recipe)
    mistakes = []
    if base.model.adapter:
        mistakes.append(f"{sweep.recipe}: model.adapter: the runs of a sweep begin anew; leave it out")
    if base.data.validation == 0:
        mistakes.append(f"{sweep.recipe}: data.validation: 0 leaves nothing to compare runs by")
    for key, value in [(key, value) for key, values in sweep.grid.items() for value in values]:
        try:
            if key in (f"{base.args.title}.seed", "name", "description"):
                raise TrainError(f"grid: {key} can't be swept; seeds has a key of its own")
            changed(base, {key: value}, "grid")
        except TrainError as error:
            mistakes += [text.strip() for text in str(error).splitlines() if not text.endswith(":")]
    if mistakes:
        raise TrainError("\n  ".join([f"{sweep.name}:", *dict.fromkeys(mistakes)]))
    steps = {f"{base.args.title}.max_steps": max_steps} if max_steps else {}
    return [
        Cell(arm, values, seed, _recipe(base, arm, values | steps | {f"{base.args.title}.seed": seed}))
        for arm in sweep.arms
        for values in _combinations(sweep.grid)
        for seed in sweep.seeds
    ]


def _combinations(grid: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _recipe(base: Recipe, arm: Arm, values: dict[str, Any]) -> Recipe:
    other = changed(base, values, "grid")
    if arm == "fixed":
        return other
    rate = other.args.learning_rate * scale(base.lora) / scale(other.lora)
    section = "dpo" if other.dpo else "sft"
    return other.model_copy(update={section: other.args.model_copy(update={"learning_rate": rate})})


def scale(lora: Lora) -> float:
    """What the adapter's product is multiplied by: alpha / r, or alpha / sqrt(r) by rsLoRA (2312.03732)."""
    return lora.lora_alpha / (math.sqrt(lora.r) if lora.use_rslora else lora.r)
