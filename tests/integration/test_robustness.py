"""What changed prompts cost a small run that has ended: the command, its figures, and what it refuses."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.small_runs import recipe_of, small_phi3, write_chats
from train import robustness
from train.fine_tune import train_run
from train.folder import dump
from train.prompt_changes import CHANGES
from train.recipe import changed, load_recipe, parse


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_phi3(tmp_path_factory.mktemp("phi3") / "base")


@pytest.fixture(scope="module")
def root(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has ended."""
    root = tmp_path_factory.mktemp("root")
    train_run(recipe_of(base, write_chats(root / "chats.jsonl")), root / "outputs", False)
    return root


def measured(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "robustness.json").read_text())
    return found


def test_the_losses_are_those_of_the_run_and_of_changed_prompts(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert robustness.main(["run", "--root", str(root)]) == 0
    folder = root / "outputs" / "run"
    found, manifest = measured(folder), json.loads((folder / "manifest.json").read_text())
    assert (found["split"], found["rows"]) == ("test", manifest["data"]["rows"]["test"])
    for arm, when in (("base", "before"), ("tuned", "after")):
        assert found[arm]["loss"] == pytest.approx(manifest["scores"][when]["test_loss"], abs=1e-5)
        assert set(found[arm]["changed"]) == set(CHANGES)
        assert found[arm]["loss"] not in found[arm]["changed"].values()
        assert found[arm]["obeyed"] == 0  # a model that knows no words
        assert 0 <= found[arm]["rouge_l"] <= 1
        assert 0 <= found[arm]["chrf"] <= 1
    text, said = (folder / "robustness.md").read_text(), capsys.readouterr().out
    assert text in said
    rise = found["tuned"]["changed"]["typos"] - found["tuned"]["loss"]
    assert f"{found['tuned']['changed']['typos']:.3f} | {rise:+.3f} |" in text
    assert f"| obey an injected line | 0 of {found['rows']} |" in text
    assert f"to_gguf.py run --quant q5 --root {root}" in said
    assert not list(folder.glob("*.partial"))


def test_a_run_without_test_rows_is_measured_on_its_validation_rows(base: Path, root: Path) -> None:
    data, sft = {"test": 0.0, "validation": 0.2}, {"assistant_only_loss": False}
    recipe = recipe_of(base, root / "chats.jsonl", name="other", data=data, sft=sft)
    folder = train_run(recipe, root / "outputs", False)
    assert robustness.main([str(folder), "--rows", "3"]) == 0
    found = measured(folder)
    assert (found["split"], found["rows"]) == ("validation", 3)
    whole = json.loads((folder / "manifest.json").read_text())["eval_loss"]["start"]
    assert abs(found["base"]["loss"] - whole) > 0.01  # which was of the prompts' tokens, too


def test_rows_that_do_not_fit_once_they_are_changed_are_not_measured(
    base: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(base, root / "chats.jsonl", name="tight", sft={"max_length": 36})
    train_run(recipe, root / "outputs", False)
    assert robustness.main(["tight", "--root", str(root)]) == 1
    said = "error: no test row of tight fits its max_length, 36 tokens, when its prompt is changed\n"
    assert capsys.readouterr().err.endswith(said)


def set_keys(values: dict[str, Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "recipe.yaml"
        path.write_text(dump(changed(load_recipe(path), values, "test")))

    return change


def other_data(folder: Path) -> None:
    set_keys({"data.path": str(write_chats(folder / "other.jsonl", 50))})(folder)


def preferences(folder: Path) -> None:
    content = load_recipe(folder / "recipe.yaml").model_dump(by_alias=True, exclude_defaults=True)
    del content["SFTConfig"]
    (folder / "recipe.yaml").write_text(dump(parse(content | {"DPOConfig": {"beta": 0.1}}, "test")))


def cut_short(folder: Path) -> None:
    weights = folder / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


Tensors = dict[str, torch.Tensor]


def written(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


def with_tensors(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> Callable[[Path], None]:
    def changed_file(folder: Path) -> None:
        weights = folder / "adapter" / "adapter_model.safetensors"
        save_file(change(load_file(weights)), weights)

    return changed_file


def with_settings(**values: Any) -> Callable[[Path], None]:
    def changed_file(folder: Path) -> None:
        path = folder / "adapter" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return changed_file


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (shutil.rmtree, r"no run is called 'broken'; runs: .*run"),
        (
            lambda folder: (folder / "manifest.json").unlink(),
            r"the run hasn't ended. Go on with it: .*--resume",
        ),
        (lambda folder: (folder / "recipe.yaml").unlink(), r"can't read .*recipe.yaml"),
        (set_keys({"data.path": "/gone.jsonl"}), r"there is no file /gone.jsonl"),
        (set_keys({"model.base_model": "/gone"}), r"/gone"),
        (other_data, r"broken was trained on other content of the data \(.*other.jsonl\)"),
        (preferences, r"broken was trained on preferences"),
        (cut_short, r"the adapter .*broken/adapter doesn't fit this base"),
        (
            with_tensors(lambda found: dict([*found.items()][:1])),
            r"doesn't fit this base: it lacks ",
        ),
        (
            with_tensors(lambda found: found | {"model.layers.9": torch.ones(1)}),
            r"doesn't fit .*: it has no place for \S+layers.9$",
        ),
        (
            with_tensors(lambda found: {name: tensor[:1].clone() for name, tensor in found.items()}),
            r"doesn't fit this base: \S+ is \[1, \d+\], and \[\d+, \d+\] is needed",
        ),
        (
            with_tensors(lambda found: {name: tensor * math.nan for name, tensor in found.items()}),
            r"broken/adapter is broken: \S+ holds what is no number; .* lower learning_rate",
        ),
        (
            with_tensors(lambda found: {name: tensor * 1e30 for name, tensor in found.items()}),
            r"the loss with the adapter is nan, which is no number: .* lower learning_rate",
        ),
        (
            set_keys({"LoraConfig.r": 400_000_000_000}),  # no machine has the memory for it
            r"adapter_config.json says r: 4, and the recipe LoraConfig.r: 400000000000: .*; bring back",
        ),
        (with_settings(lora_alpha=9), r"says lora_alpha: 9, and the recipe LoraConfig.lora_alpha: 8"),
        (with_settings(target_modules=["qkv_proj"]), r"says target_modules: \['qkv_proj'\], and the recipe"),
        (with_settings(target_modules=[1]), r"says target_modules: \[1\], and the recipe"),
        (
            lambda folder: (folder / "adapter" / "adapter_config.json").unlink(),
            r"broken/adapter has no adapter_config.json; bring it back",
        ),
        (
            written("adapter/adapter_config.json", "{"),
            r"adapter_config.json is damaged .*; bring back what it",
        ),
        (
            written("inputs.json", "[1]"),
            r"inputs.json is damaged .*; bring back what it was, or move it away",
        ),
        (written("inputs.json", "{broken"), r"inputs.json is damaged \(Invalid JSON"),
        (written("inputs.json", '{"rendered": 1}'), r"inputs.json is damaged \(rendered: .* valid string"),
        (lambda folder: (folder / "robustness.json").mkdir(), r"robustness.json is a folder, and .* move it"),
    ],
)
def test_what_can_not_be_measured_is_refused_in_a_line(
    root: Path, change: Callable[[Path], None], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = root / "outputs" / "broken"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / "outputs" / "run", folder, ignore=shutil.ignore_patterns("robustness*"))
    change(folder)
    assert robustness.main(["broken", "--root", str(root)]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert re.search(said, printed.err)
    assert "the loss" in said or "as they are and" not in printed.out  # the base isn't measured first
    assert "Next:" not in printed.out
    assert not (folder / "robustness.md").exists()
    assert not (folder / "robustness.json").is_file()
