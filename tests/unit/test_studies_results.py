"""What a study keeps: whole after each cell, of one version and settings; and who does its cells."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.cells import Cell, Results, Runner, read_results
from bench.comparison import judged, spread
from core.command import ROOT
from core.errors import ChatError


def test_cells_are_there_for_whoever_goes_on(tmp_path: Path) -> None:
    first = Results(tmp_path / "study", 1, {"rows": 8})
    assert not first.done("a")
    first.put("a", {"auc": 0.5})
    again = Results(tmp_path / "study", 1, {"rows": 8})
    assert again.done("a")
    assert again.content["cells"] == {"a": {"auc": 0.5}}
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("version", "rows", "said"), [(2, 8, "version .1, and now 2"), (1, 9, "settings .rows 8, and now 9")]
)
def test_results_of_another_version_or_other_settings_are_refused(
    tmp_path: Path, version: int, rows: int, said: str
) -> None:
    Results(tmp_path, 1, {"rows": 8}).put("a", 1)
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(ChatError, match=rf"results of (another|other) {said}.*--out FOLDER"):
        Results(tmp_path, version, {"rows": rows})
    assert (tmp_path / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "can't read"),
        ('{"version": 1, "cells": {"a"', "can't read"),
        ("[]", "is not a JSON object"),
        ('{"cells": {}}', "another version .None"),
        ('{"version": 1, "settings": {"rows": 8}, "cells": []}', "no settings or no cells"),
    ],
)
def test_a_broken_file_is_told_of_and_left_as_it_is(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "results.json").write_text(content)
    for read in (lambda: Results(tmp_path, 1, {"rows": 8}), lambda: read_results(tmp_path, 1)):
        with pytest.raises(ChatError, match=said):
            read()
    assert (tmp_path / "results.json").read_text() == content


def test_a_full_disk_loses_no_cell_that_was_kept(tmp_path: Path) -> None:
    results = Results(tmp_path, 1, {})
    results.put("a", 1)
    (tmp_path / "results.json.partial").symlink_to("/dev/full")  # where each write fails
    with pytest.raises(OSError, match="No space left"):
        results.put("b", 2)
    assert json.loads((tmp_path / "results.json").read_text())["cells"] == {"a": 1}


def note(folder: Path, name: str, seconds: float = 0.0) -> dict[str, Any]:
    """A cell that takes its time; which process did it, and when."""
    began = time.time()
    time.sleep(seconds)
    if name == "dies":
        os._exit(9)
    if name == "breaks":
        raise ChatError("there is\nnothing to measure")
    (folder / name).touch()
    return {"process": os.getpid(), "began": began, "ended": time.time()}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_fails_is_told_of_and_the_others_are_done(
    tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results(tmp_path / "study", 1, {})
    results.put("there", 1)
    names = ("there", "breaks", "a", "b")
    with Runner(results, workers=workers) as runner:
        runner.do([Cell(name, partial(note, tmp_path, name)) for name in names])
        assert runner.failed == 1
    printed = capsys.readouterr()
    assert printed.err == "error: breaks: there is nothing to measure\n"
    assert "a: " in printed.out
    assert set(results.content["cells"]) == {"there", "a", "b"}
    assert not (tmp_path / "there").exists()  # it wasn't done again


def test_cells_are_done_side_by_side_and_what_is_timed_is_alone(tmp_path: Path) -> None:
    results = Results(tmp_path / "study", 1, {})
    cells = [Cell(name, partial(note, tmp_path, name, 0.5)) for name in "abcd"]
    prepared = partial((tmp_path / "prepared").touch)
    with Runner(results, workers=2, prepare=prepared) as runner:
        runner.start(len(cells))
        runner.do([*cells, Cell("timed", partial(note, tmp_path, "timed", 0.2), alone=True)])
    done = results.content["cells"]
    assert done["timed"]["process"] == os.getpid()
    assert all(done["timed"]["ended"] <= each["began"] for key, each in done.items() if key != "timed")
    assert len({done[name]["process"] for name in "abcd"} - {os.getpid()}) == 2
    assert (tmp_path / "prepared").exists()


def test_a_process_that_dies_takes_only_its_cell_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results(tmp_path / "study", 1, {})
    with Runner(results, workers=2) as runner:
        runner.do([Cell(name, partial(note, tmp_path, name)) for name in ("a", "dies", "b")])
        assert runner.failed == 1
    assert set(results.content["cells"]) == {"a", "b"}
    assert "error: dies: A process in the process pool was terminated" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 2])
def test_no_cell_begins_that_would_end_too_late(tmp_path: Path, workers: int) -> None:
    results = Results(tmp_path / "study", 1, {})
    cells = [Cell(name, partial(note, tmp_path, name, 1.0)) for name in "abc"]
    with Runner(results, until=time.monotonic(), workers=workers) as runner:
        runner.do(cells)
        assert runner.over
    assert not results.content["cells"]
    with Runner(results, until=time.monotonic() + 1.5) as runner:
        runner.do(cells)
    assert list(results.content["cells"]) == ["a"]


def test_seeds_say_whether_arms_differ() -> None:
    assert judged([1.0, 2.0, 3.0], [3.0, 4.0]) == "within the spread of the seeds"
    assert (
        judged([1.0, 2.0], [2.1, 4.0]) == judged([2.1, 4.0], [1.0, 2.0]) == "beyond the spread of the seeds"
    )
    assert judged([1.0], [2.0, 3.0]) == "one seed, so no spread to judge by"
    assert spread([1.0, 2.0, 3.0], "{:.1f}") == "2.0 (1.0 to 3.0)"
    assert (spread([1.0]), spread([]), spread([], nothing="")) == ("1.000", "none", "")


SCRIPT = """
import sys, time
from functools import partial
from pathlib import Path
from bench.cells import Cell, Results, Runner
from core.command import run
from tests.unit.test_studies_results import note

def work():
    with Runner(Results(out, 1, {}), workers=2, prepare=partial(time.sleep, float(sys.argv[2]))) as runner:
        runner.do([Cell(name, partial(note, out, name, seconds)) for name, seconds in names])
    return 0

if __name__ == "__main__":
    out, names = Path(sys.argv[1]), [("quick", 0.0), ("slow", 60.0), ("slower", 60.0)]
    sys.exit(run(work, "Stopped."))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("starting", [0, 60])
def test_processes_end_with_the_one_that_started_them(
    tmp_path: Path, how: signal.Signals, starting: int
) -> None:
    """Also those that are still `starting` (seconds), and have answered nothing yet."""
    script = tmp_path / "many.py"
    script.write_text(SCRIPT)
    begun = psutil.Popen(
        [sys.executable, str(script), str(tmp_path), str(starting)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_for(lambda: len(begun.children()) == 3)  # one tracks what they share
    wait_for(lambda: starting or (tmp_path / "results.json").exists())
    time.sleep(0.5)  # while a process is started, Ctrl-C isn't heard
    children = begun.children(recursive=True)
    if how == signal.SIGINT:  # as a terminal does: all of them
        os.killpg(begun.pid, how)
    else:
        begun.send_signal(how)
    assert begun.wait(20) == (130 if how == signal.SIGINT else -how)
    assert not psutil.wait_procs(children, timeout=20)[1]
    error = begun.communicate()[1]
    if how == signal.SIGINT:
        assert error.strip() == "Stopped."
    assert "Traceback" not in error
    assert starting or list(json.loads((tmp_path / "results.json").read_text())["cells"]) == ["quick"]


def wait_for(there: Callable[[], object], seconds: float = 60) -> None:
    """Until it is so."""
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until
        time.sleep(0.05)
