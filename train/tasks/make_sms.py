"""Make synthetic marketing SMS whose conversion follows a known function: train/tasks/make_sms.py

Nothing of it is real, as train/tasks/sms_generator.py tells. The columns are those of its `Row`. Beside the
CSV the command writes a card, `.md`, that says so too.
"""

from __future__ import annotations

import csv
import io
import sys
from dataclasses import asdict, fields
from pathlib import Path

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from core.command import Parser, run
from core.errors import TrainError
from core.files import write_whole
from train.tasks.sms_generator import CAMPAIGN_NOISE, INTERCEPT, ROW_NOISE, WEIGHTS, Row, rows


def card(count: int, seed: int, table: list[Row]) -> str:
    """The data's card, in Markdown: that it is synthetic, how it was made, the best scores there can be."""
    from train.tasks.sms import expected_figures, figures  # scikit-learn takes a second

    truth, true = [row.converted for row in table], [row.probability for row in table]
    best = figures(truth, true) | expected_figures(true, true)
    weights = "".join(f"| {name} | {weight:+} |\n" for name, weight in WEIGHTS.items())
    return (
        "# Synthetic marketing SMS\n\n"
        "This data is synthetic: brands, messages, customers and conversions are made up. A score on it\n"
        "says how much of a known function a model finds, nothing about real campaigns.\n\n"
        f"Made by `python train/tasks/make_sms.py --rows {count} --seed {seed}`. Rate of `converted`:"
        f" {sum(truth) / len(truth):.3f}.\n\n"
        f"Log-odds of a conversion: {INTERCEPT}, and for each of\n\n"
        f"| feature | weight |\n|---|---|\n{weights}\n"
        f"and normal noise of {CAMPAIGN_NOISE} for a campaign and {ROW_NOISE} for a row.\n\n"
        "The true probabilities themselves score, on all rows (expected: over many draws of who buys): "
        + ", ".join(f"{name} {value:.4f}" for name, value in best.items())
        + f".\n{_baselines(table, seed)}"
    )


def _baselines(table: list[Row], seed: int) -> str:
    """What baselines find of it on campaigns that they didn't see; "" where there are too few."""
    from train.card import table as table_of
    from train.tasks.sms_truth import of_baselines, share_reached, split

    train, tests = split(table, seed)
    if not train or not tests:
        return ""
    found = of_baselines(tests, train)
    shares = {name: share_reached(scores, found) for name, scores in found.items()}
    rows = [
        (name, f"{scores['expected_log_loss']:.4f}", "" if shares[name] is None else f"{shares[name]:.2f}")
        for name, scores in found.items()
    ]
    return (
        f"\nOn {len(tests)} rows of campaigns apart, what needs no language model finds of that truth "
        "(0 is the mean rate, 1 the truth):\n\n"
        f"{table_of(('', 'expected log-loss, nats', 'share of truth reached'), rows)}\n"
    )


def main(argv: list[str]) -> int:
    """Write the CSV and its card; return the exit code."""
    parser = Parser(prog="python train/tasks/make_sms.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)

    def generate() -> int:
        if given.out.suffix != ".csv" or given.rows < 1:
            raise TrainError(f"give --out a name ending in .csv ({str(given.out)!r}) and --rows at least 1")
        if given.out.exists():
            raise TrainError(f"{given.out} is there already; remove it, or give --out another name")
        table = list(rows(given.rows, given.seed))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [column.name for column in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, table))
        made = given.out.with_suffix(".md")
        write_whole(made, card(given.rows, given.seed, table))
        write_whole(given.out, text.getvalue())
        print(f"{given.out}: {given.rows:,} synthetic rows; {made} says how they were made")
        print("In the recipe: data: {path: " + given.out.name + ", task: sms, license: synthetic}")
        return 0

    return run(generate, "Stopped; no file was written.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
