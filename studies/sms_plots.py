"""What the study of marketing messages leaves: its pictures, and the report with them, from its JSON."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from core.files import write_json, write_whole
from core.sms import FIELDS
from studies.sms_report import Content, arms, calibration, cells, extractors, markdown
from train.tasks.sms import calibration_bins

COLOURS = {"rules": "#4f7fb8", "model": "#b8420c", "hybrid": "#2f7d4f"}
BITS_COLOURS = {"16": "#4f7fb8", "8": "#7b5ea7", "4": "#b8420c"}
BASELINE, CHAT = "#8a8f98", "#2f7d4f"


def pictures(content: Content) -> dict[str, Figure]:
    """The pictures, by their files' names."""
    return {
        "features.png": _features_picture(extractors(content)),
        "reached.png": _reached_picture(arms(content)),
        "calibration.png": _calibration_picture(content),
    }


def _features_picture(found: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(9, 5), layout="constrained")
    shown = [name for name in COLOURS if name in found]
    for axes, side, title in zip(
        figure.subplots(1, 2, sharey=True), (0, 1), ("precision", "recall"), strict=True
    ):
        for at, name in enumerate(shown):
            source = found.get(f"{name}, the same messages", found[name])
            values = [source["fields"][field][side] or 0 for field in FIELDS]
            places = np.arange(len(FIELDS)) + (at - (len(shown) - 1) / 2) * 0.25
            axes.barh(
                places,
                values,
                height=0.23,
                color=COLOURS[name],
                label=f"{name}, {source['messages']} messages",
            )
        axes.set(xlim=(0, 1), xlabel=f"{title}, share", yticks=range(len(FIELDS)))
        axes.set_yticklabels([field.replace("_", " ") for field in FIELDS])
        axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.suptitle("Features found in synthetic messages", fontsize=11)
    return figure


def _colour(name: str) -> str:
    if name.startswith("LoRA, "):
        return BITS_COLOURS[name.removeprefix("LoRA, ").split()[0]]
    return CHAT if name.startswith("untuned") else BASELINE


def _reached_picture(found: Mapping[str, Mapping[str, list[float]]]) -> Figure:
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for place, (name, figures) in enumerate(found.items()):
        values = figures["reached"]
        error = statistics.stdev(values) if len(values) > 1 else 0
        axes.errorbar(statistics.fmean(values), place, xerr=error, fmt="o", capsize=3, color=_colour(name))
    axes.axvline(0, color="#bbbbbb", linewidth=1)
    axes.axvline(1, color="#bbbbbb", linewidth=1, linestyle="--")
    axes.set(yticks=range(len(found)), yticklabels=list(found))
    axes.set_xlabel(
        "share reached: 0 is the mean rate, 1 the generator's truth; bars: standard deviation of seeds"
    )
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("How much of what can be known about a purchase is found (synthetic)", fontsize=11)
    return figure


def _calibration_picture(content: Content) -> Figure:
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linestyle="--", linewidth=1)
    pooled: dict[str, tuple[list[float], list[int]]] = {}
    for key, cell in cells(content, "tuned").items():
        if "checkpointing" not in key:
            pooled.setdefault(f"LoRA, {key.rpartition('/')[0]}", ([], []))[0].extend(cell["likely"])
            pooled[f"LoRA, {key.rpartition('/')[0]}"][1].extend(cell["converted"])
    for cell in cells(content, "chat").values():
        pooled.setdefault("untuned, through the chat", ([], []))[0].extend(cell["likely"])
        pooled["untuned, through the chat"][1].extend(cell["converted"])
    for name, (likely, told) in pooled.items():
        bins = calibration_bins(told, likely).values()
        said, was, rows = (np.array(values) for values in zip(*bins, strict=True))
        error = np.sqrt(was * (1 - was) / rows)
        axes.errorbar(
            said, was, yerr=error, fmt="o-", capsize=3, markersize=4, color=_colour(name), label=name
        )
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="likelihood that was given",
        ylabel="share that bought (± standard error)",
    )
    axes.spines[["top", "right"]].set_visible(False)
    if pooled:
        axes.legend(frameon=False, fontsize=8)
    axes.set_title("Calibration (synthetic)", fontsize=11)
    return figure


def write_report(content: Content, folder: Path) -> Path:
    """Write report.md, its pictures and calibration.json; return the report's path."""
    for name, figure in pictures(content).items():
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
        write_whole(folder / name, picture.getvalue())
    if found := calibration(content):
        write_json(folder / "calibration.json", found)
    write_whole(folder / "report.md", "# Marketing messages\n\n" + markdown(content))
    return folder / "report.md"
