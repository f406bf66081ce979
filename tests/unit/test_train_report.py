"""The files that a run leaves for people, written from plain data and read as their readers do."""

from __future__ import annotations

import errno
import html.parser
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from convert.source import find_source
from convert.to_gguf import parse
from train.folder import disk_errors
from train.recipe import Recipe
from train.report import plot_calibration, plot_loss, write_card, write_samples

RECIPE: dict[str, Any] = {
    "name": "tour",
    "description": "Quotes with their authors.",
    "model": {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "license": "apache-2.0"},
    "data": {"path": "Abirate/english_quotes", "license": "cc-by-4.0"},
    "BitsAndBytesConfig": {"load_in_4bit": True},
}
MANIFEST: dict[str, Any] = {
    "data": {
        "path": "/home/me/quotes.jsonl",
        "left_out": {"no author": 3, "no quote": 0},
        "sha256": "ab" * 32,
        "rows": {"train": 2006, "validation": 251, "test": 251},
    },
    "versions": {"torch": "2.13.0", "peft": "0.21.2"},
    "device": "cpu",
    "seed": 0,
    "wall_seconds": 250.0,
    "config_hash": "0123456789ab",
    "trainable_parameters": 4884480,
    "steps": 54,
    "tokens": 12345,
    "predicted": {"memory_gb": 1.5, "tokens_per_s": 300.0, "minutes": 4.0},
    "actual": {"memory_gb": 1.42, "tokens_per_s": 310.0},
    "eval_loss": {"base16": 3.12, "start": 3.55, "best": 2.14, "best_step": 27, "last": 2.2},
}
METRICS = [
    {"step": 0, "eval_loss": 3.55},
    *({"step": step, "loss": 2.1 + 1.4 * 0.93**step, "lr": 1e-4} for step in range(1, 55)),
    {"step": 27, "eval_loss": 2.14},
    {"step": 54, "eval_loss": 2.2},
]
SCORES = {"before": {"format_kept": 0.0, "test_loss": 3.5}, "after": {"format_kept": 0.96, "test_loss": 2.2}}


