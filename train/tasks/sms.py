"""Marketing messages and whether they sold: a table with the column `message` and what came of it.

| columns | meaning |
|---|---|
| `converted` | 0 or 1 (or no, yes, false, true): the row is one reader |
| `conversion_rate` | the share of readers who bought: 0.031 or 3.1% |
| `sends`, `conversions` | the same share as two numbers |
| `campaign` | its messages stay in one split; without it, equal messages do |
| `probability` | how likely the reader truly was to buy, as a generator knows: for judging only |

Of the ways to say what came of it, the first in this table counts. The assistant answers with one word of
LABELS, so the model's likelihood of a purchase is that of `yes` against `no`. A share becomes one answer by a
draw: `yes` with that probability, decided by a hash of the row, the same each time. So the shares themselves
are what the trained likelihoods aim at; a threshold would make them something else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from core.errors import TrainError
from core.sms import LABELS, prompt
from train.examples import Example, Loaded
from train.sections import Data
from train.table import Row, Table, group_of, text_of
from train.tasks.scored import Scored, prompt_of
from train.tasks.sms_baselines import baselines
from train.tasks.sms_calibration import calibration_bins, scores_of

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
            group = group_of(row, data, text_of(row, campaign) or message)
            true = _number(text_of(row, "probability")) if "probability" in table.columns else None
            known = true if true is not None and 0 <= true <= 1 else None
            loaded.examples.append(example_of(message, label, group, number, known))


def example_of(message: str, label: str, group: str, row: int = 0, true: float | None = None) -> Example:
    """The question about a message, with its answer."""
    turns = [("user", prompt(message)), ("assistant", label)]
    chat = [{"role": role, "content": content} for role, content in turns]
    return Example(chat, "", group, row=row, true=true)


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


def score(model: Scored, tests: list[Example], train: list[Example]) -> dict[str, float]:
    """Return `auc`, `log_loss` (nats), `brier` and `calibration_error`, those of the baselines, and the bins;
    where the true probabilities are known, how much of what they tell is found too.

    Before the baselines' are their names in core.sms.BASELINES; the bins' are as `scores_of` has them.
    """
    if not tests:
        return {}
    truth = [_converted_sms(example) for example in tests]
    chats = [example.messages[:-1] for example in tests]
    likely = [yes for yes, _ in model.label_probabilities(chats, list(LABELS))]
    sold = [_converted_sms(example) for example in train]
    messages, asked = ([_message(example) for example in part] for part in (train, tests))
    others = baselines(messages, sold, asked)
    true = [example.true for example in tests if example.true is not None]

    def found(given: Sequence[float]) -> dict[str, float]:
        known = of_truth(true, given, others["mean_rate"]) if len(true) == len(tests) and others else {}
        return figures(truth, given) | known

    scores = found(likely) | scores_of(calibration_bins(truth, likely))
    for name, baseline in others.items():
        scores |= {f"{name}_{figure}": value for figure, value in found(baseline).items()}
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


def expected_figures(true: Sequence[float], likely: Sequence[float]) -> dict[str, float]:
    """The means that log-loss (nats) and Brier score would have over many draws of what happens, where the
    `true` probabilities are known, as the generator's are: few rows tell more than by what happened once."""
    known, said = np.array(true), np.clip(likely, 1e-6, 1 - 1e-6)
    return {
        "expected_log_loss": float(-np.mean(known * np.log(said) + (1 - known) * np.log(1 - said))),
        "expected_brier": float(np.mean(known * (1 - said) ** 2 + (1 - known) * said**2)),
    }


def reached(loss: float, of_rate: float, of_truth: float) -> float | None:
    """The share of what can be known that is found, by expected log-losses: 0 is that of the mean rate, 1
    that of the true probabilities; None where these tell nothing more."""
    return (of_rate - loss) / (of_rate - of_truth) if of_rate > of_truth else None


def of_truth(true: Sequence[float], likely: Sequence[float], rate: Sequence[float]) -> dict[str, float]:
    """`share_of_truth_reached` by likelihoods, beside those by the mean `rate`."""
    losses = (expected_figures(true, given)["expected_log_loss"] for given in (likely, rate, true))
    share = reached(*losses)
    return {} if share is None else {"share_of_truth_reached": share}


def _converted_sms(example: Example) -> int:
    return int(example.messages[-1]["content"].strip().lower() == LABELS[0])


def _message(example: Example) -> str:
    """The message that is asked about."""
    return prompt_of(example).removeprefix(prompt(""))
