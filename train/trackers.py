"""The metrics for those who watch elsewhere: TensorBoard and trackio, by `SFTConfig.report_to`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from core.errors import TrainError

Track = Callable[[dict[str, Any]], None]
PROJECT = "tune2chat"


def trackers(names: Sequence[str], folder: Path) -> list[Track]:
    """Functions that take a line of metrics.jsonl each. Raises TrainError if a library isn't there."""
    makers = {"tensorboard": _tensorboard, "trackio": _trackio}
    try:
        return [makers[name](folder) for name in names]
    except ImportError as error:
        cure = f"pip install {error.name}"
        raise TrainError(f"SFTConfig.report_to needs {error.name}, which isn't there: {cure}") from None


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in line.items() if key != "step" and isinstance(value, int | float)}


def _tensorboard(folder: Path) -> Track:
    """Event files in `<run>/tensorboard`: tensorboard --logdir outputs"""
    import tensorboard  # noqa: F401 (torch's own message names no package)
    from torch.utils.tensorboard.writer import SummaryWriter

    new: Any = SummaryWriter  # untyped
    writer = new(folder / "tensorboard")

    def track(line: dict[str, Any]) -> None:
        for key, value in _numbers(line).items():
            writer.add_scalar(key, value, line["step"])
        writer.flush()

    return track


def _trackio(folder: Path) -> Track:
    """A local project that `trackio show` displays."""
    import trackio

    run: Any = trackio.init(project=PROJECT, name=folder.name, embed=False)

    def track(line: dict[str, Any]) -> None:
        run.log(_numbers(line), step=line["step"])

    return track
