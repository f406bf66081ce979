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

from bench.memory import PeakMemory
from core.sms import BASELINES, LABELS
from train import folder as files
from train.data import encode_splits, load
from train.recipe import Recipe, changed, load_recipe
from train.run import Run
from train.session import Base
from train.split import Splits
from train.tasks.make_sms import Row, rows
from train.tasks.sms import expected_figures, figures
from train.tasks.sms_baselines import baselines

BITS = (16, 8, 4)
SECTIONS = {8: {"load_in_8bit": True}, 4: {"load_in_4bit": True}}  # BitsAndBytesConfig by bits
TEST_SHARE = 0.2  # of the campaigns
CSV = "sms.csv"  # in the study's folder


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
    """Figures against what happened, and what they would be over many draws of what happens."""
    expected = expected_figures([row.probability for row in tests], likely)
    said = np.clip(likely, 1e-6, 1 - 1e-6).tolist()
    return figures([row.converted for row in tests], said) | expected


def baselines_of(train: Sequence[Row], tests: Sequence[Row]) -> dict[str, list[float]]:
    """Likelihoods of the tests by what the trained rows tell, without a language model; by names to read."""
    messages, asked = ([row.message for row in part] for part in (train, tests))
    found = baselines(messages, [row.converted for row in train], asked)
    return {BASELINES[name]: likely for name, likely in found.items()}


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
    found = list(rows(plan.rows, 0))
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
