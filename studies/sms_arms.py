"""The likelihoods of a purchase that each arm gives: baselines on the rows' features, and tuned models."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench.memory import PeakMemory
from chat.sms_rules import extract
from core.sms import LABELS, capitals, segments
from train import folder as files
from train.data import encode_splits, load
from train.recipe import Recipe, changed, load_recipe
from train.run import Run
from train.session import Base
from train.split import Splits
from train.tasks.make_sms import rows
from train.tasks.sms import figures

BITS = (16, 8, 4)
SECTIONS = {8: {"load_in_8bit": True}, 4: {"load_in_4bit": True}}  # BitsAndBytesConfig by bits
TEST_SHARE = 0.2  # of the campaigns
CSV = "sms.csv"  # in the study's folder


@dataclass(frozen=True)
class Row:
    """A synthetic message, whether one reader bought, and how likely that truly was."""

    campaign: str
    message: str
    converted: int
    probability: float


@dataclass(frozen=True)
class Arm:
    """How the base is held while its adapter is trained."""

    bits: int
    checkpointing: bool

    @property
    def name(self) -> str:
        return f"{self.bits} bit{', checkpointing' if self.checkpointing else ''}"


@dataclass(frozen=True)
class Plan:
    """What a model is tuned on, and how; numbers of rows."""

    recipe: str
    train: int
    test: int
    epochs: float
    batch: int  # blocks of a step
    rates: tuple[float, ...]  # of which the best is taken, by campaigns that aren't tested
    checkpointed_seeds: int
    rows: int = 2000

    def sides(self, found: Sequence[Row], seed: int, looking: bool = False) -> tuple[list[int], list[int]]:
        """Places of the rows to train on, and to test on; `looking`: both out of those to train on."""
        train, tests = split(found, seed)
        if looking:
            parts = split([found[place] for place in train], seed)
            train, tests = ([train[place] for place in part] for part in parts)
        return train[: self.train], tests[: self.test]


def table(count: int) -> list[Row]:
    """The rows, always the same."""
    return [
        Row(str(row["campaign"]), str(row["message"]), int(row["converted"]), float(row["probability"]))
        for row in rows(count, 0)
    ]


def split(found: Sequence[Row], seed: int) -> tuple[list[int], list[int]]:
    """Places of the rows to train on and to test on, in a random order; a campaign is on one side only."""
    draw = random.Random(seed)
    campaigns = sorted({row.campaign for row in found})
    held_out = set(draw.sample(campaigns, max(1, round(TEST_SHARE * len(campaigns)))))
    places = draw.sample(range(len(found)), len(found))
    train = [place for place in places if found[place].campaign not in held_out]
    # A text that is in both would be no test of anything but memory.
    known = {found[place].message for place in train}
    tests = [place for place in places if found[place].campaign in held_out]
    return train, [place for place in tests if found[place].message not in known]


def scores(tests: Sequence[Row], likely: Sequence[float]) -> dict[str, float]:
    """Figures against what happened, and the mean that log-loss (nats) and Brier score would have over many
    draws of what happens: the true probabilities are known, so that few rows tell more."""
    true, said = np.array([row.probability for row in tests]), np.clip(likely, 1e-6, 1 - 1e-6)
    expected = {
        "expected_log_loss": float(-np.mean(true * np.log(said) + (1 - true) * np.log(1 - said))),
        "expected_brier": float(np.mean(true * (1 - said) ** 2 + (1 - true) * said**2)),
    }
    return figures([row.converted for row in tests], [float(p) for p in said]) | expected


def vector(message: str) -> list[float]:
    """A message's features by the rules, and its length and capitals, as numbers."""
    found, _ = extract(message)
    kinds = ("percent", "amount", "free_shipping", "buy_one_get_one")
    flags = (found.deadline, found.link, found.call_to_action, found.personal, found.emoji, found.opt_out)
    of_kind = [float(found.discount == kind) for kind in kinds]
    sizes = [found.size * of_kind[0], found.size * of_kind[1]]
    form = [len(message), segments(message), capitals(message)]
    return [*of_kind, *sizes, *map(float, flags), *map(float, form)]


