"""A run's folder, outputs/<name>/: who may write to it, and the files that the conversion reads."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from core.errors import DiskError, TrainError
from core.files import PROMPTS, RECORD, Rendered, file_hash, write_json, write_whole
from core.machine import human_size
from train.examples import Encoded, sides
from train.recipe import Recipe, parse, read_yaml

if TYPE_CHECKING:
    from train.session import Base
    from train.split import Prepared

RECIPE, METRICS, MANIFEST, BEFORE, INPUTS = (
    "recipe.yaml",
    "metrics.jsonl",
    "manifest.json",
    "before.json",
    "inputs.json",
)
KEPT_ROWS = 48  # of each split, for the conversion

# SHA-256 of the rows ("data") and of the base's weights ("base"); when the rows were rendered ("rendered")
Inputs = dict[str, str]


class Asked(BaseModel):
    """before.json: what the model said before its first step, and what it scored."""

    model_config = ConfigDict(extra="allow")
    prompts: list[list[dict[str, str]]]
    replies: list[str]
    scores: dict[str, float]
    base16: float | None
    margins: list[float] = []


@contextmanager
def claimed(folder: Path, recipe: Recipe, resume: bool, inputs: Inputs | None = None) -> Iterator[None]:
    """Have the folder for this run alone. Raises TrainError if it is another's, or in use.

    `inputs` are the hashes of what is trained on: with others, a run isn't gone on with. A run that was
    refused before its first step left nothing to keep: it may begin again, corrected.
    """
    if (folder / RECIPE).is_file() and (folder / BEFORE).is_file():
        if not resume:
            raise TrainError(
                f"{folder} holds a run already; go on with it: --resume, or name this one: --name"
            )
        _refuse_another(folder, recipe, inputs or {})
    elif not (folder / RECIPE).is_file() and any(path.name != ".lock" for path in folder.glob("*")):
        raise TrainError(f"{folder} is in use for something else; give this run another name: --name")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            write_whole(folder / RECIPE, dump(recipe))
            if inputs:
                write_json(folder / INPUTS, inputs)
            yield
    except Timeout:
        raise TrainError(f"another program is training in {folder} right now") from None


def _refuse_another(folder: Path, recipe: Recipe, inputs: Inputs) -> None:
    """Raise TrainError if the run in `folder` was begun with another recipe, other rows or another base."""
    before = parse(read_yaml(folder / RECIPE), folder / RECIPE)
    begun = read_inputs(folder)
    if inputs and not begun:
        print(f"note: {folder} has no record of its data and base; they are taken to be what they were")
    if begun:  # the content decides, below, and not what it is called
        data = before.data.model_copy(update={"path": recipe.data.path})
        where = {"base_model": recipe.model.base_model, "adapter": recipe.model.adapter}
        model = before.model.model_copy(update=where)
        before = before.model_copy(update={"data": data, "model": model})
    if before.config_hash() != recipe.config_hash():
        raise TrainError(f"{folder} was begun with another recipe ({_differences(before, recipe)}); --name")
    if changed := changed_inputs(begun, inputs, recipe):
        raise TrainError(
            f"{folder} was begun on other content of the {changed}, and going on would mix the two. Bring "
            "back what it was, or begin anew under another name: --name"
        )


def inputs_of(base: Base, data: Prepared) -> Inputs:
    """What a run is trained on, and by which one that goes on is known."""
    rows = rows_hash(data.train, data.validation, data.test)
    found = {"data": rows, "base": base.content, "rendered": base.tokenizer.rendered}
    return {kind: value for kind, value in found.items() if value}


def changed_inputs(begun: Inputs, now: Inputs, recipe: Recipe) -> str:
    """Name what has other content than it had; empty if nothing has, or nobody noted it."""
    model = recipe.model
    names = {"data": recipe.data.path, "base": model.base_model or model.package, "adapter": model.adapter}
    differ = (kind for kind in names if kind in begun and now.get(kind, begun[kind]) != begun[kind])
    return " and the ".join(f"{kind} ({names[kind]})" for kind in differ)


def rendered_at(folder: Path) -> str:
    """When the rows of the run in `folder` were rendered first; empty where there is none.

    Some templates write the date: rendered on another day, the rows would be others.
    """
    return read_inputs(folder).get("rendered", "")


def read_inputs(folder: Path) -> Inputs:
    """What the run in `folder` is trained on; empty where nobody noted it. Raises TrainError."""
    return read_json(folder / INPUTS, Inputs) or {}


def dump(recipe: Recipe) -> str:
    """A recipe as YAML, without what is left at its default."""
    content = recipe.model_dump(by_alias=True, exclude_defaults=True)
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text


def _differences(one: Recipe, other: Recipe) -> str:
    old, new = (
        recipe.model_dump(by_alias=True, exclude={"name", "description", "waive"}) for recipe in (one, other)
    )
    found = []
    for section in dict.fromkeys([*old, *new]):
        was, values = old.get(section), new.get(section)
        if isinstance(values, dict) and isinstance(was, dict):
            keys = dict.fromkeys([*was, *values])  # what nobody set of upstream's keywords is in neither
            found += [f"{section}.{k}: {was.get(k)!r}" for k in keys if values.get(k) != was.get(k)]
        elif values != was:
            found.append(section)
    return ", ".join(found[:5])


@contextmanager
def disk_errors() -> Iterator[None]:
    """Give the errors of torch.save a number: it only knows that a file is shorter than what was written."""
    try:
        yield
    except RuntimeError as error:
        if "inline_container" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None


def disk_error(error: Exception, folder: Path) -> DiskError | None:
    """What to say when a file in `folder` couldn't be written; None if `error` is about something else.

    safetensors' own errors have no number, only the system's words.
    """
    number, said = getattr(error, "errno", None), str(error)
    names = {errno.ENOSPC: "no space", errno.EDQUOT: "no quota", errno.EFBIG: "no room for a file so large"}
    found = [what for code, what in names.items() if number == code or os.strerror(code) in said]
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if found:
        free = human_size(shutil.disk_usage(place).free)
        return DiskError(f"{found[0]} is left for {folder} ({free} free there); what was saved is kept")
    denied = (errno.EACCES, errno.EPERM, errno.EROFS)
    if number in denied or any(os.strerror(code) in said for code in denied):
        return DiskError(f"{getattr(error, 'filename', None) or folder} can't be written: {said}")
    return None


def rows_hash(*splits: Sequence[Encoded]) -> str:
    """SHA-256 of the rows of each split as they are trained: token ids, and which of them count."""
    digest = hashlib.sha256()
    for rows in splits:
        digest.update(f"{len(rows)} rows".encode())
        for row in sides(rows):
            digest.update(repr((row.ids, row.mask)).encode())
    return digest.hexdigest()


def keep_metrics_until(folder: Path, step: int) -> None:
    """Drop the lines of steps that a kill took back."""
    kept = [line for line in read_metrics(folder) if line["step"] <= step]
    write_whole(folder / METRICS, "".join(json.dumps(line) + "\n" for line in kept))


def append_metrics(folder: Path, line: dict[str, Any]) -> None:
    """Add one line."""
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All lines; one that a kill cut short, or that isn't of figures by their names, is left out."""
    found = []
    if (folder / METRICS).is_file():
        for line in (folder / METRICS).read_bytes().splitlines():
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(values, dict) and isinstance(values.get("step"), int) and _are_figures(values):
                found.append(values)
    return found


