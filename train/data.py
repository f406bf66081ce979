"""Data of a recipe, from rows to token ids; as a command, see what is trained: train/data.py RECIPE"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from core.command import Parser, missing, run

try:
    from core.command import command_line
    from core.errors import TrainError
    from train.cells import entity_in
    from train.examples import Encoded, Example, Loaded, lost, sides
    from train.formats import read_any
    from train.pairs import read_pairs
    from train.recipe import Recipe, load_recipe
    from train.sections import Data
    from train.split import NAMES, Prepared, Splits, split_examples
    from train.table import is_file, read_table
    from train.tasks import code_instructions, oasst1, quotes, sms
except ModuleNotFoundError as error:
    sys.exit(missing(error))

if TYPE_CHECKING:
    from core.tokenizer import ChatTokenizer

__all__ = ["Loaded", "Prepared", "Splits", "load_examples", "lost", "prepare", "split_examples"]

LIMIT_SEED = 0  # of data.limit: not the run's, or each seed would be tested on other rows
NO_TEMPLATE = "the base has no chat template, so training and chat use a plain one"
ENTITIES = (
    "characters written as in HTML, trained as they stand; as characters: --set data.unescape_html=true "
    "(in a recipe, data.unescape_html: true)"
)
READERS = {"quotes": quotes, "oasst1": oasst1, "code": code_instructions, "sms": sms}


def load_examples(data: Data, seed: int, preferences: bool = False) -> Loaded:
    """Read `data.path` and make examples of its rows, or pairs of such. Raises TrainError."""
    table = oasst1.of_trees(read_table(data))
    if data.group_by:
        near = next((c for c in table.columns if c == data.group_by.strip().lower()), data.group_by)
        data = data.model_copy(update={"group_by": near})  # columns are in small letters now
        table.require(near)
    task = "preferences" if preferences else _task(data, table.columns)
    if data.lang and task != "oasst1":
        raise TrainError(f"data.lang is for the task oasst1; leave it out for {data.path}")
    if preferences and data.task != "auto":
        raise TrainError(f"data.task: {data.task} makes answers, and DPOConfig wants pairs; leave it out")
    loaded = Loaded(rows_in=len(table.rows))
    loaded.layout = task
    if preferences:
        read_pairs(table, data, loaded)
    elif task == "auto":
        read_any(table, data, loaded)
    else:
        READERS[task].read(table, data, loaded)
    if not loaded.examples:
        reasons = "; ".join(
            f"{reason}: {rows:,} ({loaded.first[reason]})" for reason, rows in loaded.left_out.most_common()
        )
        raise TrainError(f"no row of {data.path} can be trained on; {reasons}")
    for example in loaded.examples:
        both = (example, example.rejected) if example.rejected else (example,)
        texts = [text for side in both for text in (side.text, *(t["content"] for t in side.messages))]
        if found := next(filter(None, map(entity_in, texts)), ""):
            loaded.notice(ENTITIES, example.row, found)
    if data.limit and data.limit < len(loaded.examples):
        loaded.left_out["beyond data.limit"] += len(loaded.examples) - data.limit
        loaded.on_purpose.add("beyond data.limit")
        random.Random(seed).shuffle(loaded.examples)
        del loaded.examples[data.limit :]
    return loaded


def _task(data: Data, columns: list[str]) -> str:
    """The task that the recipe names, or whose columns are there."""
    if data.task != "auto":
        return data.task
    if {*oasst1.COLUMNS} <= {*columns}:
        return "oasst1"
    return "quotes" if {"quote", "author"} <= {*columns} else "auto"


def load_file(recipe: Recipe) -> Loaded | None:
    """The examples of a file, so that its faults are told before a base is asked for; None of a hub's data.

    Raises TrainError.
    """
    return load(recipe) if is_file(recipe.data) else None


def load(recipe: Recipe) -> Loaded:
    """The examples of a recipe's data. Raises TrainError."""
    return load_examples(recipe.data, LIMIT_SEED, preferences=recipe.dpo is not None)


def prepare(recipe: Recipe, tokenizer: ChatTokenizer, loaded: Loaded | None = None) -> Prepared:
    """Load, unless that is done, split and encode. Raises TrainError."""
    loaded = loaded or load(recipe)
    return encode_splits(recipe, tokenizer, loaded, split_examples(loaded.examples, recipe.data))


