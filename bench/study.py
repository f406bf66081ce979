"""The shell of a study: its options, by what and when it was measured, its report and page.

    STUDY = Study("sms", 2, page, draw)      # of studies/sms.py; 2 is the version of its results
    parser = STUDY.parser(__doc__)           # --out, --minutes, --workers, --page and --name are there
    sys.exit(STUDY.main(given, argv, measure))

A report is made of the results alone: `draw` gives its plots, and `page` its text, told the file of each.
In docs/studies a page is <name>.md, and <name>/ has its plots and results.json.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from bench.cells import FILE, Results, read_results
from bench.comparison_plots import save
from core.command import ROOT, Parser, command_line, run
from core.files import write_json, write_whole
from core.machine import thread_count
from train.recipe import full_path

Content = Mapping[str, Any]  # of results.json
REPORT = "report.md"
SPARE_S = 15.0  # of --minutes, for the report
_OF_NO_INTEREST = r" --(?:out|minutes|workers)[ =](?:'[^']*'|\S+)"  # elsewhere


@dataclass(frozen=True)
class Study:
    """What tells a study from another."""

    name: str
    version: int  # another one when a figure comes to mean something else
    page: Callable[[Content, Mapping[str, str]], str]
    draw: Callable[[Content], Mapping[str, Figure]]
    files: Callable[[Content], Mapping[str, Any]] = lambda _: {}  # JSON beside the report, by their names

    @property
    def script(self) -> str:
        """The command's file."""
        return f"studies/{self.name}.py"

    def parser(self, doc: str) -> Parser:
        """The options that each study has; `doc` begins with what it asks."""
        parser = Parser(prog=f"python {self.script}", description=doc.splitlines()[0], allow_abbrev=False)
        add = parser.add_argument
        out = ROOT / "outputs" / "studies" / self.name
        add("--out", type=full_path, default=out, help=f"where {FILE} is (outputs/studies/{self.name})")
        add("--minutes", type=float, default=math.inf, help="begin no cell that would end later")
        add("--workers", type=int, default=1, choices=range(1, 33), metavar="N", help="train side by side")
        add("--page", type=full_path, metavar="FOLDER", help="write docs/studies of its results")
        add("--name", type=_file_name, default=self.name, help="of the page")
        return parser

    def about(self, argv: Iterable[str], libraries: Iterable[str]) -> dict[str, Any]:
        """By what, when and on what something is measured now."""
        words = [Path(word).name if Path(word).is_absolute() else word for word in argv]
        return {
            "command": shown(shlex.join(["python", self.script, *words])),
            "date": date.today().isoformat(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "cores": thread_count(),
            "versions": {name: version(name) for name in libraries},
        }

    def write(self, content: Content, folder: Path, page: str = REPORT, pictures: str = "") -> str:
        """Write the page into `folder` and its plots into `folder`/`pictures`; say where."""
        drawn = self.draw(content)
        save(drawn, folder / pictures)
        for name, value in self.files(content).items():
            write_json(folder / pictures / name, value)
        files = {name: (Path(pictures) / f"{name}.png").as_posix() for name in drawn}
        write_whole(folder / page, self.page(content, files))
        return f"{folder / page} is written, from {len(content['cells'])} cells."

    def publish(self, folder: Path, pages: Path, name: str) -> int:
        """Write `folder`'s results as `pages`/<name>.md, with plots and JSON in `pages`/<name>. Raises
        ChatError."""
        content = read_results(folder, self.version)
        (pages / name).mkdir(parents=True, exist_ok=True)
        write_whole(pages / name / FILE, json.dumps(content, ensure_ascii=False) + "\n")
        print(self.write(content, pages, f"{name}.md", name))
        return 0

    def main(
        self, given: Namespace, argv: list[str], measure: Callable[[float], tuple[Results, int, int]]
    ) -> int:
        """Publish, or measure and report; return the exit code.

        `measure(until)` begins nothing that would end after `until` (of time.monotonic). It returns the
        results, how many cells failed, and how many aren't measured yet.
        """
        until = time.monotonic() + 60 * given.minutes - SPARE_S
        again = command_line(self.script, argv)

        def work() -> int:
            if given.page:
                return self.publish(given.page, ROOT / "docs" / "studies", given.name)
            results, failed, left = measure(until)
            print(self.write(results.content, results.path.parent))
            if left:
                print(f"{left} cells aren't measured yet; go on with: {again}")
            return 1 if failed else 0

        return run(work, f"Stopped; finished cells are kept. Go on with: {again}")


def shown(command: str) -> str:
    """Without the folder, the time and the processes that somebody had."""
    return re.sub(_OF_NO_INTEREST, "", command)


def _file_name(text: str) -> str:
    if not text or Path(text).name != text:
        raise ArgumentTypeError(f"{text!r} can't be a file's")
    return text
