"""A run's files for people: prompts before and after, the picture of the loss, and the model card."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.files import write_whole
from train.card import write_card
from train.markdown_table import table

__all__ = ["plot_loss", "write_card", "write_samples"]

_TRAINING, _VALIDATION = "#9db7d5", "#c2410c"


def write_samples(
    path: Path, prompts: Sequence[list[dict[str, str]]], before: Sequence[str], after: Sequence[str]
) -> None:
    """Write a Markdown table of chats (without their last reply) with the replies before and after."""
    rows = []
    for chat, *replies in zip(prompts, before, after, strict=True):
        turns = [message["content"] for message in chat]
        if len(chat) > 1:
            turns = [f"{message['role']}: {message['content']}" for message in chat]
        rows.append(("\n".join(turns), *(reply or "(empty)" for reply in replies)))
    intro = "# Samples\n\nThe same prompts, before and after the training; greedy replies.\n\n"
    write_whole(path, intro + table(("prompt", "before", "after"), rows) + "\n")


def plot_loss(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a run's metrics as a PNG: training and validation loss in nats a token, the best point marked."""
    from matplotlib.figure import Figure  # takes half a second; draws on Agg without pyplot's global state
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    steps, losses = _line(metrics, "loss")
    axes.plot(steps, losses, color=_TRAINING, linewidth=1.4, label="training")
    steps, losses = _line(metrics, "eval_loss")
    label = "validation"
    if len(losses) > 1:
        best, at = min(zip(losses, steps, strict=True))
        label = f"validation, best {best:.3f} at step {at}"
        axes.plot([at], [best], marker="o", markersize=12, fillstyle="none", color=_VALIDATION)
    axes.plot(steps, losses, color=_VALIDATION, linewidth=2, marker="o", markersize=4, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="step", ylabel="loss (nats a token)")
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_whole(path, picture.getvalue())


def _line(metrics: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the lines that hold a finite `key`."""
    points = [(line["step"], line[key]) for line in metrics if math.isfinite(line.get(key, math.nan))]
    return [step for step, _ in points], [value for _, value in points]