def baselines(train: Sequence[Row], tests: Sequence[Row]) -> dict[str, list[float]]:
    """Likelihoods of the tests by what the trained rows tell, without a language model."""
    truth = [row.converted for row in train]
    rate = sum(truth) / len(truth)
    made = {"mean rate": [rate] * len(tests)}
    if len(set(truth)) < 2:
        return made
    models = {
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        "gradient boosting": HistGradientBoostingClassifier(max_iter=60, learning_rate=0.05, random_state=0),
    }
    inputs, asked = ([vector(row.message) for row in part] for part in (train, tests))
    for name, model in models.items():
        made[name] = model.fit(inputs, truth).predict_proba(asked)[:, 1].tolist()
    words = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000))
    words.fit([row.message for row in train], truth)
    return made | {"TF-IDF": words.predict_proba([row.message for row in tests])[:, 1].tolist()}


def recipe_of(plan: Plan, csv: Path, arm: Arm, seed: int, rate: float) -> Recipe:
    """The plan's recipe, on these data as this arm has it. Raises TrainError."""
    recipe = load_recipe(plan.recipe)
    data = {"path": str(csv), "task": "sms", "group_by": "campaign", "license": "synthetic"}
    values: dict[str, Any] = {
        "data": data,
        "BitsAndBytesConfig": SECTIONS.get(arm.bits),
        "memory": "lean" if arm.checkpointing else "fast",
        "SFTConfig.seed": seed,
        "SFTConfig.num_train_epochs": plan.epochs,
        "SFTConfig.per_device_train_batch_size": plan.batch,
        "SFTConfig.learning_rate": rate,
        "SFTConfig.logging_steps": 1,
        "SFTConfig.early_stopping_patience": None,
        "SFTConfig.eval_steps": None,
    }
    return changed(recipe, values, plan.recipe).model_copy(update={"name": f"sms-{arm.bits}-{seed}"})


def tune(plan: Plan, out: Path, arm: Arm, seed: int, rate: float, looking: bool = False) -> dict[str, Any]:
    """Tune the arm in a folder in `out` and ask it the seed's tests; what it said and what it took.

    `looking` for a rate asks other campaigns, which are neither trained on nor among the tests. Raises
    TrainError, or KeyboardInterrupt: then the folder stays, and the training goes on from it.
    """
    found = table(plan.rows)
    train, tests = plan.sides(found, seed, looking)
    folder = out / "run" / f"{arm.bits}-{arm.checkpointing}-{seed}-{rate:g}-{looking}"
    recipe = recipe_of(plan, out / CSV, arm, seed, rate)
    base, loaded = Base(recipe), load(recipe)
    by_row = {example.row: example for example in loaded.examples}
    splits = Splits([by_row[place + 1] for place in train], [], [by_row[place + 1] for place in tests])
    data, cuda = encode_splits(recipe, base.tokenizer, loaded, splits), torch.cuda.is_available()
    run = Run(recipe, folder, base, data, PartialState(cpu=not cuda))
    run.check()
    folder.mkdir(parents=True, exist_ok=True)
    memory = PeakMemory(cuda)
    session = run.adapt()
    progress = run.train(session, resume=True)
    peak = memory.gb()
    lines = [line for line in files.read_metrics(folder) if "loss" in line]
    asked = [by_row[place + 1].messages[:-1] for place in tests]
    likely = [yes for yes, _ in session.label_probabilities(asked, list(LABELS))]
    shutil.rmtree(folder)
    return {
        "likely": likely,
        "converted": [found[place].converted for place in tests],
        "rate": rate,
        "loss": [line["loss"] for line in lines],
        "steps": progress.step,
        "tokens": progress.tokens,
        "tokens_per_s": progress.tokens / progress.seconds if progress.seconds else None,
        "memory_gb": peak,
    } | scores([found[place] for place in tests], likely)
