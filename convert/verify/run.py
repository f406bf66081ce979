"""The checks in one place: first what the checkpoint says, while it is there, then each GGUF."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.verify.answers import PROMPTS, Answer, check_answers
from convert.verify.limits import Check, check_size
from convert.verify.loss import check_cross, check_quantised, check_sixteen_bit, guesses, rows_to_score
from convert.verify.report import Report
from convert.verify.tensors import GgufTensors, check_tensors, fallback_types
from convert.verify.tokens import Facts, Tokenized, check_metadata, check_tokens
from core.engine import Engine, wanted
from core.entry import Entry, Source
from core.errors import ChatError
from core.files import whole
from core.gguf_model import GgufFile, read_gguf
from core.gguf_reader import read_metadata
from core.log_probs import Scores, compare, gguf_log_probs, read_reference, save_reference, targets
from core.machine import idle_thread_count
from core.model import Model, Replies, open_model
from core.progress import Progress
from core.rows import Row
from core.templates import TemplateRenderer

if TYPE_CHECKING:
    from convert.verify.adapted import MergeInputs

CONTEXT = 2048  # tokens: prompts and 48 more
# Files in the folder of references.
FACTS, TOKENS, ANSWERS, SCORES, MERGE, DISTRIBUTIONS = (
    *("facts.json", "tokens.json", "answers.json", "scores.json", "merge.json", "16bit.npy"),
)
ADAPTED, CHECKPOINT = "base+adapter", "checkpoint"  # stages, in the table


@contextmanager
def chat_model(gguf: Path, now: str = "") -> Iterator[Model]:
    """Load a GGUF as the app does, in this process; its template is told the time `now`. Raises ChatError."""
    from core.in_process import InProcessEngine  # loads llama.cpp's library

    entry = Entry(sources=[Source(path=str(gguf.resolve()))], n_ctx=max(256, _context(gguf)))

    def start(file: GgufFile, n_ctx: int, overrides: dict[str, int]) -> Engine:
        return InProcessEngine(file.path, n_ctx, idle_thread_count(), (), wanted, overrides)

    with closing(TemplateRenderer()) as renderer:
        model = open_model(gguf.stem, entry, gguf.resolve(), renderer, start, Replies(), now=now)
        with closing(model.engine):
            yield model


def _context(gguf: Path) -> int:
    """No more tokens than a Phi's RoPE was trained for before its factors change: llama.cpp takes the other
    factors for a larger context, however short the text."""
    file = read_gguf(gguf)
    original = read_metadata(gguf).get(f"{file.architecture}.rope.scaling.original_context_length")
    bounds = (CONTEXT, file.n_ctx_train, original)
    return min(bound for bound in bounds if isinstance(bound, int) and bound > 0)


def reference(
    checkpoint: Path,
    sixteen_bit: Path,
    rows: Sequence[Row],
    folder: Path,
    on_progress: Progress,
    made_of: MergeInputs | None = None,
) -> None:
    """Write into `folder` all that `verify` needs of `checkpoint`, which may be deleted afterwards.

    Also scores `sixteen_bit` against it, and the checkpoint against base and adapter (`made_of`; None where
    nothing was merged), which are in memory before it and not beside it. The folder belongs to one checkpoint
    and one set of rows; what was in it goes. Raises ConvertError.
    """
    # torch and transformers take seconds to import
    from convert.verify.adapted import Adapted
    from convert.verify.merged import arrived, check_merge, coarsest_dtype, not_merged
    from convert.verify.reference import ReferenceModel
    from core.log_probs import idle_threads

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    scored = rows_to_score(rows)
    wanted = targets(scored)
    step = _Steps(on_progress, (3 if made_of else 2) * len(scored) + PROMPTS + 2)
    own, before = folder / "checkpoint.npy", folder / "adapter.npy"
    layers = []
    if made_of:
        with idle_threads(), closing(Adapted(made_of)) as adapted:
            save_reference(before, adapted.log_probs(scored, step), len(wanted))
            layers = list(adapted.layers())
    with idle_threads(), closing(ReferenceModel(checkpoint, rows[0].rendered)) as loaded:
        _write(folder / FACTS, asdict(loaded.facts()))
        _write(folder / TOKENS, [asdict(text) for text in loaded.tokenized(rows)])
        step()
        _write(folder / ANSWERS, [asdict(answer) for answer in loaded.answers(rows)])
        step(PROMPTS)
        save_reference(own, loaded.log_probs(scored, step), len(wanted))
        found = arrived(loaded.model, layers, coarsest_dtype(checkpoint))
    save_reference(folder / DISTRIBUTIONS, gguf_log_probs(sixteen_bit, scored, step), len(wanted))
    stages = [*([(ADAPTED, before)] if made_of else []), (CHECKPOINT, own)]
    stages.append((str(read_gguf(sixteen_bit).file_type), folder / DISTRIBUTIONS))
    scores = {}
    for (name, path), (_, above) in zip(stages, [stages[0], *stages], strict=False):
        scores[name] = compare(above, read_reference(path), wanted)
    _write(folder / SCORES, {name: asdict(score) for name, score in scores.items()})
    reason = "the checkpoint came as it is"
    guessing = guesses(scores[CHECKPOINT], read_gguf(sixteen_bit).n_vocab)
    merged = check_merge(scores[CHECKPOINT], found, guessing) if made_of else not_merged(reason)
    _write(folder / MERGE, [asdict(check) for check in merged])
    for path in (own, before):
        path.unlink(missing_ok=True)
    step()


def verify(
    gguf: Path,
    sixteen_bit: Path,
    folder: Path,
    rows: Sequence[Row],
    predicted_bytes: int,
    on_progress: Progress,
) -> Report:
    """Run all checks on `gguf`, which is `sixteen_bit` itself or made from it.

    `folder` is what `reference` wrote. A check that can't be made at all fails with its reason.
    """
    scored, scores = (
        rows_to_score(rows),
        {name: Scores(**raw) for name, raw in _read(folder / SCORES).items()},
    )
    try:
        file = read_gguf(gguf)
        n_tensors = len(GgufTensors(gguf).tensors)
    except ChatError as error:
        return Report("", [Check("file", "fail", "", str(error))], scores)
    kind = str(file.file_type)
    quantised = gguf != sixteen_bit
    step = _Steps(on_progress, n_tensors + PROMPTS + 3 + (len(scored) if quantised else 0))
    checks = [Check(**raw) for raw in _read(folder / MERGE)]
    checks += check_size(gguf, predicted_bytes)
    checks += check_metadata(gguf, Facts(**_read(folder / FACTS)))
    checks += _tried("tensors", lambda: check_tensors(gguf, sixteen_bit, step))
    answers = [Answer(**raw) for raw in _read(folder / ANSWERS)]
    texts = [Tokenized(**raw) for raw in _read(folder / TOKENS)]

    def chat() -> list[Check]:
        with chat_model(gguf, rows[0].rendered) as model:
            found = check_tokens(model, rows, texts)
            step()
            return found + check_answers(model, answers, quantised, step)

    checks += _tried("chat", chat)
    sixteen_scores = next(score for name, score in scores.items() if name not in (ADAPTED, CHECKPOINT))
    checks += check_sixteen_bit(sixteen_scores, file.n_vocab)
    guessing = guesses(sixteen_scores, file.n_vocab)

    def loss() -> list[Check]:
        distributions = gguf_log_probs(gguf, scored, step)
        scores[kind] = compare(folder / DISTRIBUTIONS, distributions, targets(scored))
        return check_quantised(scores[kind], kind, fallback_types(gguf), file.n_params, guessing)

    if quantised:
        checks += _tried("loss", loss)
    checks += _tried("cross-check", lambda: check_cross(gguf))
    step.finish()
    return Report(kind, checks, scores)


def _tried(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    """A file that llama.cpp or the app refuses fails the check; it doesn't stop the others."""
    try:
        return check()
    except ChatError as error:
        return [Check(name, "fail", "", str(error))]


class _Steps:
    """Counts what is done and tells it."""

    def __init__(self, on_progress: Progress, total: int) -> None:
        self.on_progress, self.done, self.total = on_progress, 0, total

    def __call__(self, count: int = 1) -> None:
        self.done = min(self.done + count, self.total)
        self.on_progress(self.done, self.total)

    def finish(self) -> None:
        self(self.total)


def _write(path: Path, content: Any) -> None:
    with whole(path) as partial:
        partial.write_text(json.dumps(content, ensure_ascii=True), encoding="utf-8")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