class Cells(html.parser.HTMLParser):
    """The texts of a rendered table's cells, `<br>` as a line break."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in ("td", "th"):
            self.cells.append("")
        elif tag == "br":
            self.cells[-1] += "\n"
        else:
            assert tag in ("table", "thead", "tbody", "tr", "h1", "p"), f"a text became <{tag}>"

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


NASTY = [
    "a | b || c\n\nnew paragraph\r\nand\ta tab",
    "```python\ndef f(x):\n    return x * 2  # **bold** _not_ | x\n```",
    "<b>bold</b> &amp; <script>alert(1)</script> [link](http://x) ![i](y) `code` \\| \\ $x$ ~~no~~",
    "| --- |\n# heading\n- list\n1. one",
]


@pytest.mark.parametrize("text", NASTY)
def test_a_sample_is_shown_as_it_stands(text: str, tmp_path: Path) -> None:
    path = tmp_path / "samples.md"
    write_samples(path, [[{"role": "user", "content": "Quote: x"}]], [text], ["fine"])
    reader = Cells()
    reader.feed(MarkdownIt().enable(["table", "strikethrough"]).render(path.read_text()))
    reader.close()
    shown = [cell.strip().replace("\xa0", " ") for cell in reader.cells]
    expected = "\n".join(text.replace("\t", "    ").splitlines())
    assert shown[3:] == ["Quote: x", expected, "fine"]


def test_a_chat_of_several_turns_names_who_speaks_and_no_reply_is_said(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    write_samples(tmp_path / "samples.md", [chat], [""], ["Hello"])
    last = (tmp_path / "samples.md").read_text().splitlines()[-1]
    assert last == "| system: Be kind.<br>user: Hi | (empty) | Hello |"


def test_prompts_and_replies_must_be_as_many(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        write_samples(tmp_path / "samples.md", [[{"role": "user", "content": "Hi"}]], ["a"], [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "metrics",
    [METRICS, [], METRICS[1:9], METRICS[:1], [*METRICS, {"step": 55, "loss": float("nan")}]],
    ids=["whole", "empty", "training only", "one evaluation", "diverged"],
)
def test_the_loss_is_a_picture_whatever_was_logged(metrics: list[dict[str, Any]], tmp_path: Path) -> None:
    plot_loss(metrics, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == (960, 540)
        colours = picture.convert("RGB").getcolors(1 << 20) or []
    assert len(colours) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def card(tmp_path: Path, changes: dict[str, Any] | None = None, waived: dict[str, str] | None = None) -> str:
    recipe = Recipe.model_validate(RECIPE | (changes or {}))
    write_card(tmp_path / "README.md", recipe, MANIFEST, METRICS, SCORES, waived or {})
    return (tmp_path / "README.md").read_text()


def test_the_card_begins_with_what_the_hub_reads(tmp_path: Path) -> None:
    head = yaml.safe_load(card(tmp_path).split("---\n")[1])
    assert head == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "datasets": ["Abirate/english_quotes"],
        "library_name": "peft",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["lora"],
    }


def test_the_card_has_the_figures_the_licences_and_the_next_commands(tmp_path: Path) -> None:
    text = card(tmp_path)
    for row in (
        "| trainable parameters | 4,884,480 |",
        "| rows left out | 3 no author |",
        "| untouched base, 16 bit | 3.1200 |",
        "| best, step 27 | 2.1400 |",
        "| format kept | 0.0000 | 0.9600 |",
        "| peak memory, GB | 1.5 | 1.42 |",
        "| minutes | 4 |  |",
        "- base: apache-2.0; its terms hold for this adapter too",
        "- data: cc-by-4.0",
        "    python convert/to_gguf.py tour --quant q5",
        "    python app.py --model 'tour Q5_K_M'",
    ):
        assert row in text.splitlines()
    assert "waived" not in text
    assert "synthetic" not in text
    assert "FP8" not in text


def test_the_card_says_which_steps_were_in_fp8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MANIFEST, "fp8_steps", 49)
    said = "in FP8 (e4m3), forward and backward, in the first 49 of 54 steps |"
    assert said in card(tmp_path, {"precision": "fp8"})


def test_the_card_shows_no_path_of_this_machine_and_no_local_base_to_the_hub(tmp_path: Path) -> None:
    changes = {
        "model": {"base_model": str(tmp_path / "base"), "license": "Gemma Terms of Use"},
        "data": {"path": str(tmp_path / "quotes.jsonl")},
    }
    text = card(tmp_path, changes)
    assert str(tmp_path) not in text
    assert "/home" not in text
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "other"
    assert head["license_name"] == "Gemma Terms of Use"
    assert "base_model" not in head
    assert "datasets" not in head
    assert "| data | quotes.jsonl, 2,006 train, 251 validation, 251 test rows |" in text


def test_the_card_names_each_waived_check_with_its_sentence(tmp_path: Path) -> None:
    text = card(tmp_path, waived={"pad_is_stop": "the padding token 2 ends a turn too"})
    assert "## Checks that were waived\n\n- `pad_is_stop`: the padding token 2 ends a turn too\n" in text


def test_the_card_declares_synthetic_data_and_shows_the_calibration(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(RECIPE | {"data": {"path": "sms.csv", "license": "Synthetic"}})
    scores = {"after": {"auc": 0.7, "bin_3_predicted": 0.34, "bin_3_observed": 0.3, "bin_3_rows": 12.0}}
    write_card(tmp_path / "README.md", recipe, MANIFEST, METRICS, scores, {})
    text = (tmp_path / "README.md").read_text()
    assert "**The data is synthetic**" in text
    assert "| 0.3 to 0.4 | 0.340 | 0.300 | 12 |" in text
    assert "| auc |  | 0.7000 |" in text
    assert "bin" not in text
    assert "![What was said and what happened](calibration.png)" in text
    assert "no language model" not in text


def test_the_card_has_a_line_for_each_baseline_and_none_of_them_among_the_scores(tmp_path: Path) -> None:
    after = {"auc": 0.7, "brier": 0.2, "mean_rate_auc": 0.5, "tfidf_auc": 0.6, "tfidf_brier": 0.21}
    write_card(tmp_path / "README.md", Recipe.model_validate(RECIPE), MANIFEST, METRICS, {"after": after}, {})
    text = (tmp_path / "README.md").read_text()
    for row in (
        "| auc |  | 0.7000 |",
        "|  | auc | brier |",
        "| this model after | 0.7000 | 0.2000 |",
        "| mean rate | 0.5000 |  |",
        "| TF-IDF | 0.6000 | 0.2100 |",
    ):
        assert row in text.splitlines()
    assert "this model before" not in text
    assert "tfidf" not in text
    assert "calibration.png" not in text


def test_the_calibration_is_a_picture_where_there_are_likelihoods(tmp_path: Path) -> None:
    plot_calibration({"before": {"test_loss": 2.0}, "after": {"auc": 0.7}}, tmp_path / "calibration.png")
    assert not list(tmp_path.iterdir())
    bins = {"bin_0_predicted": 0.05, "bin_0_observed": 0.0, "bin_0_rows": 1.0}
    bins |= {"bin_9_predicted": 1.0, "bin_9_observed": 1.0, "bin_9_rows": 30.0}
    plot_calibration({"before": bins, "after": bins}, tmp_path / "calibration.png")
    with Image.open(tmp_path / "calibration.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 10


def test_the_card_does_without_what_is_not_known(tmp_path: Path) -> None:
    write_card(tmp_path / "README.md", Recipe.model_validate(RECIPE), {}, [], {}, {})
    text = (tmp_path / "README.md").read_text()
    assert "None" not in text
    assert "convert/to_gguf.py tour" in text


def next_commands(folder: Path) -> list[list[str]]:
    write_card(folder / "README.md", Recipe.model_validate(RECIPE), {}, [], {}, {})
    text = (folder / "README.md").read_text().partition("## Next\n")[2]
    return [shlex.split(line) for line in text.splitlines() if line.startswith("    ")]


def test_the_card_of_a_run_elsewhere_names_commands_that_find_it(tmp_path: Path) -> None:
    root = tmp_path / "Ada's runs"
    (folder := root / "outputs" / "tour").mkdir(parents=True)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    convert, chat = next_commands(folder)
    given = parse(convert[2:])
    assert find_source(given.run, given.root / "outputs").adapter == folder / "adapter"
    assert chat[2:] == ["--model", str(root / "models" / "tour-Q5_K_M.gguf")]


def test_the_card_of_a_run_in_the_repository_needs_no_root(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr("train.card.ROOT", tmp_path)
    (tmp_path / "outputs" / "tour").mkdir(parents=True)
    convert, chat = next_commands(tmp_path / "outputs" / "tour")
    assert convert[2:] == ["tour", "--quant", "q5"]
    assert chat[2:] == ["--model", "tour Q5_K_M"]


def test_losses_that_the_manifest_lacks_come_from_the_metrics(tmp_path: Path) -> None:
    write_card(tmp_path / "README.md", Recipe.model_validate(RECIPE), {}, METRICS, {}, {})
    text = (tmp_path / "README.md").read_text()
    for row in (
        "| before the first step | 3.5500 |",
        "| best, step 27 | 2.1400 |",
        "| at the end | 2.2000 |",
    ):
        assert row in text


def test_a_checkpoint_on_a_full_disk_has_the_systems_own_error() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), disk_errors():
        torch.save(torch.zeros(1000), "/dev/full")
