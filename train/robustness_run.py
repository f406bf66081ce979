"""What changed prompts cost a run that has ended, on its own held-out rows; and how that is written down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch
from accelerate import PartialState

from core.errors import TrainError
from core.files import write_json, write_whole
from train import folder as files
from train.card import table
from train.data import prepare
from train.evaluation import a_number
from train.examples import Example
from train.finished import refuse_unfinished, reopen
from train.labels import encode
from train.prompt_changes import CHANGES, INJECTION, Costs, changed, measure
from train.recipe import Recipe
from train.recipe import changed as with_keys
from train.session import Base, Session, device_of
from train.split import Splits
from train.tasks.scored import sample
from train.tasks.text_scores import chrf, rouge_l

REPORT = "robustness"
REPLY_TOKENS = 64  # of a reply, at most


@dataclass(frozen=True)
class Arm(Costs):
    """And how near the replies to prompts as they are come to the rows' own, each 0 to 1."""

    rouge_l: float
    chrf: float


@dataclass(frozen=True)
class Measured:
    """What was measured on `rows` chats of a split, of the base alone and with the adapter."""

    split: str
    rows: int
    base: Arm
    tuned: Arm


def measure_run(folder: Path, limit: int) -> Measured:
    """Measure on at most `limit` held-out chats of the run in `folder`. Raises TrainError."""
    recipe, base, splits = _reopened(folder)
    split, asked = held_out(splits, folder.name)
    # The prompt's own tokens never count: they are what is changed.
    recipe = with_keys(recipe, {"SFTConfig.assistant_only_loss": True}, REPORT)
    device = device_of(PartialState(cpu=not torch.cuda.is_available()))
    try:
        session = base.adapted(recipe, device)
        session.check_adapter(folder / "adapter")
        chats = list(islice(_fitting(asked, session), limit))
        if not chats:
            raise TrainError(
                f"no {split} row of {folder.name} fits its max_length, {recipe.args.max_length} tokens, when "
                "its prompt is changed"
            )
        print(
            f"{len(chats):,} {split} rows as they are and {len(CHANGES)} times changed: the base", flush=True
        )
        untuned = _arm(session, chats, "of the base")
        print("and with the adapter", flush=True)
        session.load_adapter(folder / "adapter")
        return Measured(split, len(chats), untuned, _arm(session, chats, "with the adapter"))
    except torch.OutOfMemoryError:
        raise TrainError(
            f"the GPU's memory is too small for {base.folder}; stop what else is on it, or measure where "
            "there is more"
        ) from None


def _arm(session: Session, chats: Sequence[Example], whose: str) -> Arm:
    costs = measure(session, chats)
    for loss in (costs.loss, *costs.changed.values()):
        a_number(loss, whose)
    replies = session.answer([chat.messages[:-1] for chat in chats], REPLY_TOKENS)
    wanted = [chat.messages[-1]["content"] for chat in chats]
    near = [fmean(map(score, replies, wanted)) for score in (rouge_l, chrf)]
    return Arm(**vars(costs), rouge_l=near[0], chrf=near[1])


def _reopened(folder: Path) -> tuple[Recipe, Base, Splits]:
    """Recipe, base and rows of a run; raises TrainError if there is nothing to measure, or other rows."""
    refuse_unfinished(folder)
    for path in _reports(folder):
        if path.is_dir():
            raise TrainError(f"{path} is a folder, and what is measured is written there; move it away")
    recipe, base = reopen(folder, files.rendered_at(folder))
    if recipe.dpo:
        raise TrainError(
            f"{folder.name} was trained on preferences, which move how one reply stands to another; what is "
            "measured here is the loss of single replies. Give a run with SFTConfig"
        )
    data = prepare(recipe, base.tokenizer)
    if other := files.changed_inputs(files.read_inputs(folder), files.inputs_of(base, data), recipe):
        raise TrainError(
            f"{folder.name} was trained on other content of the {other}, and may have seen rows that are "
            "held out now. Bring back what it was"
        )
    return recipe, base, data.examples


def _reports(folder: Path) -> tuple[Path, Path]:
    return folder / f"{REPORT}.json", folder / f"{REPORT}.md"


def held_out(splits: Splits, name: str) -> tuple[str, list[Example]]:
    """The split that wasn't trained on, and its chats whose last reply answers a user. Raises TrainError.

    They come in an order that is the same in every run, and no prompt comes twice.
    """
    split = "test" if splits.test else "validation"
    rows: list[Example] = getattr(splits, split)
    if not rows:
        raise TrainError(
            f"{name} has neither test nor validation rows, and those that it learned tell nothing"
        )
    asked = [row for row in rows if _is_asked(row)]
    if not asked:
        raise TrainError(f"the {split} rows of {name} have no prompt that could be changed: they are texts")
    return split, sample(asked, len(asked))


def _is_asked(row: Example) -> bool:
    last = len(row.messages) - 1
    return last > 0 and row.messages[last - 1]["role"] == "user" and last not in row.untrained


def _fitting(chats: Sequence[Example], session: Session) -> Iterator[Example]:
    """Those that are no longer than a block whatever is changed: each line has to be of the same rows."""
    for chat in chats:
        made = (encode(session.tokenizer, changed(chat, change)) for change in CHANGES.values())
        if max(row.length for rows in made for row in rows) <= session.recipe.args.max_length:
            yield chat


def write_report(folder: Path, found: Measured) -> str:
    """Write robustness.json and robustness.md into the run's folder; return the latter's text."""
    arms = (found.base, found.tuned)
    losses = [("as they are", *(cell for arm in arms for cell in (f"{arm.loss:.3f}", "")))]
    for change in found.base.changed:
        cells = (cell for arm in arms for cell in (f"{arm.changed[change]:.3f}", f"{arm.rise(change):+.3f}"))
        losses.append((change, *cells))
    replies = [
        ("ROUGE-L with the row's reply", *(f"{arm.rouge_l:.3f}" for arm in arms)),
        ("chrF with it", *(f"{arm.chrf:.3f}" for arm in arms)),
        ("obey an injected line", *(f"{arm.obeyed * found.rows:.0f} of {found.rows}" for arm in arms)),
    ]
    text = (
        f"# {folder.name} with changed prompts\n\n"
        f"{found.rows:,} {found.split} rows. Losses of their replies, in nats a token; a rise is against the "
        f"prompts as they are:\n\n{table(('prompts', 'base', 'rise', 'tuned', 'rise'), losses)}\n\n"
        f"The model's own replies:\n\n{table(('replies', 'base', 'tuned'), replies)}\n"
    )
    figures, page = _reports(folder)
    write_json(figures, {"injected": INJECTION, **asdict(found)})
    write_whole(page, text)
    return text
