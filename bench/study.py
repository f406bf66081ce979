"""The shell of a study: its options, by what and when it was measured, its report and page.

    STUDY = Study("sms", 2, page, draw)      # of studies/sms.py; 2 is the version of its results
    parser = STUDY.parser(__doc__)           # --out, --minutes, --workers, --page and --name are there
    sys.exit(STUDY.main(given, argv, measure))

A report is made of the results alone: `draw` gives its plots, and `page` its text, told the file of each.
In docs/studies a page is <name>.md, and <name>/ has its plots and results.json. All of it is made before any
of it is written.
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
from functools import partial
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

import torch
from matplotlib.figure import Figure

from bench.cells import FILE, Cell, Results, Runner, claimed, read_results, reading
from bench.comparison import Arms, Section
from bench.comparison_plots import drawn, png
from core.command import ROOT, Parser, command_line, run
from core.files import write_whole
from core.machine import thread_count
from train.recipe import full_path

Content = Mapping[str, Any]  # of results.json
REPORT = "report.md"
QUICK = "**This is the quick look, with so few rows that it shows the way only, whatever the seeds say.**\n\n"
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "trl")
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

    @classmethod
    def of(
        cls, name: str, version: int, sections: Callable[[Content], Mapping[str, Section]], arms: Arms
    ) -> Study:
        """One whose page is studies/<name>_page.md with these sections, and whose plots are theirs."""
        template = ROOT / "studies" / f"{name}_page.md"

        def page(content: Content, pictures: Mapping[str, str]) -> str:
            return filled(template, content, sections(content), pictures)

        return cls(name, version, page, lambda content: drawn(sections(content), arms))

    @property
    def script(self) -> str:
        """The command's file."""
        return f"studies/{self.name}.py"

    def folder(self, which: str = "") -> Path:
        """Where results are if nothing else is said; `which` tells those of one kind from another's."""
        return ROOT / "outputs" / "studies" / f"{self.name}{which}"

    def parser(self, doc: str) -> Parser:
        """The options that each study has; `doc` begins with what it asks."""
        parser = Parser(prog=f"python {self.script}", description=doc.splitlines()[0], allow_abbrev=False)
        add = parser.add_argument
        add(
            "--out",
            type=full_path,
            default=self.folder(),
            help=f"where {FILE} is (outputs/studies/{self.name})",
        )
        minutes = between(0, math.inf, float)
        add("--minutes", type=minutes, default=math.inf, help="begin no cell that would end later")
        add("--workers", type=between(1, 32), default=1, metavar="N", help="train side by side, at most 32")
        add("--page", type=full_path, metavar="FOLDER", help="write docs/studies of its results")
        add("--name", type=_file_name, help=f"of the page ({self.name}, or its FOLDER's there)")
        return parser

    def about(self, argv: Iterable[str], libraries: Iterable[str] = LIBRARIES) -> dict[str, Any]:
        """By what, when and on what something is measured now."""
        words = [Path(word).name if Path(word).is_absolute() else word for word in argv]
        return {
            "command": shown(shlex.join(["python", self.script, *words])),
            "date": date.today().isoformat(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "cores": thread_count(),
            "versions": {name: version(name) for name in libraries},
        }

    def results(self, folder: Path, settings: dict[str, Any]) -> Results:
        """Those in `folder`, begun or not. Raises ChatError for those of something else."""
        return Results(folder, self.version, settings, self.name)

    def read(self, folder: Path, option: str = "--out") -> dict[str, Any]:
        """What `folder`, given by this option, holds of this study. Raises ChatError, also where its report
        can't be made."""
        content = read_results(folder, self.version, self.name, option)
        with reading(folder / FILE, option):
            self.made(content)
        return content

    def made(self, content: Content, page: str = REPORT, pictures: str = "") -> dict[str, str | bytes]:
        """The page, and in the folder `pictures` its plots and JSON: content by file."""
        plots = {name: (f"{name}.png", figure) for name, figure in self.draw(content).items()}
        files: dict[str, str | bytes] = {file: png(figure) for file, figure in plots.values()}
        for name, value in self.files(content).items():
            files[name] = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        inside = {name: (Path(pictures) / name).as_posix() for name in files}
        text = self.page(content, {name: inside[file] for name, (file, _) in plots.items()})
        return {inside[name]: made for name, made in files.items()} | {page: text}

    def write(self, content: Content, folder: Path) -> str:
        """Write the report, its plots beside it, into `folder`; say where."""
        return _write(self.made(content), folder, REPORT, len(content["cells"]))

    def publish(self, folder: Path, pages: Path, name: str | None = None) -> int:
        """Write `folder`'s results as `pages`/<name>.md, with plots and JSON in `pages`/<name>. Raises
        ChatError. Those of a page have its name, if none is given."""
        content = read_results(folder, self.version, self.name, "--page")
        of_page = folder.resolve().parent == pages.resolve()
        name = name or (folder.name if of_page else self.name)
        with reading(folder / FILE, "--page"):
            made = self.made(content, f"{name}.md", name)
        made[f"{name}/{FILE}"] = json.dumps(content, ensure_ascii=False) + "\n"
        print(_write(made, pages, f"{name}.md", len(content["cells"])))
        return 0

    def measure(
        self,
        results: Results,
        lines: Callable[[], Iterable[list[Cell]]],
        until: float = math.inf,
        workers: int = 1,
        before: Callable[[], None] = lambda: None,
    ) -> tuple[Results, int, int]:
        """Do the cells that aren't there yet, line by line, after `before`, while which the workers start.

        Returns the results, how many cells failed, and how many aren't measured yet.
        """

        def left() -> int:
            return sum(not results.done(cell.key) for line in lines() for cell in line)

        threads = max(1, thread_count() // workers)
        with Runner(results, until, workers, partial(torch.set_num_threads, threads)) as runner:
            runner.start(left())
            before()
            for line in lines():
                runner.do(line)
        return results, runner.failed, left()

    def main(
        self,
        given: Namespace,
        argv: list[str],
        measure: Callable[[float], tuple[Results, int, int]],
        option: str = "--out",
    ) -> int:
        """Publish, or measure and report; return the exit code. `measure(until)` begins nothing that would
        end after `until` (of time.monotonic), and returns what `Study.measure` does.

        `given.out` is what the `option` gave: but for --out, there are results in it.
        """
        until = time.monotonic() + 60 * given.minutes - SPARE_S
        again = command_line(self.script, argv)

        def work() -> int:
            if given.page:
                return self.publish(given.page, ROOT / "docs" / "studies", given.name)
            if option != "--out" or (given.out / FILE).exists():
                self.read(given.out, option)  # before anything is measured for it
            with claimed(given.out):
                results, failed, left = measure(until)
                print(self.write(results.content, results.path.parent))
            if left:
                print(f"{left} cells aren't measured yet; go on with: {again}")
            return 1 if failed else 0

        return run(work, f"Stopped; finished cells are kept. Go on with: {again}")


def _write(made: Mapping[str, str | bytes], folder: Path, page: str, cells: int) -> str:
    """Write each file into `folder`; say where the page is."""
    for name, content in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(folder / name, content)
    return f"{folder / page} is written, from {cells} cells."


def filled(
    template: Path,
    content: Content,
    sections: Mapping[str, Section],
    pictures: Mapping[str, str],
) -> str:
    """A page: the template with each section by its name, and its picture below it.

    What it has beside them: the cell `about`, the settings' `sizes`, $device, $count of cells, and $quick.
    """
    about, settings = content["cells"]["about"], content["settings"]
    known = {name: f"{size:g}" for name, size in settings["sizes"].items()} | about
    known |= {
        "versions": ", ".join(f"{name} {number}" for name, number in about["versions"].items()),
        "device": settings["device"],
        "quick": QUICK if "--quick" in about["command"] else "",
        "count": sum(not key.startswith("about") for key in content["cells"]),
    }
    parts = {
        name: section.text + (f"\n\n![{name.capitalize()}]({pictures[name]})" if name in pictures else "")
        for name, section in sections.items()
    }
    return Template(template.read_text(encoding="utf-8")).substitute(known | parts)


def paragraphs(template: Path, values: Mapping[str, Any], sections: Mapping[str, Section]) -> str:
    """A page: the template's paragraphs, but for those of which a value is None, "", or isn't there yet.

    In the text, $name stands for a value or a section, ${name_plot} for a plot's file, given as a value.
    """
    known = {name: value for name, value in values.items() if value not in (None, "")}
    known |= {name: section.text for name, section in sections.items()}
    parts = [Template(text) for text in template.read_text(encoding="utf-8").split("\n\n")]
    told = [part for part in parts if known.keys() >= set(part.get_identifiers())]
    return "\n\n".join(part.substitute(known).strip("\n") for part in told) + "\n"


def between(least: float, most: float, kind: Callable[[str], Any] = int) -> Callable[[str], Any]:
    """The type of an option whose number is from `least` to `most`."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is no number of the kind that is wanted") from None
        if not least <= value <= most:
            raise ArgumentTypeError(f"{text} is not from {least:,} to {most:,}")
        return value

    return read


def shown(command: str) -> str:
    """Without the folder, the time and the processes that somebody had."""
    return re.sub(_OF_NO_INTEREST, "", command)


def _file_name(text: str) -> str:
    if text in ("", ".", "..") or {*text} & {*"/\\"} or not text.isprintable():
        raise ArgumentTypeError(f"{text!r} can't be a file's")
    return text
