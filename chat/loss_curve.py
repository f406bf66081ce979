"""The loss of a run over its steps: read from metrics.jsonl, thinned out, and drawn as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, TypeGuard

from chat.found_files import read_lines

POINTS = 240  # of a line: more can't be told apart
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 280, 66, 14, 14, 52
MOST = 1e6  # a loss or a step beyond it isn't drawn: 10 times and 1,000 times what real runs have
MOST_STEPS = 10**9

Point = tuple[int, float]  # a step, and the loss there


@dataclass(frozen=True)
class Curve:
    """Losses by steps in order, thinned out to POINTS; `broke` is the first step whose loss is no number."""

    training: Sequence[Point] = ()
    validation: Sequence[Point] = ()
    last: int = 0  # step of the last line
    epoch: float = 0.0  # there
    broke: int | None = None
    whole: bool = True  # else the file was too long to be read as a whole

    @property
    def best(self) -> Point | None:
        """The evaluation with the lowest loss."""
        return min(self.validation, key=lambda point: point[1], default=None)


def read_curve(path: Path) -> Curve:
    """The curve in a run's metrics.jsonl. Raises FileNotFoundError and ChatError."""
    lines, whole = read_lines(path)
    known = sorted((line for line in lines if _step(line) is not None), key=lambda line: int(line["step"]))
    broken = (line["step"] for line in known if _is_no_number(line.get("loss", line.get("eval_loss"))))
    epochs = (epoch for line in reversed(known) if _is_figure(epoch := line.get("epoch")))
    return Curve(
        training=_thinned(list(_points(known, "loss"))),
        validation=_thinned(list(_points(known, "eval_loss")), keep=True),
        last=known[-1]["step"] if known else 0,
        epoch=next(epochs, 0.0),
        broke=next(broken, None),
        whole=whole,
    )


def _step(line: dict[str, Any]) -> int | None:
    step = line.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) and 0 <= step <= MOST_STEPS else None


def _is_figure(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _points(lines: Sequence[dict[str, Any]], key: str) -> Iterator[Point]:
    for line in lines:
        if _is_figure(value := line.get(key)):
            yield line["step"], float(value)


def _thinned(points: Sequence[Point], keep: bool = False) -> Sequence[Point]:
    """At most POINTS of them: of as many neighbours the mean, or, with `keep`, the lowest as it is."""
    size = math.ceil(len(points) / POINTS) or 1
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    if keep:
        return [min(group, key=lambda point: point[1]) for group in groups]
    return [(group[len(group) // 2][0], math.fsum(v for _, v in group) / len(group)) for group in groups]


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers between two: 1, 2 or 5 times a power of ten apart, about `count` of them."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    apart = next(times * power for times in (1, 2, 5, 10) if times * power >= rough * 0.999)
    return [n * apart for n in range(math.ceil(low / apart - 1e-9), math.floor(high / apart + 1e-9) + 1)]


def loss_svg(curve: Curve, unit: str, number: int) -> str:
    """The picture, empty where there is nothing to draw; `number` tells its parts' ids from another's."""
    points = [*curve.training, *curve.validation]
    if not points:
        return ""
    scale = _Scale.around(points)
    best = curve.best
    said = _description(curve, unit)
    parts = [*_axes(scale, unit), _line(scale, curve.training, "training")]
    parts.append(_line(scale, curve.validation, "validation"))
    for step, loss in curve.validation:
        x, y = scale.place(step, loss)
        name = f"validation loss {loss:.4g} at step {step:,}" + (", the best" if (step, loss) == best else "")
        ring = f'<circle class="best" cx="{x}" cy="{y}" r="8"/>' if (step, loss) == best else ""
        parts.append(f'<g>{ring}<circle cx="{x}" cy="{y}" r="3.5"/><title>{name}</title></g>')
    return (
        f'<svg class="loss" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="t{number} d{number}">'
        f'<title id="t{number}">Loss over the steps</title><desc id="d{number}">{escape(said)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _description(curve: Curve, unit: str) -> str:
    """The picture in words."""
    said = []
    for name, points in (("training", curve.training), ("validation", curve.validation)):
        if points:
            (first, start), (last, end) = points[0], points[-1]
            said.append(f"The {name} loss goes from {start:.4g} at step {first:,} to {end:.4g} at {last:,}.")
    if curve.best and len(curve.validation) > 1:
        said.append(f"The best validation loss is {curve.best[1]:.4g}, at step {curve.best[0]:,}.")
    return " ".join([*said, f"In {unit}."])


@dataclass(frozen=True)
class _Scale:
    """From steps and losses to the picture's own units."""

    steps: float
    low: float
    high: float

    @classmethod
    def around(cls, points: Sequence[Point]) -> _Scale:
        losses = [loss for _, loss in points]
        room = max((max(losses) - min(losses)) * 0.06, abs(max(losses)) * 0.01, 1e-6)
        return cls(max(1, max(step for step, _ in points)), min(losses) - room, max(losses) + room)

    def place(self, step: float, loss: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / self.steps
        y = TOP + (HEIGHT - TOP - BOTTOM) * (self.high - loss) / (self.high - self.low)
        return round(x, 1), round(y, 1)


def _axes(scale: _Scale, unit: str) -> Iterator[str]:
    floor, middle = HEIGHT - BOTTOM, (HEIGHT - BOTTOM + TOP) / 2
    for loss in ticks(scale.low, scale.high):
        _, y = scale.place(0, loss)
        yield f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>'
        yield f'<text x="{LEFT - 8}" y="{y}" dy=".35em" text-anchor="end">{loss:.4g}</text>'
    for step in ticks(0, scale.steps):
        if step == int(step):
            x, _ = scale.place(step, 0)
            end = "end" if x > WIDTH - RIGHT - 30 else "middle"
            yield f'<text x="{x}" y="{floor + 20}" text-anchor="{end}">{step:,.0f}</text>'
    under = f'x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}"'
    yield f'<text class="name" {under} text-anchor="middle">step</text>'
    turned = f'x="16" y="{middle}" transform="rotate(-90 16 {middle})"'
    yield f'<text class="name axis" {turned} text-anchor="middle">loss, {escape(unit)}</text>'


def _line(scale: _Scale, points: Sequence[Point], name: str) -> str:
    places = " ".join(f"{x},{y}" for x, y in (scale.place(*point) for point in points))
    return f'<polyline class="{name}" points="{places}"/>' if len(points) > 1 else _dot(scale, points, name)


def _dot(scale: _Scale, points: Sequence[Point], name: str) -> str:
    """A line of one point can't be seen."""
    places = (scale.place(*point) for point in points)
    return "".join(f'<circle class="{name}" cx="{x}" cy="{y}" r="3.5"/>' for x, y in places)
