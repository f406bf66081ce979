"""What lies in outputs/: runs and sweeps, as far as their files tell. Nothing is written, no file trusted.

The files are those that training leaves (docs/train.md). Each may be missing, half written, huge or foreign:
then a sentence says so in `notes`, and the rest is shown.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from chat.found_files import checked, inside, opened, read_lines, read_object, read_text
from chat.loss_curve import Curve, read_curve
from chat.run_files import (
    Asked,
    Base,
    Manifest,
    Reached,
    Sample,
    asked_samples,
    last_name,
    read_recipe,
    read_samples,
)
from core.errors import ChatError

State = Literal["finished", "running", "interrupted", "failed"]
RECIPE_BYTES = 16_000  # ten times what one has; the reader of YAML is slow
RUN = {"recipe.yaml", "manifest.json", "metrics.jsonl", "before.json"}  # one of these makes a folder a run's
FILES = RUN | {"rows.jsonl", "inputs.json"}  # of the rest, one of these a sweep's
T = TypeVar("T")


@dataclass
class Run:
    """One run. `said` is its state in a sentence, `recipe` its settings as they are written."""

    name: str
    changed: float  # seconds since 1970
    state: State = "interrupted"
    said: str = ""
    steps: int = 0  # that the whole run has; 0 if its files don't say
    base: str = ""
    preferences: bool = False
    recipe: dict[str, str] = field(default_factory=dict)
    manifest: Manifest | None = None
    curve: Curve = field(default_factory=Curve)
    samples: Sequence[Sample] = ()
    notes: list[str] = field(default_factory=list)


@dataclass
class Sweep:
    """A grid of runs: a row each, with what was set and what was measured."""

    name: str
    changed: float
    done: bool = False
    rows: Sequence[dict[str, Any]] = ()
    notes: list[str] = field(default_factory=list)


def read_runs(outputs: Path) -> tuple[list[Run | Sweep], list[str]]:
    """The runs and sweeps in `outputs`, the newest first; and what else is to be said. Raises ChatError."""
    found: list[Run | Sweep] = []
    notes: list[str] = []
    outputs = Path(os.path.realpath(outputs))
    for entry in inside(outputs):
        folder = outputs / entry.name
        has = {name for name in FILES if os.path.lexists(folder / name)}
        if entry.is_symlink():
            notes.append(f"{entry.name} is a link, which isn't followed")
        elif not entry.is_dir(follow_symlinks=False) or entry.name.startswith("."):
            continue
        elif has & RUN:
            found.append(_kept(folder, _fingerprint(folder)) if "manifest.json" in has else _run(folder))
        elif has:
            found.append(_sweep(folder))
        elif not os.path.lexists(folder / "convert"):  # of a checkpoint that was trained elsewhere
            notes.append(f"{entry.name}/ holds no run")
    return sorted(found, key=lambda one: one.changed, reverse=True), notes


def _fingerprint(folder: Path) -> tuple[tuple[int, int], ...]:
    """Tells whether one of a run's files has changed."""
    found = []
    for name in (*sorted(RUN), "samples.md"):
        try:
            status = os.lstat(folder / name)
            found.append((status.st_mtime_ns, status.st_size))
        except OSError:
            found.append((0, 0))
    return tuple(found)


@lru_cache(maxsize=256)
def _kept(folder: Path, fingerprint: tuple[tuple[int, int], ...]) -> Run:
    """A run that is done, read once: while another one runs, the page asks every few seconds."""
    return _run(folder)


def _run(folder: Path) -> Run:
    run = Run(folder.name, _changed(folder, "manifest.json", "metrics.jsonl", "recipe.yaml"))
    recipe = _try(run.notes, lambda: read_recipe(read_text(folder / "recipe.yaml", RECIPE_BYTES)))
    run.recipe = recipe or {}
    run.preferences = any(key.startswith("DPOConfig") for key in run.recipe)
    raw = _try(run.notes, lambda: read_object(folder / "manifest.json"))
    run.manifest = checked(Manifest, raw, "manifest.json", run.notes) if raw is not None else None
    run.curve = _try(run.notes, lambda: read_curve(folder / "metrics.jsonl")) or run.curve
    if not run.curve.whole:
        run.notes.append("metrics.jsonl is very long: the curve shows pieces of it, from beginning to end")
    run.base = _base(run)
    before = _try(run.notes, lambda: read_object(folder / "before.json"))
    samples = _try(run.notes, lambda: read_samples(read_text(folder / "samples.md")))
    if samples is None:
        samples = asked_samples(checked(Asked, before or {}, "before.json", run.notes))
    run.samples = samples
    run.state, run.said = _state(run, folder, begun=before is not None)
    return run


