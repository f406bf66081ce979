"""Scores of marketing SMS: how good the likelihood is that the model gives a conversion.

The likelihood is the probability of `yes` as the reply, when `yes` and `no` are all there is. Two baselines,
fitted to the trained rows, say what it is worth: their mean rate, and a logistic regression on TF-IDF words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline

from train.example import Example
from train.scores.scored import Scored, prompt_of
from train.tasks.sms import LABELS

BINS = 10


def score(model: Scored, tests: list[Example], train: list[Example]) -> dict[str, float]:
    """Return `auc`, `log_loss` (nats), `brier` and `calibration_error`, those of the baselines, and the bins.

    The baselines' begin with `mean_rate_` and `tfidf_`. A bin of likelihoods that isn't empty gives
    `bin_<i>_predicted`, `bin_<i>_observed` (shares) and `bin_<i>_rows`, for the calibration's picture.
    """
    if not tests:
        return {}
    truth = [_converted(example) for example in tests]
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
    truth = [_converted(example) for example in train]
    if len(set(truth)) < 2:
        return {}
    words = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
    words.fit([prompt_of(example) for example in train], truth)
    return {
        "mean_rate": [sum(truth) / len(truth)] * len(tests),
        "tfidf": words.predict_proba([prompt_of(example) for example in tests])[:, 1].tolist(),
    }


def _converted(example: Example) -> int:
    return int(example.messages[-1]["content"].strip().lower() == LABELS[0])
