"""Four small tasks, how a reply to each is scored, and what of their own is done to their prompts.

The rows of sentiment, summary and translation in studies/data were written for this project (Apache-2.0, as
all of it); the quotations are those of train/recipes (MIT). They are few: scores are for comparing arms that
see the same rows, not for placing a model.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from core.tokenizer import ChatTokenizer
from train.examples import Encoded, Example
from train.labels import encode
from train.prompt_changes import Change, with_typos
from train.recipe import RECIPES
from train.tasks.quotes import answer, clean_author, clean_quote, parts, prompt
from train.tasks.scored import Scored
from train.tasks.text_scores import chrf, rouge_l

DATA = Path(__file__).with_name("data")
TASKS = ("quotes", "sentiment", "summary", "translation")
SCORES = {"quotes": "format kept", "sentiment": "accuracy", "summary": "ROUGE-L", "translation": "chrF"}
LABELS = ["positive", "negative"]
ASKED = {  # first as it is trained, then in other words
    "sentiment": (
        "Is this review positive or negative?\n\n{}",
        "A customer wrote the lines below. Say whether they were positive or negative about it.\n\n{}",
    ),
    "summary": ("Sum this up in one sentence.\n\n{}", "What happened here, in a few words?\n\n{}"),
    "translation": ("Translate into French: {}", "How would you say this to somebody in Paris? {}"),
    "quotes": ("{}", "Please finish what somebody once said, and tell me who it was. {}"),
}
NEW_TOKENS = {"quotes": 48, "summary": 32, "translation": 24}  # of a reply, at most
CHANGES = ("typos", "case", "paraphrase", "distractor", "injection")


@dataclass(frozen=True)
class Row:
    """What is asked about, and the answer."""

    task: str
    text: str
    answer: str

    def example(self, wording: int = 0, change: Change = str) -> Example:
        """The chat: asked in one of the two ways of ASKED, with what is asked about changed."""
        turns = (("user", ASKED[self.task][wording].format(change(self.text))), ("assistant", self.answer))
        return Example([{"role": role, "content": content} for role, content in turns], "", "")


def load_task(task: str, split: str, limit: int) -> list[Row]:
    """The first rows of a split: train, test, or of sentiment another domain as `other`."""
    if task == "quotes":
        return _quotes(split)[:limit]
    lines = (DATA / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == split]
    return [Row(task, row["text"], row["answer"]) for row in rows][:limit]


def _quotes(split: str) -> list[Row]:
    """Authors of the test rows aren't in the training rows: of their names, those that begin with A to C."""
    found = []
    for line in (RECIPES / "quotes.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        quote, author = clean_quote(row["quote"]), clean_author(row["author"])
        if author and ("A" <= author[0] <= "C") == (split == "test"):
            found.append(Row("quotes", prompt(quote), answer(quote, author)))
    return found


def unlike_texts(tokenizer: ChatTokenizer, longest: int) -> dict[str, list[Encoded]]:
    """Text that is like none of the tasks, by its kind, as rows all of whose tokens count."""
    found = {}
    for line in (DATA / "unlike.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        (whole,) = encode(tokenizer, Example([], row["text"], ""))
        found[row["kind"]] = [Encoded(whole.ids[:longest], whole.mask[:longest], [])]
    return found


def changed_here(rows: Sequence[Row]) -> dict[str, list[Example]]:
    """Changes that need more than the prompt: other words for the question, and typos outside of it."""
    return {
        "typos": [row.example(change=with_typos) for row in rows],
        "paraphrase": [row.example(wording=1) for row in rows],
    }


def judge(model: Scored, rows: Sequence[Row]) -> dict[str, float]:
    """Each task's score (SCORES), 0 to 1, over its rows. All replies are written together."""
    asked = [row for row in rows if row.task != "sentiment"]
    chats = [row.example().messages[:-1] for row in asked]
    said = model.answer(chats, [NEW_TOKENS[row.task] for row in asked])
    found = defaultdict[str, list[float]](list)
    for row, reply in zip(asked, said, strict=True):
        found[row.task].append(worth(row, reply))
    if reviews := [row for row in rows if row.task == "sentiment"]:
        found["sentiment"] = told_apart(model, reviews)
    return {task: fmean(values) for task, values in found.items()}


def worth(row: Row, reply: str) -> float:
    """A reply's score, 0 to 1."""
    match row.task:
        case "quotes":
            return float(parts(reply)[1] is not None)
        case "summary":
            return rouge_l(reply, row.answer)
    return chrf(reply, row.answer)


def told_apart(model: Scored, rows: Sequence[Row]) -> list[float]:
    """1 for each row whose label is the more probable one, else 0."""
    shares = model.label_probabilities([row.example().messages[:-1] for row in rows], LABELS)
    return [
        float((one > 0.5) == (row.answer == LABELS[0])) for (one, _), row in zip(shares, rows, strict=True)
    ]
