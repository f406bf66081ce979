"""Small fixed tasks in a folder: rows to train and to test on, how they are asked, how replies are scored.

tasks.json has by a task's name the `score` of its replies, the two wordings in which it is `asked` (as it is
trained, and in other words), and what else `Task` holds. Its rows are in <name>.jsonl: text, answer, split.
unlike.jsonl has text that is like none of them, by its kind. Sets are few rows: scores are for comparing
arms that see the same ones, not for placing a model.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

from core.tokenizer import ChatTokenizer
from train.examples import Encoded, Example
from train.labels import encode
from train.prompt_changes import Change, with_typos
from train.recipe import RECIPES
from train.tasks.quotes import answer, clean_author, clean_quote, parts, prompt
from train.tasks.scored import Scored
from train.tasks.text_scores import chrf, rouge_l

TRAIN, TEST = "train", "test"  # the splits
OTHER = "other"  # and of some tasks, another domain
ACCURACY = "accuracy"  # by the probabilities of the labels
SCORES: Mapping[str, Callable[[str, str], float]] = MappingProxyType(  # of a reply and the answer, 0 to 1
    {
        "format kept": lambda reply, _: float(parts(reply)[1] is not None),
        "ROUGE-L": rouge_l,
        "chrF": chrf,
    }
)


@dataclass(frozen=True)
class Task:
    """What tasks.json says of a task; `folder` has its rows."""

    folder: Path
    name: str
    score: str
    asked: tuple[str, str]
    new_tokens: int = 0  # of a reply, at most
    labels: tuple[str, ...] = ()  # of which one is the answer
    layout: str = ""  # quotes: the rows are those of train/recipes
    test_authors: str = ""  # of quotes: with which letters the authors' names begin who aren't trained
    other: str = ""  # what the split `other` is called

    def rows(self, split: str, limit: int) -> list[Row]:
        """The first rows of a split."""
        if self.layout == "quotes":
            return self._quotes(split)[:limit]
        rows = [row for row in _lines(self.folder / f"{self.name}.jsonl") if row["split"] == split]
        return [Row(self, row["text"], row["answer"]) for row in rows][:limit]

    def _quotes(self, split: str) -> list[Row]:
        """Who is read in the test was never trained."""
        found = []
        for row in _lines(RECIPES / "quotes.jsonl"):
            quote, author = clean_quote(row["quote"]), clean_author(row["author"])
            if author and (author[0] in self.test_authors) == (split == TEST):
                found.append(Row(self, prompt(quote), answer(quote, author)))
        return found


@dataclass(frozen=True)
class Row:
    """What is asked about, and the answer."""

    task: Task
    text: str
    answer: str

    def example(self, wording: int = 0, change: Change = str) -> Example:
        """The chat: asked in one of the task's two ways, with what is asked about changed."""
        turns = (("user", self.task.asked[wording].format(change(self.text))), ("assistant", self.answer))
        return Example([{"role": role, "content": content} for role, content in turns], "", "")


def load_tasks(folder: Path) -> dict[str, Task]:
    """The tasks of a folder by their names."""
    content = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    tupled = {name: {k: _tupled(v) for k, v in task.items()} for name, task in content.items()}
    return {name: Task(folder, name, **task) for name, task in tupled.items()}


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def content_of(folder: Path, *others: Path) -> str:
    """A hash of the folder's rows and of other files: results on other ones mean something else."""
    files = sorted((*others, *folder.glob("*.jsonl")))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def unlike_texts(folder: Path, tokenizer: ChatTokenizer, longest: int) -> dict[str, list[Encoded]]:
    """Text that is like none of the tasks, by its kind, as rows all of whose tokens count."""
    found = {}
    for row in _lines(folder / "unlike.jsonl"):
        (whole,) = encode(tokenizer, Example([], row["text"], ""))
        found[row["kind"]] = [Encoded(whole.ids[:longest], whole.mask[:longest], [])]
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def reworded(rows: Sequence[Row]) -> dict[str, list[Example]]:
    """Changes that need more than the prompt: other words for the question, and typos outside of it."""
    return {
        "typos": [row.example(change=with_typos) for row in rows],
        "paraphrase": [row.example(wording=1) for row in rows],
    }


def judge(model: Scored, rows: Sequence[Row]) -> dict[str, float]:
    """Each task's score, 0 to 1, over its rows. All replies are written together."""
    asked = [row for row in rows if row.task.score != ACCURACY]
    chats = [row.example().messages[:-1] for row in asked]
    said = model.answer(chats, [row.task.new_tokens for row in asked])
    found = defaultdict[str, list[float]](list)
    for row, reply in zip(asked, said, strict=True):
        found[row.task.name].append(SCORES[row.task.score](reply, row.answer))
    for row, value in _told_apart(model, [row for row in rows if row.task.score == ACCURACY]):
        found[row.task.name].append(value)
    return {task: fmean(values) for task, values in found.items()}


def _told_apart(model: Scored, rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """1 for each row whose label is the most probable one, else 0."""
    found = []
    for labels in dict.fromkeys(row.task.labels for row in rows):
        of = [row for row in rows if row.task.labels == labels]
        shares = model.label_probabilities([row.example().messages[:-1] for row in of], list(labels))
        likely = [labels[share.index(max(share))] for share in shares]
        found += [(row, float(label == row.answer)) for row, label in zip(of, likely, strict=True)]
    return found