def _state(run: Run, folder: Path, begun: bool) -> tuple[State, str]:
    """What became of it, and the sentence."""
    manifest, curve = run.manifest, run.curve
    if manifest is not None:
        early = f", early: {manifest.stopped}" if manifest.stopped else ""
        return "finished", f"finished at step {manifest.steps:,}{early}"
    reached = Reached()
    for name in ("trainer_state.json", "progress.json"):
        raw = _try(run.notes, partial(read_object, folder / "checkpoint" / name)) or {}
        part = checked(Reached, raw, f"checkpoint/{name}", run.notes)
        reached = Reached(
            max_steps=reached.max_steps or part.max_steps, stopped=reached.stopped or part.stopped
        )
    run.steps = reached.max_steps or _max_steps(run.recipe)
    at = f"at step {curve.last:,}" + (f" of {run.steps:,}" if run.steps >= curve.last else "")
    if curve.epoch:
        at += f" (epoch {curve.epoch:.2f})"
    if _is_locked(folder / ".lock"):
        return "running", f"running, {at}" if begun else "running: getting ready"
    if curve.broke is not None:
        return "failed", f"failed at step {curve.broke:,}: the loss is no number any more"
    if reached.stopped.startswith("diverged"):
        return "failed", f"failed {at}: {reached.stopped}"
    if not begun:
        return "failed", "failed before the first step"
    return "interrupted", f"interrupted {at}"


def _max_steps(recipe: dict[str, str]) -> int:
    """How many steps the recipe asks for; 0 where it says epochs."""
    found = (value for key, value in recipe.items() if key.endswith(".max_steps"))
    value = next(found, "")
    return int(value) if re.fullmatch(r"\d{1,9}", value, re.ASCII) else 0


def _is_locked(path: Path) -> bool:
    """Whether a training has the folder: it holds this lock until it ends, however it ends.

    Asked by taking a share of it for a moment, which writes nothing.
    """
    try:
        import fcntl  # not on Windows

        with opened(path) as (file, _):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ChatError, OSError, ModuleNotFoundError):
        return False
    return False


def _base(run: Run) -> str:
    """What was trained; of a path its name alone, since where it lies here is nobody's business."""
    recipe, base = run.recipe, run.manifest.base if run.manifest else Base()
    file = base.gguf_file or recipe.get("model.gguf_file", "")
    where = recipe.get("model.base_model") or recipe.get("model.package") or last_name(base.base_model or "")
    return ": ".join(filter(None, (where, last_name(file))))


def _sweep(folder: Path) -> Sweep:
    sweep = Sweep(folder.name, _changed(folder, "rows.jsonl"))
    rows, _ = _try(sweep.notes, lambda: read_lines(folder / "rows.jsonl")) or ([], True)
    sweep.rows = [{key: value for key, value in row.items() if _is_cell(value)} for row in rows]
    sweep.done = _changed(folder, "table.md") >= sweep.changed > 0
    return sweep


def _is_cell(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | bool) or (isinstance(value, int) and abs(value) < 10**15)


def _changed(folder: Path, *names: str) -> float:
    """When the newest of these files was written; 0.0 where none is there."""
    times = []
    for name in names:
        try:
            times.append(os.lstat(folder / name).st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


def _try(notes: list[str], read: Callable[[], T]) -> T | None:
    """What `read` gives; None for a file that isn't there, and for one that can't be used: that is noted."""
    try:
        return read()
    except FileNotFoundError:
        return None
    except ChatError as error:
        notes.append(str(error))
        return None
