"""Marketing messages and whether they sold: a table with the column `message` and what came of it.

| columns | meaning |
|---|---|
| `converted` | 0 or 1 (or no, yes, false, true): the row is one reader |
| `conversion_rate` | the share of readers who bought: 0.031 or 3.1% |
| `sends`, `conversions` | the same share as two numbers |
| `campaign` | its messages stay in one split; without it, equal messages do |

Of several, the first in this table counts. The assistant answers with one word of LABELS, so the model's
likelihood of a purchase is that of `yes` against `no`. A share becomes one answer by a draw: `yes` with that
probability, decided by a hash of the row, the same each time. So the shares themselves are what the trained
likelihoods aim at; a threshold would make them something else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline

from core.errors import TrainError
from core.sms import LABELS, prompt
from train.examples import Example, Loaded
from train.sections import Data
from train.table import Row, Table, group_of, text_of
from train.tasks.scored import Scored, prompt_of

YES, NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")


def read(table: Table, data: Data, loaded: Loaded) -> None:
    """Add a question and its answer a row. Raises TrainError for columns that aren't there."""
    table.require("message")
    if data.format == "text":
        raise TrainError("format: text has no meaning for the task sms; leave format out")
    share = _find_share(table)
    campaign = "campaign" if "campaign" in table.columns else "message"
    for number, row in enumerate(table.rows, 1):
        message, value = text_of(row, "message").strip(), share(row)
        if not message:
            loaded.leave_out("no message", number)
        elif value is None or not 0 <= value <= 1:
            loaded.leave_out("no share of conversions between 0 and 1", number, repr(value))
        else:
            label = LABELS[0] if _drawn(message, text_of(row, "campaign"), value) else LABELS[1]
            turns = [("user", prompt(message)), ("assistant", label)]
            group = group_of(row, data, text_of(row, campaign) or message)
            chat = [{"role": role, "content": content} for role, content in turns]
            loaded.examples.append(Example(chat, "", group, row=number))


def _find_share(table: Table) -> Callable[[Row], float | None]:
    if "converted" in table.columns:
        return _converted
    if "conversion_rate" in table.columns:
        return _rate
    if "sends" in table.columns or "conversions" in table.columns:
        table.require("sends", "conversions")
        return _counted
    raise TrainError(
        f"{table.where} doesn't say which messages sold: it has {', '.join(table.columns)}; add a column "
        "'converted' (0 or 1), 'conversion_rate', or 'sends' and 'conversions'"
    )


def _converted(row: Row) -> float | None:
    cell = text_of(row, "converted").strip().lower()
    return 1.0 if cell in YES else 0.0 if cell in NO else None


def _rate(row: Row) -> float | None:
    cell = text_of(row, "conversion_rate").strip()
    value = _number(cell.removesuffix("%"))
    return value / 100 if value is not None and cell.endswith("%") else value


def _counted(row: Row) -> float | None:
    sends, conversions = _number(text_of(row, "sends")), _number(text_of(row, "conversions"))
    return conversions / sends if sends and conversions is not None else None


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _drawn(message: str, campaign: str, probability: float) -> bool:
    digest = hashlib.sha256(f"{campaign}\0{message}\0{probability}".encode()).digest()
    return int.from_bytes(digest[:8]) < probability * 2**64


BINS = 10


def score(model: Scored, tests: list[Example], train: list[Example]) -> dict[str, float]:
    """Return `auc`, `log_loss` (nats), `brier` and `calibration_error`, those of the baselines, and the bins.

    The baselines' begin with `mean_rate_` and `tfidf_`. A bin of likelihoods that isn't empty gives
    `bin_<i>_predicted`, `bin_<i>_observed` (shares) and `bin_<i>_rows`, for the calibration's picture.
    """
    if not tests:
        return {}
    truth = [_converted_sms(example) for example in tests]
    chats = [example.messages[:-1] for example in tests]
    likely = [yes for yes, _ in model.label_probabilities(chats, list(LABELS))]
    scores = figures(truth, likely)
    for i, (predicted, observed, rows) in calibration_bins(truth, likely).items():
        scores |= {f"bin_{i}_predicted": predicted, f"bin_{i}_observed": observed, f"bin_{i}_rows": rows}
    for name, baseline in _baselines(tests, train).items():
        scores |= {f"{name}_{figure}": value for figure, value in figures(truth, baseline).items()}
    return scores


def figures(truth: Sequence[int], likely: Sequence[float]) -> dict[str, float]:
    """Score likelihoods against what happened (0 or 1); no `auc` where all rows are of one kind."""
    bins = calibration_bins(truth, likely).values()
    scores = {
        "log_loss": float(log_loss(truth, likely, labels=[0, 1])),
        "brier": float(brier_score_loss(truth, likely, labels=[0, 1], pos_label=1)),
        # Guo et al. 2017, arXiv 1706.04599, equation 3.
        "calibration_error": sum(rows * abs(said - was) for said, was, rows in bins) / len(truth),
    }
    return {"auc": float(roc_auc_score(truth, likely)), **scores} if len(set(truth)) == 2 else scores


def calibration_bins(truth: Sequence[int], likely: Sequence[float]) -> dict[int, tuple[float, float, int]]:
    """Sort rows into 10 equal bins; mean likelihood, observed rate and number of rows of those with any."""
    given, happened = np.asarray(likely), np.asarray(truth)
    places = np.minimum((given * BINS).astype(int), BINS - 1)  # 1.0 belongs to the last
    bins = {}
    for i in range(BINS):
        here = places == i
        if here.any():
            bins[i] = float(given[here].mean()), float(happened[here].mean()), int(here.sum())
    return bins


def _baselines(tests: list[Example], train: list[Example]) -> dict[str, list[float]]:
    """Likelihoods of the test rows by what the trained rows alone tell."""
    truth = [_converted_sms(example) for example in train]
    if len(set(truth)) < 2:
        return {}
    words = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
    words.fit([prompt_of(example) for example in train], truth)
    return {
        "mean_rate": [sum(truth) / len(truth)] * len(tests),
        "tfidf": words.predict_proba([prompt_of(example) for example in tests])[:, 1].tolist(),
    }


def _converted_sms(example: Example) -> int:
    return int(example.messages[-1]["content"].strip().lower() == LABELS[0])