def encode_splits(recipe: Recipe, tokenizer: ChatTokenizer, loaded: Loaded, splits: Splits) -> Prepared:
    """Encode, and leave out what is longer than a block. Raises TrainError if no row is left to train on."""
    from train.control_tokens import misfit, settle  # transformers takes seconds to import
    from train.encoding import encode_all
    from train.pair_batches import pair_of

    examples = [settle(getattr(splits, name), tokenizer, loaded) for name in NAMES]
    everything = [example for split in examples for example in split]
    chats = sum(bool(example.messages) for example in everything)
    if not tokenizer.template and chats:
        loaded.noticed[NO_TEMPLATE] = chats
    reason = misfit(tokenizer) if tokenizer.template and chats else ""
    if reason:
        loaded.noticed[reason] = chats
    assistant_only, revision = recipe.args.assistant_only_loss, recipe.model.revision
    texts = [side for example in everything for side in (example, example.rejected) if side]
    try:
        encoded = iter(encode_all(tokenizer, texts, assistant_only, revision))
    except TrainError as error:
        raise TrainError(f"{error}; {reason}" if reason else str(error)) from None
    prepared = Prepared([], [], [], Splits(repeated=splits.repeated, notes=splits.notes), loaded, 0)
    for name, split in zip(NAMES, examples, strict=True):
        whole = [(e, next(encoded), next(encoded) if e.rejected else []) for e in split]
        if recipe.dpo:
            whole = [(e, row, []) for e, one, other in whole if (row := pair_of(e, one, other, loaded))]
        rows = [(e, _short(row, e, recipe, prepared)) for e, row, _ in whole]
        kept = [row for row in rows if row[1]]
        if name == "train" and rows and not kept:
            shortest = min(sequence.length for _, row, _ in whole for sequence in row)
            raise TrainError(
                f"all {len(rows)} rows of the {name} split are longer than max_length, "
                f"{recipe.args.max_length} tokens; the shortest has {shortest}: "
                f"raise {recipe.args.title}.max_length"
            )
        setattr(prepared, name, [sequence for _, row in kept for sequence in row])
        setattr(prepared.examples, name, [example for example, _ in kept])
    return prepared


def _short(row: Sequence[Encoded], example: Example, recipe: Recipe, prepared: Prepared) -> list[Encoded]:
    """The sequences of a row that fit a block; none of a row that is too long."""
    from train.labels import cut

    longest, loaded = recipe.args.max_length, prepared.loaded
    short = [sequence if example.rejected else cut(sequence, example, longest) for sequence in row]
    kept = [sequence for sequence in short if sequence.length <= longest]
    seen = f"{max(sequence.length for sequence in row):,} tokens"
    if not kept:
        prepared.too_long += 1
        prepared.longest = prepared.longest or f"row {example.row:,} has {seen}"
        return []
    if len(row) > 1:
        loaded.change(
            "a sequence for each reply: the template edits earlier ones", example.row, f"{len(row)}"
        )
    if len(kept) < len(row):
        loaded.change("later turns left out, longer than max_length", example.row, seen)
    if sum(map(len, (s.ids for s in short))) < sum(map(len, (s.ids for s in row))):
        loaded.change("cut at max_length", example.row, seen)
    return kept


def main(argv: list[str]) -> int:
    """Print what a recipe's data becomes; return the exit code."""
    parser = Parser(prog="python train/data.py", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a recipe's file, or the name of one of the project's"
    )
    given = parser.parse_args(argv)

    def check() -> int:
        from train import data_report  # this and the next take seconds to import
        from train.base import find_base, load_config, load_tokenizer
        from train.checks import Checks, check_context

        recipe = load_recipe(given.recipe)
        loaded = load(recipe)
        print(data_report.rows(recipe.data, loaded), flush=True)
        splits = split_examples(loaded.examples, recipe.data)
        print(data_report.splits(splits), flush=True)
        tokenizer = load_tokenizer(recipe)
        before = loaded.left_out.copy()
        prepared = encode_splits(recipe, tokenizer, loaded, splits)
        if later := data_report.left_out(loaded.left_out - before, loaded):
            print(later)
        print(data_report.tokens(recipe, tokenizer, prepared), flush=True)
        checks = Checks(recipe.waive, print)
        base = load_config(find_base(recipe.model), recipe.model.revision)
        rows = sides(prepared.train + prepared.validation + prepared.test)
        check_context(checks, rows, base, f"{recipe.args.title}.max_length")
        checks.end()
        print(f"\nNext: {command_line('train/qlora.py', [given.recipe, '--plan'])}")
        return 1 if lost(loaded) else 0

    return run(check, "Stopped; nothing was changed.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
