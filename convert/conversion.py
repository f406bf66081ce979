"""One conversion from the first check to the printed tables."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from convert import preflight
from convert.adapter import Adapter
from convert.base import MADE_FROM
from convert.merge import surplus_head
from convert.pipeline import Pipeline
from convert.publish import models_folder, publish, register
from convert.source import Source
from convert.stages import Settings
from convert.tokenizer_files import TokenizerFiles
from core.checkpoint import TextCheckpoint
from core.command import ROOT, command_line
from core.errors import ConvertError
from core.files import PROMPTS, RECORD, TEMPLATE, VOCABULARY, file_hash, read_json, rendered_with
from core.gptq import GptqCheckpoint, open_checkpoint
from core.machine import human_size
from core.registry import MADE, check_extensible


def convert(source: Source, settings: Settings, types: list[str], root: Path) -> int:
    """Make, check and register one GGUF of each type; return the exit code. Raises ConvertError."""
    if settings.imatrix not in ("auto", "none") and not Path(settings.imatrix).is_file():
        raise ConvertError(f"--imatrix {settings.imatrix!r} is no file; give one, or say auto or none")
    check_extensible(root / MADE)  # now, not when all is done
    models_folder(root)
    pipeline = Pipeline(source, settings)
    try:
        with FileLock(pipeline.work / ".lock", timeout=0):
            return _convert(pipeline, types, root)
    except Timeout:
        raise ConvertError(f"{source.name!r} is being converted by another program right now") from None


def _convert(pipeline: Pipeline, types: list[str], root: Path) -> int:
    source, settings = pipeline.source, pipeline.settings
    if source.adapter:
        Adapter(source.adapter)  # what can't be merged anyway needs no base, which may be a download
    origin = open_checkpoint(source.checkpoint or pipeline.base)
    if settings.base == "nf4" and isinstance(origin, GptqCheckpoint):
        raise ConvertError(f"{origin.folder} is a GPTQ base, which was never NF4; leave out --base nf4")
    print(f"{source.name}: {', '.join(types)}, based on {pipeline.origin}", flush=True)
    if isinstance(origin, TextCheckpoint):
        print(f"note: a {origin.whole_type} has more parts; only its text model is converted", flush=True)
    todo = [kind for kind in types if not pipeline.is_made(kind)]
    if todo:
        pipeline.check_tools(todo)
        pipeline.check_source()
        for line in check_recorded(source, pipeline.base) if source.adapter else []:
            print(line, flush=True)
        parts = isinstance(origin, TextCheckpoint | GptqCheckpoint)
        writes = bool(source.adapter) or parts or bool(surplus_head(origin))
        made = pipeline.sixteen_bit.is_file()  # by an earlier try
        twice = not made and preflight.is_written_twice(origin.folder, source.adapter)
        places = pipeline.work, root / "models"
        print(preflight.check(origin, writes, todo, settings.keep, *places, twice), flush=True)
    failed = [name for kind in types if not _make(pipeline, kind, name := f"{source.name}-{kind}", root)]
    _print_costs(pipeline)
    for name in failed:
        print(f"FAILED: {root / 'models' / name}.unverified; {name}.unverified.json has all of its checks")
    if not failed:
        model = f"{source.name} {types[0]}"  # in the menu; another root has a menu of its own
        if root.resolve() != ROOT:
            model = str(root / "models" / f"{source.name}-{types[0]}.gguf")
        print(f"Next: {command_line('app.py', ['--model', model])}")
    return 1 if failed else 0


def _make(pipeline: Pipeline, kind: str, name: str, root: Path) -> bool:
    """Have one verified file in models/, and its entry; False if it failed its checks."""
    final = root / "models" / f"{name}.gguf"
    tested_on = "the run's test split" if pipeline.source.prompts else "the project's own chats"
    about = {"base": pipeline.origin, "run": pipeline.source.name, "tested_on": tested_on}
    if not pipeline.is_made(kind):
        pipeline.convert()
        pipeline.refer()
        gguf = pipeline.quantise(kind)
        report = pipeline.verify(gguf, kind)
        publish(gguf, name, report, final.parent, about, move=gguf != pipeline.sixteen_bit)
        print(f"\n{name}\n{report.table()}", flush=True)
        if report.verdict == "fail":
            return False
        note: dict[str, Any] = {"table": report.table(), "quality": report.menu_quality()}
        pipeline.made(kind, final, note)
    else:
        note = pipeline.note_of(kind)
        print(f"\n{name} (made before)\n{note['table']}", flush=True)
    register(final, f"{pipeline.source.name} {kind}", kind, note["quality"], root / MADE, about)
    return True


def _print_costs(pipeline: Pipeline) -> None:
    print("\nWhat it took")
    for step, seconds, size in pipeline.costs:
        print(f"  {step:<20} {seconds:7.1f} s  {human_size(size) if size else ''}")


def check_recorded(source: Source, base: Path) -> list[str]:
    """Compare a run with its record of what it rendered its rows with; return lines on what is missing.

    An adapter alone has none. The template that a run was trained with is in its adapter's folder and wins
    over the base's, so a base whose template changed since is no obstacle. `base`: the folder of its
    checkpoint. One that was written anew from a GGUF has a vocabulary of its own. Raises ConvertError where
    something was changed, which the checks would take for a fault of the file.
    """
    path = source.folder / RECORD
    if not source.adapter or source.adapter.parent != source.folder or not path.is_file():
        return []
    record, files = read_json(path), TokenizerFiles(base, source.adapter)
    compared = (TEMPLATE,) if (base / MADE_FROM).is_file() else (TEMPLATE, *VOCABULARY)
    now = rendered_with(files.template(), (files.paths[name] for name in VOCABULARY if name in files.paths))
    for name in compared:
        if name in record and name in now and record[name] != now[name]:
            place = files.chat_template.found_in or source.adapter / "chat_template.jinja"
            where = str(place if name == TEMPLATE else files.paths[name])
            raise _changed(source.adapter, where, name == TEMPLATE and not files.template())
    rows = source.folder / PROMPTS
    if PROMPTS in record and not rows.is_file():
        return [f"note: {rows} is gone, so the project's own chats test the file, and not the run's"]
    if PROMPTS in record and file_hash(rows) != record[PROMPTS]:
        raise _changed(source.adapter, str(rows), False)
    return []


def _changed(adapter: Path, where: str, gone: bool) -> ConvertError:
    what = f"{where} is gone" if gone else f"{where} was changed"
    return ConvertError(
        f"{what} since {adapter.parent.name!r} was trained, and its rows can't test what is there now; bring "
        "it back, or copy the adapter out of its run, to be tested on the project's own chats: "
        f"cp -r {shlex.quote(str(adapter))} {shlex.quote(adapter.parent.name + '-now')}"
    )
