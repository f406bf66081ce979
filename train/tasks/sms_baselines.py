"""Likelihoods of a purchase without a language model: what any model must find more than to be worth it."""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from core.sms import capitals, segments
from core.sms_rules import extract


def baselines(messages: Sequence[str], sold: Sequence[int], asked: Sequence[str]) -> dict[str, list[float]]:
    """Likelihoods of the `asked` messages, by what others tell that sold (1) or not (0).

    The keys are those of core.sms.BASELINES: where all or none sold, the mean rate alone; without messages,
    nothing.
    """
    if not messages:
        return {}
    made = {"mean_rate": [sum(sold) / len(sold)] * len(asked)}
    if len(set(sold)) < 2:
        return made
    models = {
        "logistic_regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        "gradient_boosting": HistGradientBoostingClassifier(max_iter=60, learning_rate=0.05, random_state=0),
    }
    inputs, wanted = ([vector(message) for message in part] for part in (messages, asked))
    for name, model in models.items():
        made[name] = model.fit(inputs, sold).predict_proba(wanted)[:, 1].tolist()
    words = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000))
    return made | {"tfidf": words.fit(messages, sold).predict_proba(asked)[:, 1].tolist()}


def vector(message: str) -> list[float]:
    """A message's features by the rules, and its length and capitals, as numbers."""
    found, _ = extract(message)
    kinds = ("percent", "amount", "free_shipping", "buy_one_get_one")
    flags = (found.deadline, found.link, found.call_to_action, found.personal, found.emoji, found.opt_out)
    of_kind = [float(found.discount == kind) for kind in kinds]
    sizes = [found.size * of_kind[0], found.size * of_kind[1]]
    form = [len(message), segments(message), capitals(message)]
    return [*of_kind, *sizes, *map(float, flags), *map(float, form)]
