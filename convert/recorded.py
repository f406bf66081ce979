"""A run's own record of what it rendered its rows with, beside what is there now.

The template that a run was trained with is in its adapter's folder and wins over the base's, so a base whose
template changed since is no obstacle.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from convert.base import MADE_FROM
from convert.source import Source
from convert.tokenizer_files import TokenizerFiles
from core.errors import ConvertError
from core.files import PROMPTS, RECORD, TEMPLATE, VOCABULARY, file_hash, read_json, rendered_with


def check_recorded(source: Source, base: Path) -> list[str]:
    """Compare a run with its record; return lines on what is missing. An adapter alone has none.

    `base`: the folder of its checkpoint. One that was written anew from a GGUF has a vocabulary of its own.
    Raises ConvertError where something was changed, which the checks would take for a fault of the file.
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
