"""What bench/inference.py measured, as tables and a plot: by place, and there by batch and precision."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping
from datetime import date
from operator import itemgetter
from typing import Any

from bench.comparison import Measure, Panel, Section, given, table_of
from bench.figures import by_arm
from bench.inference import GGUF_TYPES
from core.machine import thread_count

FILES = {f"llama.cpp {kind}": kind for kind in GGUF_TYPES}
FILES_DRAWN = {
    name: {"color": colour, "marker": "s", "linestyle": "--"}
    for name, colour in zip(FILES, ("#aa4499", "#ddaa33", "#44bbcc", "#882255"), strict=True)
}
NO_GGUF = "llama.cpp wasn't there, so there are no GGUF files in this table."
ABOUT = "about processor"  # the cell of `processor_now`


def measures(found: Mapping[str, Mapping[str, Any]]) -> list[Measure]:
    """Speed, time and memory of what was measured, by what each is called; medians over the repeats."""
    batches = list(dict.fromkeys(batch for cell in found.values() for batch in cell["batches"]))

    def by_batch(name: str, form: str, figure: Callable[[Any], list[float]]) -> Measure:
        rows = {
            batch: {
                arm: figure(cell["batches"][batch]) for arm, cell in found.items() if batch in cell["batches"]
            }
            for batch in batches
        }
        return Measure(name, "chats at once", rows, form, statistics.median)

    stored = {"": {arm: [cell["weights_gb"]] for arm, cell in found.items()}}
    return [
        by_batch("tokens/s, all together", "{:.0f}", itemgetter("tokens_per_s")),
        by_batch("first token, s", "{:.3f}", itemgetter("first_s")),
        by_batch("GB at the peak", "{:.2f}", lambda of: given([of["memory_gb"]])),
        Measure("GB stored", "chats at once", stored, "{:.3f}"),
    ]


def processor_now() -> dict[str, Any]:
    """What a processor's figures depend on: its cores, and how many other programs keep busy."""
    load = round(os.getloadavg()[0], 1)  # of this and other programs, in cores
    return {"cores": thread_count(), "date": date.today().isoformat(), "load": load}


def _said_of_load(processor: Mapping[str, Any]) -> str:
    """What `processor_now` found, in words."""
    return (
        f"The processor's figures were measured on {processor['date']}, with a load of "
        f"{processor['load']:g} on {processor['cores']} cores when it began. Above the number of cores, "
        "other programs took a share: speeds are lower, and ranges wider, than they would be alone."
    )


def section(cells: Mapping[str, Any], device: str, arms: Mapping[str, str], cores: int) -> Section:
    """The cells speed|<arm>, measured on the study's device, and processor|<arm> and gguf|<type>, on the
    processor; `arms` has by name what it is in keys, and `cores` were there where nothing else is said."""
    about = cells.get(ABOUT)
    processor = f"processor ({about['cores'] if about else cores} cores)"
    found = {
        kind: {name: of[0] for name, of in by_arm(cells, kind, names).items() if of}
        for kind, names in (("speed", arms), ("processor", arms), ("gguf", FILES))
    }
    places = {processor if device == "CPU" else device: found["speed"]}
    places[processor] = places.get(processor, {}) | found["processor"] | found["gguf"]
    made = {where: measures(of) for where, of in places.items() if of}
    said = [f"On {where}:\n\n{table_of(each, places[where])}" for where, each in made.items()]
    if made:
        lacking = measures(found["speed"])[0].lacking(arms, f" on {device}")
        said += [lacking, "" if found["gguf"] else NO_GGUF, _said_of_load(about) if about else ""]
        said.append(cells.get("about", {}).get("note", ""))  # on how these figures were measured
    panels = [Panel(each[0], joined=True, log=True, title=where) for where, each in made.items()]
    return Section(said, "Writing speed by precision and batch", panels)
