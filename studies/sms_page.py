"""What the study of marketing messages says and draws; all of it from its results.json."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench import full_size, likelihoods, messages
from bench.cells import of_kind
from bench.comparison import SEEDS, Section, apart, given, spread
from bench.comparison_plots import drawn
from bench.study import Content, paragraphs, shown
from train.tasks.sms_calibration import calibration
from train.tasks.sms_truth import TRUTH, share_reached

PAGE = Path(__file__).with_name("sms_page.md")
CHAT, CONTROL = "untuned, through the chat", "LoRA, 16 bit"
COLOURS = {CHAT: "#2f7d4f", CONTROL: "#4f7fb8", "LoRA, 8 bit": "#7b5ea7", "LoRA, 4 bit": "#b8420c"}
OTHER = "#8a8f98"  # what needs no language model
CHECKPOINTING = ", checkpointing"  # which changes what an arm costs, and nothing else


def looks(content: Content) -> dict[float, float]:
    """By learning rate, the log-loss on campaigns that aren't tested."""
    found = {float(rate): cell["log_loss"] for rate, cell in of_kind(content, "rate").items()}
    return dict(sorted(found.items()))


def best_rate(content: Content) -> float:
    """The learning rate of the tuned arms: of several, the best one."""
    found = looks(content)
    return min(found, key=found.__getitem__) if found else float(content["settings"]["rates"][0])


def runs(content: Content) -> dict[str, list[dict[str, Any]]]:
    """By arm its runs, as bench/likelihoods.py has them: baselines, the chat's model, the tuned arms."""
    found: dict[str, list[dict[str, Any]]] = {}
    for kind in ("baselines", "chat", "tuned"):
        for key, cell in of_kind(content, kind).items():
            arm, _, seed = key.rpartition("/")
            beside = content["cells"].get(f"baselines/{seed}", {})
            named = {"baselines": cell, "chat": {CHAT: cell}, "tuned": {f"LoRA, {arm}": cell}}[kind]
            for name, run in named.items():
                more = {"seed": int(seed), "reached": share_reached(run, beside)}
                found.setdefault(name, []).append(run | more)
    return found


def told(found: likelihoods.Runs) -> list[str]:
    """The arms that sentences and calibration are of."""
    return [arm for arm in found if arm != TRUTH and CHECKPOINTING not in arm]


def answer(found: likelihoods.Runs, rows: int) -> dict[str, str]:
    """What the page says in short, as far as it is known."""
    share = {arm: v for arm, of in found.items() if (v := given(run["reached"] for run in of))}
    tuned = [share[arm] for arm in told(found) if arm.startswith("LoRA, ") and arm in share]
    plain = {arm: of for arm, of in share.items() if arm.endswith(f", {rows} rows")}
    if not tuned or not plain:
        return {}
    seeds, means = [value for of in tuned for value in of], [statistics.fmean(of) for of in tuned]
    best = max(plain, key=lambda arm: statistics.fmean(plain[arm]))
    return {
        "means": f"{min(means):z.2f} to {max(means):z.2f}",
        "seeds": f"{min(seeds):z.2f} to {max(seeds):z.2f}",
        "best": best.partition(",")[0],
        "found": spread(plain[best], "{:z.2f}"),
        "overlap": "do not overlap" if apart(seeds, plain[best]) else "overlap",
        "untuned": spread(share.get(CHAT, []), "{:z.2f}", nothing=""),
    }


def sections(content: Content) -> dict[str, Section]:
    """The parts of the page by their names."""
    rules, found, full = content["cells"].get("rules"), runs(content), of_kind(content, "full")
    replies = {int(number): reply for number, reply in of_kind(content, "asked").items()}
    return {
        "features": messages.section(messages.extractors(rules, replies) if rules else {}),
        "likelihoods": likelihoods.section(found, told(found), CONTROL),
        "full": Section([full_size.training_table(full)]),
    }


def page(content: Content, pictures: Mapping[str, str]) -> str:
    """The page's text; `pictures`: the files of the plots."""
    settings, tried, found = content["settings"], looks(content), runs(content)
    values: dict[str, Any] = settings | answer(found, settings["train"])
    values |= {f"{name}_plot": path for name, path in pictures.items()}
    for name, kind in (("made", "tuned"), ("chat_made", "chat")):
        cell = content["cells"].get(name, {}) if of_kind(content, kind) else {}
        values |= {f"{name}_{what}": said for what, said in cell.items()}
        values[f"{name}_command"] = shown(cell.get("command", ""))
    values |= {"epochs": f"{settings['epochs']:g}", "rate": f"{best_rate(content):g}"}
    values["looks"] = ", ".join(f"{loss:.3f} at {rate:g}" for rate, loss in tried.items())
    values |= {"runs": len(of_kind(content, "tuned")), "sized": len(of_kind(content, "full"))}
    values["edge"] = likelihoods.edge(tried)
    values["planned"] = 3 * (len(SEEDS) + settings["checkpointed_seeds"])  # at 16, 8 and 4 bit
    return paragraphs(PAGE, values, sections(content))


def draw(content: Content) -> dict[str, Figure]:
    """The plots of what there is."""
    found = runs(content)
    colours = {arm: {"color": COLOURS.get(arm.removesuffix(CHECKPOINTING), OTHER)} for arm in found}
    return drawn(sections(content), messages.DRAWN) | likelihoods.plots(found, told(found), colours)


def calibration_json(content: Content) -> dict[str, Any]:
    """How the likelihoods of the chat's model came true, for its page /sms."""
    of = likelihoods.pooled(runs(content), [CHAT]) if of_kind(content, "chat") else {}
    found = calibration(content["cells"]["chat_made"]["model"], *of[CHAT]) if of else {}
    return {"calibration.json": found} if found else {}
