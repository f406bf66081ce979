"""The study's pictures, and the report with them, from its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bench.comparison_plots import bars, figure, legend_below, save
from core.files import write_json, write_whole
from core.sms import FIELDS
from studies.sms_report import CHAT, Content, arms, calibration, cells, extractors, markdown
from train.tasks.sms_calibration import calibration_bins, draw_calibration

COLOURS = {"rules": "#4f7fb8", "model": "#b8420c", "hybrid": "#2f7d4f"}
BITS_COLOURS = {"16": "#4f7fb8", "8": "#7b5ea7", "4": "#b8420c"}
BASELINE, UNTUNED = "#8a8f98", "#2f7d4f"


def write_report(content: Content, folder: Path, page: str = "report.md", pictures: str = "") -> Path:
    """Write the page into `folder`, and its pictures, whose names begin with `pictures`; return its path.

    calibration.json, which the chat reads, is beside the pictures.
    """
    drawn = {
        "features": draw_features(extractors(content)),
        "reached": draw_reached(arms(content)),
        "calibration": calibrations(content),
    }
    save(drawn, folder, pictures)
    if not pictures and (found := calibration(content)):
        write_json(folder / "calibration.json", found)
    write_whole(folder / page, markdown(content, pictures))
    return folder / page


def draw_features(found: Mapping[str, Any]) -> Figure:
    """Precision and recall of each field, by extractor."""
    made, axes = figure(2, "Features found in synthetic messages", (4.5, 5))
    shown = [name for name in COLOURS if name in found]
    for each, side, title in zip(axes, (0, 1), ("precision", "recall"), strict=True):
        for at, name in enumerate(shown):
            source = found.get(f"{name}, the same messages", found[name])
            values = [source["fields"][field][side] or 0 for field in FIELDS]
            places = np.arange(len(FIELDS)) + (at - (len(shown) - 1) / 2) * 0.25
            label = f"{name}, {source['messages']} messages"
            each.barh(places, values, height=0.23, color=COLOURS[name], label=label)
        each.set(xlim=(0, 1), xlabel=f"{title}, share", yticks=range(len(FIELDS)))
        each.set_yticklabels([field.replace("_", " ") for field in FIELDS] if side == 0 else [])
        each.invert_yaxis()
    legend_below(made, axes)
    return made


def _colour(name: str) -> str:
    if name.startswith("LoRA, "):
        return BITS_COLOURS[name.removeprefix("LoRA, ").split()[0]]
    return UNTUNED if name == CHAT else BASELINE


def draw_reached(found: Mapping[str, Mapping[str, list[float]]]) -> Figure:
    """The share of what can be known, by arm."""
    made, (axes,) = figure(1, "How much of what can be known about a purchase is found (synthetic)", (9, 5))
    for at, (name, figures) in enumerate(found.items()):
        bars(axes, [at], [figures["reached"]], sideways=True, fmt="o", color=_colour(name))
    for line, style in ((0, "-"), (1, "--")):
        axes.axvline(line, color="#bbbbbb", linewidth=1, linestyle=style)
    axes.set(yticks=range(len(found)), yticklabels=list(found))
    axes.set_xlabel(
        "share reached: 0 is the mean rate, 1 the generator's truth; bars: lowest to highest seed"
    )
    axes.invert_yaxis()
    return made


def calibrations(content: Content) -> Figure:
    """What was said and what happened, of tuned arms and of the chat's model, all seeds together."""
    pooled: dict[str, tuple[list[float], list[int]]] = {}
    tuned = {f"LoRA, {key.rpartition('/')[0]}|{key}": c for key, c in cells(content, "tuned").items()}
    chat = {f"{CHAT}|{seed}": cell for seed, cell in cells(content, "chat").items()}
    for key, cell in (tuned | chat).items():
        likely, told = pooled.setdefault(key.partition("|")[0], ([], []))
        likely.extend(cell["likely"])
        told.extend(cell["converted"])
    # Checkpointing changes what an arm costs, and nothing else.
    found = {name: of for name, of in pooled.items() if "checkpointing" not in name}
    bins = {name: calibration_bins(told, likely) for name, (likely, told) in found.items()}
    return draw_calibration(bins, {name: _colour(name) for name in bins}, "Calibration (synthetic)")
