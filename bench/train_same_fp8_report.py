"""What `bench.train_same_fp8` found, as Markdown tables and a picture, from its JSON alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from train.card import table
from train.recipe import LAST_IN_16_BIT

TEXT, TOUR = "text", "tour"
BASE16, NF4, FP8 = "16-bit base", "NF4", "NF4, FP8"
AGAIN, FAST = "NF4, the same again", "NF4, FP8, fast"
# What share of the steps, at the end, is in 16 bit; of the other arms in FP8, none
ENDS = {f"{FP8}, the last {share:.0%} in 16 bit": share for share in (0.1, 0.2, 0.3, 0.5)}
(END,) = (arm for arm, share in ENDS.items() if share == LAST_IN_16_BIT)  # as precision: fp8 trains
STEPS, WARM = 300, 10
SCORES = ("test_loss", "format_kept", "author_right_seen", "author_right_unseen", "memorised")

Run = dict[str, Any]
Arms = dict[str, dict[int, Run]]  # by arm and seed
Content = dict[str, Any]


def key_of(study: str, base: str, arm: str, seed: int) -> str:
    """The name of a run."""
    return f"{study}/{base}/{arm}/{seed}"


def arms_of(content: Content, study: str, base: str) -> Arms:
    """The runs of one base in one study that there are."""
    found: Arms = {}
    for key, run in content["runs"].items():
        of_study, of_base, arm, seed = key.split("/")
        if (of_study, of_base) == (study, base):
            found.setdefault(arm, {})[int(seed)] = run
    return found


def final(run: Run) -> float:
    """The held-out loss after the last step."""
    losses: dict[str, float] = run["held out"]
    return losses[max(losses, key=int)]


def finals(arms: Arms, arm: str) -> list[float]:
    """Those of an arm, by seed."""
    return [final(run) for _, run in sorted(arms.get(arm, {}).items())]


def pairs_of(arms: Arms, one: str, other: str) -> list[tuple[Run, Run]]:
    """Runs of two arms with the same seed; of an arm and itself, all pairs of seeds."""
    if one == other:
        return list(combinations(arms.get(one, {}).values(), 2))
    seeds = sorted(arms.get(one, {}).keys() & arms.get(other, {}).keys())
    return [(arms[one][seed], arms[other][seed]) for seed in seeds]


def apart(pairs: Sequence[tuple[Run, Run]]) -> float:
    """How far the losses of one step are apart after the warm-up, on average (nats a token)."""
    return float(np.mean([np.abs(np.subtract(a["losses"], b["losses"])[WARM:]).mean() for a, b in pairs]))


def verdict(arms: Arms, arm: str = FP8) -> dict[str, Any] | None:
    """Whether an arm's mean final held-out loss lies between the lowest and the highest of 16 bit's.

    `outside`: by how much it doesn't; of the seeds, `each` says which do. None where runs are missing.
    """
    exact, rough = finals(arms, NF4), finals(arms, arm)
    if len(exact) < 2 or len(exact) != len(rough):
        return None
    low, high, mean = min(exact), max(exact), statistics.mean(rough)
    return {
        "spread": high - low,
        "difference": mean - statistics.mean(exact),
        "outside": max(low - mean, mean - high, 0.0),
        "each": [low <= loss <= high for loss in rough],
    }


def report(content: Content) -> str:
    """All tables."""
    return "\n\n".join(tables(content))


def tables(content: Content) -> list[str]:
    """Those that there is something to say in."""
    bases = content["settings"]["bases"]
    made = [_losses(content, bases), _verdicts(content, bases), _shares(content, bases)]
    made += [_curves(content, bases), _gradients_together(content, bases)]
    made += [_gradients(content, bases), _tour(content, bases[0])]
    return [each for each in made if each]


def _losses(content: Content, bases: Sequence[str]) -> str:
    rows = []
    for base in bases:
        arms = arms_of(content, TEXT, base)
        for arm in (BASE16, NF4, FP8, END):
            losses = finals(arms, arm)
            shown = ", ".join(f"{loss:.4f}" for loss in losses)
            if losses:
                begun = next(iter(arms[arm].values()))["held out"]["0"]
                rows.append((base, arm, f"{begun:.4f}", shown, f"{statistics.mean(losses):.4f}"))
    return table(("held-out loss", "arm", "before", "after, by seed", "mean"), rows)


def _verdicts(content: Content, bases: Sequence[str]) -> str:
    rows = []
    for name, study in (("", TEXT), (", the tour", TOUR)):
        for base in bases:
            arms = arms_of(content, study, base)
            for arm in (FP8, END):
                if found := verdict(arms, arm):
                    figures = (f"{found['spread']:.4f}", f"{found['difference']:+.4f}")
                    inside = f"{sum(found['each'])} of {len(found['each'])}"
                    rows.append((base + name, arm, *figures, _where(found), inside))
    head = ("16 bit's seeds, lowest to highest", "its mean minus 16 bit's", "its mean", "its seeds within")
    return table(("held-out loss", "arm", *head), rows)


def _where(found: dict[str, Any]) -> str:
    """Where the mean lies, beside 16 bit's seeds."""
    side = "higher" if found["difference"] > 0 else "lower"
    return f"{side} by {found['outside']:.5f}" if found["outside"] else "within"


def _shares(content: Content, bases: Sequence[str]) -> str:
    """What each share in 16 bit brings."""
    rows = []
    for arm, share in ({FP8: 0.0} | ENDS).items():
        verdicts = [verdict(arms_of(content, TEXT, base), arm) for base in bases]
        if all(verdicts):
            rows.append((f"{share:.0%}", *(f"{v['difference']:+.4f}, {_where(v)}" for v in verdicts if v)))
    return table(("steps in 16 bit at the end", *bases), rows)


