"""The outcome of all checks: as a table for the terminal, as JSON, and as a few words for the chat's menu."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from convert.verify.limits import Check, Verdict, worst
from core.log_probs import Scores

WIDTH = 100
_MARKS: dict[Verdict, str] = {"ok": "ok", "n/a": "-", "warn": "WARN", "fail": "FAIL"}
_WORDS: dict[Verdict, str] = {
    "ok": "GOOD: every check passed",
    "n/a": "NOT CHECKED",
    "warn": "GOOD, WITH WARNINGS",
    "fail": "BAD: don't use this file",
}


@dataclass(frozen=True)
class Report:
    """What was found about one file of llama.cpp's type `file_type`; `scores` by stage, its own last."""

    file_type: str
    checks: list[Check]
    scores: dict[str, Scores]

    @property
    def verdict(self) -> Verdict:
        return worst(check.verdict for check in self.checks)

    def table(self) -> str:
        """Plain text of at most 100 columns: verdict, scores by stage, then a line a check."""
        return "\n".join([_WORDS[self.verdict], "", *self._scores(), *lines_of(self.checks)])

    def _scores(self) -> list[str]:
        """KL divergence and the rest are those from the stage before; the first has none before it."""
        heads = ("loss", "perplexity", "mean KL", "99 % KL", "same top")
        lines = [f"{'stage':<12}" + "".join(f"{head:>12}" for head in heads)]
        for i, (stage, score) in enumerate(self.scores.items()):
            cells = [f"{score.loss:.4f}", f"{score.perplexity:.4g}"]
            cells += [f"{score.kl_mean:.5f}", f"{score.kl_99:.5f}", f"{score.same_top:.1%}"] if i else []
            lines.append(f"{stage:<12}" + "".join(f"{cell:>12}" for cell in cells))
        return [*lines, ""]

    def quality_json(self) -> dict[str, Any]:
        """For `<run>.quality.json`: the verdict, the scores by stage, and every check."""
        return {
            "verdict": self.verdict,
            "file_type": self.file_type,
            "scores": {stage: _finite(asdict(score)) for stage, score in self.scores.items()},
            "checks": [asdict(check) for check in self.checks],
        }

    def menu_quality(self) -> dict[str, float | int | str | bool | None]:
        """For `quality` in models.json, which the chat's menu shows."""
        score = self.scores.get(self.file_type)
        if score is None:
            return {}
        return {
            "perplexity": float(f"{score.perplexity:.3g}"),
            "kl": float(f"{score.kl_mean:.2g}"),
            "same_top": f"{score.same_top:.0%}".replace("%", " %"),
        }


def lines_of(checks: Sequence[Check]) -> list[str]:
    """A line a check, or several where it is long."""
    name_width = max(len(check.name) for check in checks)
    lines: list[str] = []
    for check in checks:
        begin = f"{_MARKS[check.verdict]:<4}  {check.name:<{name_width}}  "
        text = " ".join("; ".join(filter(None, (check.figure, check.reason))).split())
        lines += textwrap.wrap(text, WIDTH, initial_indent=begin, subsequent_indent=" " * len(begin))
    return lines


def _finite(scores: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {key: value if math.isfinite(value) else None for key, value in scores.items()}