def _are_figures(values: dict[str, Any]) -> bool:
    return all(value is None or isinstance(value, int | float) for value in values.values())


def write_prompts(
    folder: Path, train: Sequence[Encoded], test: Sequence[Encoded], rendered_with: Rendered, rendered: str
) -> None:
    """Keep some rows for the conversion, which checks the chat's ids against them and measures with them, and
    note what they were rendered with, and the time that the template was told.

    Plain texts are no chats: without a row the conversion uses the project's own.
    """
    lines = []
    for split, rows in (("train", train), ("test", test)):
        chats = [row for row in rows if row.messages]
        for row in chats[:: max(1, len(chats) // KEPT_ROWS)][:KEPT_ROWS]:
            kept = {key: value for key, value in asdict(row).items() if key != "rejected"}
            lines.append(json.dumps(kept | {"split": split, "rendered": rendered}) + "\n")
    if lines:
        write_whole(folder / PROMPTS, "".join(lines))
    else:
        (folder / PROMPTS).unlink(missing_ok=True)
    hashed = {PROMPTS: file_hash(folder / PROMPTS)} if lines else {}
    write_json(folder / RECORD, rendered_with | hashed)


def read_json(path: Path, form: Any = dict[str, Any], cure: str = "or move it away") -> Any:
    """Read one that holds a `form`; None if it isn't there. Raises TrainError."""
    if not path.is_file():
        return None
    try:
        found = TypeAdapter(form).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        reason = f"{place}: {first['msg']}" if place else first["msg"]
        raise TrainError(f"{path} is damaged ({reason}); bring back what it was, {cure}") from None
    return found.model_dump(exclude_unset=True) if isinstance(found, BaseModel) else found