def _curves(content: Content, bases: Sequence[str]) -> str:
    compared = {
        "FP8 and 16 bit": (FP8, NF4),
        "two seeds in 16 bit": (NF4, NF4),
        "NF4 and 16-bit base": (NF4, BASE16),
        "16 bit, the same run twice": (AGAIN, NF4),
        "FP8, fast and lean": (FAST, FP8),
    }
    rows = []
    for base in bases:
        arms = arms_of(content, TEXT, base)
        found = {name: pairs_of(arms, *both) for name, both in compared.items()}
        if any(found.values()):
            rows.append((base, *(f"{apart(pairs):.4f}" if pairs else "" for pairs in found.values())))
    return table(("losses of a step apart", *compared), rows)


def gradients_of(content: Content, base: str) -> dict[str, Any]:
    """What `gradient_errors` found for a base; empty where it is missing."""
    found: dict[str, Any] = arms_of(content, TEXT, base).get(NF4, {}).get(0, {}).get("gradients", {})
    return found


def _gradients(content: Content, bases: Sequence[str]) -> str:
    """Of both matrices of each kind of projection: medians over the layers, and the highest."""
    rows: list[tuple[str, ...]] = []
    kinds: list[str] = []
    for base in bases:
        matrices = gradients_of(content, base).get("matrices", {})
        kinds = kinds or list(dict.fromkeys(kind.split()[0] for kind in matrices))
        for side in "AB" if matrices else "":
            errors = [[100 * error for _, error in matrices[f"{kind} {side}"]] for kind in kinds]
            shown = (f"{statistics.median(each):.0f} ({max(each):.0f})" for each in errors)
            rows.append((base, side, *shown))
    return table(("% off by layer, median (highest)", "", *kinds), rows)


def _gradients_together(content: Content, bases: Sequence[str]) -> str:
    rows = []
    for base in bases:
        found = gradients_of(content, base).get("all", {})
        rows += [(base, name, f"{cosine:.3f}", f"{error:.0%}") for name, (cosine, error) in found.items()]
    return table(("the whole gradient", "", "cosine with 16 bit's", "relative error"), rows)


def _tour(content: Content, base: str) -> str:
    arms = arms_of(content, TOUR, base)
    rows = []
    for arm in (BASE16, NF4, FP8, END):
        runs = [run["scores"] for _, run in sorted(arms.get(arm, {}).items())]
        if runs:
            shown = (", ".join(f"{run[name]:.3f}" for run in runs if name in run) for name in SCORES)
            rows.append((arm, *shown))
    return table(("the tour, by seed", *(name.replace("_", " ") for name in SCORES)), rows)


def draw(content: Content, to: Path) -> None:
    """Above, how far the losses are from NF4's in 16 bit; below, the gradients' errors by layer."""
    from matplotlib.figure import Figure

    from core.files import whole

    bases = content["settings"]["bases"]
    figure = Figure(figsize=(5.4 * len(bases), 7.5), layout="constrained")
    above, below = figure.subplots(2, len(bases), squeeze=False)
    for base, losses, errors in zip(bases, above, below, strict=True):
        losses.set_title(base)
        _draw_losses(losses, arms_of(content, TEXT, base))
        _draw_errors(errors, gradients_of(content, base).get("matrices", {}))
    for each, columns in ((above[0], 2), (below[0], 1)):
        if each.get_legend_handles_labels()[1]:
            each.legend(fontsize="x-small", ncols=columns)
    with whole(to) as partial:
        figure.savefig(partial, format="png", dpi=100)


def _draw_errors(axes: Any, matrices: dict[str, list[list[float]]]) -> None:
    """Of A and of B, the median of the kinds of projection and what they span; and of v_proj, A alone."""
    axes.set(xlabel="layer", ylabel="gradient's relative error in FP8 (%)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    for side, colour in (("A", "C1"), ("B", "C0")):
        of_side = [each for kind, each in matrices.items() if kind.endswith(side)]
        errors = [[100 * error for _, error in each] for each in of_side]
        if errors:
            layers = range(len(errors[0]))
            axes.fill_between(layers, np.min(errors, 0), np.max(errors, 0), alpha=0.2, color=colour, lw=0)
            label = f"{side}: median of the projections, and their span"
            axes.plot(layers, np.median(errors, 0), color=colour, lw=1.5, label=label)
    if highest := matrices.get("v_proj A"):  # in single layers
        axes.plot([100 * error for _, error in highest], "--", color="C3", lw=1, label="A of v_proj")
    axes.set_ylim(bottom=0)


def _draw_losses(axes: Any, arms: Arms) -> None:
    """Means of the seeds, smoothed over so many steps; the band is 16 bit's seeds, each minus their mean."""
    smooth = 20
    if not arms.get(NF4):
        return

    def smoothed(curve: Any) -> Any:
        return np.convolve(curve, np.ones(smooth) / smooth, mode="valid")

    seeds = np.array([run["losses"] for run in arms[NF4].values()])
    mean = seeds.mean(0)
    lines = np.array([smoothed(seed - mean) for seed in seeds])
    steps = np.arange(lines.shape[1]) + smooth
    axes.fill_between(
        steps, lines.min(0), lines.max(0), alpha=0.3, color="C7", label="NF4, 16 bit, its seeds"
    )
    for arm, colour in ((FP8, "C3"), (END, "C2"), (BASE16, "C0")):
        if runs := arms.get(arm):
            curve = np.mean([run["losses"] for run in runs.values()], 0)
            axes.plot(steps, smoothed(curve - mean), color=colour, lw=1.2, label=f"{arm}, mean")
    axes.set(xlabel="step", ylabel=f"loss minus NF4's in 16 bit, over {smooth} steps")
