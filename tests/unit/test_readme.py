"""What the README, CONTRIBUTING and docs/ say is true: commands, options, keys, pins and pictures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from core.registry import hub_source, load_registry
from tests.recipe_keys import PAGE, page

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
APP = ROOT / "app.py"


def commands(text: str) -> list[list[str]]:
    """Collect the commands in code spans and indented lines, as words."""
    code = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)
    programs = ("make", "python", "pip", ".venv/bin/python", ".venv/bin/pip", ".ci/run")
    return [words for line in code if (words := line.split())[0] in programs]


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [command for page in PAGES for command in commands(page.read_text())]


def front_matter() -> dict[str, str]:
    block = README.split("---\n")[1]
    return {key: value.strip('"') for key, value in re.findall(r"^(\w+): (.+)$", block, re.MULTILINE)}


def test_commands_are_found_at_all() -> None:
    assert ["make", "chat"] in COMMANDS
    assert ["make", "test"] in COMMANDS


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_quoted_command_exists(command: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    program, *words = command
    if program == "make":
        assert not words or words[0] in targets
    for word in words:
        assert not word.endswith((".py", "requirements.txt")) or (ROOT / word).is_file()
    pinned = [word for word in words if "==" in word]
    assert all(word in (ROOT / "scripts" / "app_parts.py").read_text() for word in pinned)


def test_the_options_are_those_of_the_app() -> None:
    shown = subprocess.run([sys.executable, APP, "--help"], capture_output=True, text=True, check=True).stdout
    chat = (ROOT / "docs" / "chat.md").read_text()
    rows = re.findall(r"^\| `(--\w+)` \| `(\w+)` \|", chat, re.MULTILINE)
    assert {option for option, _ in rows} == set(re.findall(r"--[\w-]+", shown)) - {"--help"}
    unknown = [variable for _, variable in rows if variable not in shown]
    assert not unknown, f"the app knows no {unknown}"


def test_every_folder_stands_in_the_map() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/*.py")} - {"scripts"}
    missing = [name for name in sorted(folders) if f"| `{name}/` |" not in README]
    assert not missing, f"the README's map lacks {missing}"


def test_the_keys_of_a_recipe_stand_in_docs() -> None:
    assert page() == PAGE.read_text(), "run: .venv/bin/python -m tests.recipe_keys"


def test_the_space_installs_the_pinned_gradio_and_starts_the_app() -> None:
    matter = front_matter()
    assert f"gradio=={matter['sdk_version']}\n" in (ROOT / "requirements.txt").read_text()
    assert (matter["sdk"], matter["app_file"], matter["python_version"]) == ("gradio", "app.py", "3.12")
    assert matter["license"] == "apache-2.0"
    assert {"title", "emoji", "colorFrom", "colorTo"} <= set(matter)
    assert len(matter["short_description"]) <= 60  # the hub refuses more


def test_the_space_has_the_default_model_before_it_starts() -> None:
    """`repo file revision`, as the hub's builder reads it: the file that the app then finds in the cache."""
    preloaded = re.search(
        r"^preload_from_hub:\n- (\S+) (\S+) (\w{40})$", README.split("---\n")[1], re.MULTILINE
    )
    registry = load_registry(ROOT / "models.json")
    source = hub_source(next(iter(registry.entries.values())))
    assert preloaded
    assert source
    assert preloaded.groups() == (source.repo_id, source.filename, source.revision)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_and_pictures_exist(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), f"no {target}"


def test_the_linter_before_a_commit_is_the_one_of_the_checks() -> None:
    ruff = re.search(r"^ruff==(\S+)$", (ROOT / "tests" / "requirements.txt").read_text(), re.MULTILINE)
    assert ruff
    assert f"rev: v{ruff[1]} " in (ROOT / ".pre-commit-config.yaml").read_text()


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= 170


def test_contributing_stays_on_one_page() -> None:
    assert CONTRIBUTING.count("\n") <= 90


def test_what_the_studies_found_is_what_their_pages_say() -> None:
    said = " ".join(README.split())

    def in_short(page: str) -> str:
        lines = (ROOT / "docs/studies" / page).read_text().splitlines()
        return next(line for line in lines if "In short" in line)

    arms, sms = in_short("quantised.md"), in_short("sms.md")
    found = re.findall(r"with (\w+) by \+([\d.]+) to \+([\d.]+)", arms)
    assert {arm for arm, _, _ in found} == {"GPTQ", "NF4", "int8"}
    assert all(f"{low} to {high} " in said and f"with {arm}" in said for arm, low, high in found)
    counts = re.findall(r"with \w+ by \S+ to \S+ on (\d) of 4 tasks", arms.partition("score")[0])
    assert re.search(
        "with GPTQ on {} of 4 tasks, .* with NF4 on {}, .* with int8 on {}:".format(*counts), said
    )
    gemma = in_short("quantised-gemma-3-270m.md")
    assert re.search(
        r"loss .* with GPTQ on 0 of 4 .* with NF4 by [^,]* on 1 of 4 tasks, with int8 on 0 of 4 tasks\. ",
        gemma,
    )
    assert "NF4 differs in loss on 1 of 4 tasks, GPTQ and int8 on none." in said
    likely = re.search(r"tuned models find ([\d.]+ to [\d.]+) .*logistic regression, ([\d.]+) ", sms)
    assert likely
    assert f"find {likely[1]} of it, logistic regression on the features {likely[2]}" in said
    edge = "The learning rate of the tuned models is the highest that was tried"
    assert edge in (ROOT / "docs/studies/sms.md").read_text()
    assert "theirs is the highest learning rate that was tried" in said
