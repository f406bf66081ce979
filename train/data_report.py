"""What `python train/data.py RECIPE` prints about the data of a recipe."""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from train.batches import pack
from train.dpo_config import Dpo
from train.examples import Encoded, Loaded, lost, sides
from train.recipe import Recipe
from train.sections import Data, Sft
from train.split import Splits

if TYPE_CHECKING:  # train.data imports this file
    from core.tokenizer import ChatTokenizer
    from train.split import Prepared

BINS = 12
WIDTH = 40  # of the longest bar
TRAINED, PLAIN = "\x1b[30;42m", "\x1b[0m"  # black on green


def rows(data: Data, loaded: Loaded) -> str:
    """Rows in and out, each reason with its count and an example."""
    lines = [
        f"{data.path}: {loaded.rows_in:,} rows, read as {loaded.layout}; {len(loaded.examples):,} examples"
    ]
    lines += _counted("left out", loaded.left_out, loaded)
    if lost(loaded):
        lines.append(f"  LOST: {lost(loaded):,} rows without a reason; this is a defect of the reader")
    if loaded.not_used:
        lines.append(f"  not used: {'; '.join(_counted('', loaded.not_used, loaded))}")
    return "\n".join(lines)


def left_out(counts: Counter[str], loaded: Loaded) -> str:
    """Rows that are no examples, by these reasons."""
    return "\n".join(_counted("left out", counts, loaded))


def notes(recipe: Recipe, prepared: Prepared) -> list[str]:
    """What happened to rows when they became token ids, and on the way there."""
    loaded = prepared.loaded
    lines = []
    if prepared.too_long:
        lines.append(
            f"  left out: {prepared.too_long:,}, longer than max_length {recipe.args.max_length:,} "
            f"({prepared.longest})"
        )
        shares = {"validation": recipe.data.validation, "test": recipe.data.test}
        empty = [name for name, share in shares.items() if share and not getattr(prepared, name)]
        lines += [f"  note: the {name} split has no row that is short enough" for name in empty]
    lines += _counted("kept, but changed", loaded.changed, loaded)
    return lines + _counted("note", loaded.noticed, loaded)


def _counted(title: str, counts: Counter[str], loaded: Loaded) -> list[str]:
    """A line a reason: how many rows, and the first of them."""
    lines = []
    for reason, number in counts.most_common():
        example = f" ({harmless(loaded.first[reason], line=True)})" if reason in loaded.first else ""
        named = harmless(reason, line=True)
        if number:
            lines.append(
                f"  {title}: {number:,}, {named}{example}" if title else f"{named} in {number:,}{example}"
            )
    return lines


def splits(found: Splits) -> str:
    """Sizes of the splits, in rows and groups."""
    sizes = []
    for name, split in (("train", found.train), ("validation", found.validation), ("test", found.test)):
        sizes.append(f"{name} {len(split):,} ({len({example.group for example in split}):,} groups)")
    repeated = (
        f"\n  left out: {found.repeated:,}, the same text is in another split" if found.repeated else ""
    )
    return "\n".join([f"splits: {', '.join(sizes)}{repeated}", *found.notes])


def tokens(recipe: Recipe, tokenizer: ChatTokenizer, prepared: Prepared) -> str:
    """Lengths, the share that is trained, how full batches are, and one example."""
    encoded = sides(prepared.train + prepared.validation + prepared.test)
    lengths = [len(row.ids) for row in encoded]
    trained = sum(sum(row.mask) for row in encoded)
    lines = [
        *notes(recipe, prepared),
        f"tokens: {sum(lengths):,}, {trained / sum(lengths):.1%} of them trained",
        f"tokens of a row (the longest has {max(lengths):,}):",
        histogram(lengths),
        filling([len(row.ids) for row in sides(prepared.train)], recipe.args),
        "\nOne example; trained is what is " + ("green:" if colours() else "in [[ ]]:"),
        example := marked(tokenizer, encoded[0], colours()),
    ]
    if other := encoded[0].rejected:
        rejected = marked(tokenizer, other, colours())
        lines[-1:] = ["chosen:", example, "rejected:", rejected]
        example += rejected
    if "\\<" in example or "\\[" in example:
        lines.append("A backslash is before what looks like a control token, and is plain text.")
    return "\n".join(lines)


def histogram(lengths: Sequence[int]) -> str:
    """Bars of rows by length, in at most 12 bins of a round width."""
    step = next(
        round_width * 10**power
        for power in range(12)
        for round_width in (1, 2, 5)
        if math.ceil(max(lengths) / (round_width * 10**power)) <= BINS
    )
    counts = Counter((length - 1) // step for length in lengths)
    most, lines = max(counts.values()), []
    for place in range(min(counts), max(counts) + 1):
        bar = "#" * math.ceil(counts[place] / most * WIDTH)
        lines.append(f"{place * step + 1:>8,} to {(place + 1) * step:<8,} {bar:<{WIDTH}} {counts[place]:,}")
    return "\n".join(lines)


def filling(lengths: Sequence[int], args: Sft | Dpo) -> str:
    """How much of what is computed in training is tokens of rows, the rest being padding or empty."""
    if args.packing:
        blocks = pack(lengths, args.max_length)
        full = sum(lengths) / (len(blocks) * args.max_length)
        return f"packing: {len(blocks):,} blocks of {args.max_length:,} tokens, {full:.1%} full"
    size = args.per_device_train_batch_size
    batches = [lengths[at : at + size] for at in range(0, len(lengths), size)]
    full = sum(lengths) / sum(max(batch) * len(batch) for batch in batches)
    return f"no packing: batches of {size} would be {full:.1%} full if padded to their longest row"


def marked(tokenizer: ChatTokenizer, row: Encoded, colour: bool) -> str:
    """The row's text with its trained stretches in colour or brackets.

    A control token is shown as it is, and text that only looks like one with a backslash before it.
    """
    from train.control_tokens import escaped  # it imports the tokenizer, and so transformers

    begin, end = (TRAINED, PLAIN) if colour else ("[[", "]]")
    control = set(tokenizer.encoder.control.values())
    text = ""
    for trained, stretch in groupby(zip(row.ids, row.mask, strict=True), key=lambda pair: pair[1]):
        piece = ""
        for is_control, run in groupby((i for i, _ in stretch), key=control.__contains__):
            decoded = tokenizer.decode(list(run))
            piece += harmless(decoded if is_control else escaped(decoded, tokenizer))
        text += f"{begin}{piece}{end}" if trained else piece
    return text


def harmless(text: str, line: bool = False) -> str:
    """`text` without control characters, with which data could take over a terminal; if asked, on a line."""
    kept = "" if line else "\n"
    return "".join(c if c.isprintable() or c == kept else repr(c)[1:-1] for c in text)


def colours() -> bool:
    """Whether the output is a terminal that wants colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
