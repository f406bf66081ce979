"""What a check finds: one line of `<run>.quality.json` and of the printed table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail", "n/a"]

_GRAVITY: tuple[Verdict, ...] = ("n/a", "ok", "warn", "fail")


@dataclass(frozen=True)
class Check:
    """`figure` is what was measured, with its unit; `reason` says what is wrong, empty when all is well."""

    name: str
    verdict: Verdict
    figure: str
    reason: str = ""


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the gravest of `verdicts`; n/a where there is none."""
    return max(verdicts, key=_GRAVITY.index, default="n/a")
