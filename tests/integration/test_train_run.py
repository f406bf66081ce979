"""Whole runs on small models: what they leave behind, how they end early, and what keeps rows apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForCausalLM

from core.errors import TrainError
from core.rows import load_rows
from tests.integration.small_runs import (
    NF4,
    adapter_of,
    chats,
    learned,
    metrics_of,
    recipe_of,
    small_phi3,
    write_chats,
)
from tests.integration.tiny_models import FAMILIES, tiny
from train import qlora
from train.batches import collate
from train.data import prepare
from train.evaluation import evaluate
from train.examples import Encoded
from train.fine_tune import train_run
from train.model import Adapted, load_base
from train.recipe import RECIPES, load_recipe
from train.session import Base
from train.split import split_of

CPU = torch.device("cpu")
TRAINING = {"step", "loss", "grad_norm", "lr", "tokens", "tokens_per_s", "mfu", "memory_gb", "epoch"}
MANIFEST = {
    "base",
    "data",
    "rendered_with",
    "versions",
    "device",
    "seed",
    "wall_seconds",
    "config_hash",
    "trainable_parameters",
    "steps",
    "tokens",
    "predicted",
    "actual",
    "eval_loss",
    "scores",
    "waived",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_phi3(tmp_path_factory.mktemp("phi3") / "base")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chats(tmp_path_factory.mktemp("data") / "chats.jsonl")


@pytest.fixture(scope="module")
def root(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run of the command, on quotes and in 4 bits."""
    root = tmp_path_factory.mktemp("root")
    content = {
        "model": {"base_model": str(base), "license": "mit"},
        "data": {"path": str(RECIPES / "quotes.jsonl"), "task": "quotes", "limit": 80},
        "BitsAndBytesConfig": NF4,
        "LoraConfig": {"r": 4},
        "SFTConfig": {"max_length": 256, "max_steps": 4, "eval_steps": 2, "logging_steps": 1},
        "waive": ["first_loss"],
    }
    (root / "tiny.yaml").write_text(yaml.safe_dump(content))
    assert qlora.main([str(root / "tiny.yaml"), "--root", str(root)]) == 0
    return root


def test_a_run_leaves_all_its_files(root: Path) -> None:
    folder = root / "outputs" / "tiny"
    assert load_recipe(folder / "recipe.yaml").config_hash() == load_recipe(root / "tiny.yaml").config_hash()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines if "loss" in line] == [TRAINING] * 4
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 2, 4]
    rows = load_rows(folder / "prompts.jsonl")
    assert {row.split for row in rows} == {"train", "test"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest) >= MANIFEST
    losses = manifest["eval_loss"]
    assert losses["best"] == min(line["eval_loss"] for line in lines if "eval_loss" in line)
    assert losses["best"] < losses["start"]
    assert losses["base16"] != losses["start"]  # NF4 costs something
    assert set(manifest["scores"]["before"]) == set(manifest["scores"]["after"]) >= {"test_loss"}
    assert manifest["waived"] == ["first_loss"]
    assert (folder / "adapter" / "chat_template.jinja").is_file()
    assert {"chat_template", "tokenizer.json", "prompts.jsonl"} <= set(manifest["rendered_with"])
    with Image.open(folder / "loss.png") as picture:
        assert len(picture.convert("RGB").getcolors(1_000_000) or []) > 10
    assert "| prompt" in (folder / "samples.md").read_text()
    card = (folder / "README.md").read_text()
    assert "first_loss" in card
    assert "mit" in card
    assert not list(folder.glob("*.partial"))


def test_peft_reads_the_adapter_and_measures_the_same(root: Path, base: Path) -> None:
    folder = root / "outputs" / "tiny"
    recipe = load_recipe(folder / "recipe.yaml")
    adapted = Adapted(load_base(str(base), recipe, CPU), recipe, CPU)
    rows = prepare(recipe, Base(recipe).tokenizer).validation
    adapted.peft = PeftModel.from_pretrained(adapted.peft.unload(), str(folder / "adapter"))
    best = json.loads((folder / "manifest.json").read_text())["eval_loss"]["best"]
    assert evaluate(adapted, rows, recipe, CPU) == pytest.approx(best, abs=1e-5)


def test_a_run_answers(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qlora.main(["--try", "tiny", "--root", str(root)]) == 0
    assert capsys.readouterr().out.startswith("> Quote: ")
    assert qlora.main(["--try", "tinny", "--root", str(root)]) == 1
    assert "no run is called 'tinny'; runs: tiny" in capsys.readouterr().err


def test_without_a_recipe_one_is_written_that_trains_the_same(tmp_path: Path) -> None:
    data = write_chats(tmp_path / "mine.jsonl", 30)
    base = learned(small_phi3(tmp_path / "base"), chats(30), 12)
    given = ["--data", str(data), "--model", str(base), "--max-steps", "2", "--root", str(tmp_path)]
    assert qlora.main(given) == 0
    first = tmp_path / "outputs" / "base-mine"
    assert qlora.main([str(first / "recipe.yaml"), "--name", "again", "--root", str(tmp_path)]) == 0
    same(adapter_of(first), adapter_of(tmp_path / "outputs" / "again"))


def test_a_base_that_can_not_read_the_rows_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"the loss before the first step is .* waive: \[first_loss\]"):
        train_run(recipe_of(base, data, waive=[]), tmp_path, False)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.fixture(scope="module")
def contrary(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base that has learned the rows, and rows most of which say something else: it gets worse."""
    folder = tmp_path_factory.mktemp("contrary")
    rows = chats(60)
    base = learned(small_phi3(folder / "base"), rows, 12)
    recipe = recipe_of(base, write_chats(folder / "chats.jsonl"))
    with (folder / "contrary.jsonl").open("w") as file:
        for chat in rows:
            if split_of(chat[0]["content"], recipe.data) == "train":
                chat[1]["content"] = "no no no no no"
            file.write(json.dumps({"messages": chat}) + "\n")
    return base, folder / "contrary.jsonl"


def test_the_best_adapter_is_kept_and_training_ends_when_it_only_gets_worse(
    contrary: tuple[Path, Path], tmp_path: Path
) -> None:
    sft = {"eval_steps": 1, "early_stopping_patience": 2, "max_steps": 40, "lr_scheduler_type": "constant"}
    folder = train_run(recipe_of(*contrary, sft=sft | {"learning_rate": 3e-3}), tmp_path, False)
    manifest = json.loads((folder / "manifest.json").read_text())
    losses, steps = manifest["eval_loss"], manifest["steps"]
    assert manifest["stopped"] == "no lower loss in 2 evaluations"
    assert losses["best_step"] == steps - 2
    assert losses["best"] < losses["last"]
    # A run that ends at the best step ends with the very same adapter.
    sft |= {"learning_rate": 3e-3, "max_steps": losses["best_step"]}
    same(adapter_of(folder), adapter_of(train_run(recipe_of(*contrary, name="b", sft=sft), tmp_path, False)))


def test_divergence_stops_with_a_sentence(contrary: tuple[Path, Path], tmp_path: Path) -> None:
    sft = {"eval_steps": 2, "max_steps": 40, "learning_rate": 0.3, "lr_scheduler_type": "constant"}
    with pytest.raises(TrainError, match=r"no adapter of it is better than none\. Lower learning_rate \(0.3"):
        train_run(recipe_of(*contrary, sft=sft), tmp_path, False)
    assert len(metrics_of(tmp_path / "run", "loss")) < 10
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_no_number_stops_with_a_sentence(base: Path, data: Path, tmp_path: Path) -> None:
    sft = {"learning_rate": 1e38, "eval_steps": 4}
    with pytest.raises(TrainError, match=r"the loss is \S+ and the gradient \S+ at step 2: training broke"):
        train_run(recipe_of(base, data, sft=sft), tmp_path, False)


def test_what_breaks_in_the_last_step_is_noticed_too(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="training broke"):
        train_run(recipe_of(base, data, sft={"learning_rate": 1e38, "max_steps": 1}), tmp_path, False)


def test_plain_texts_are_trained_whole(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "texts.jsonl"
    texts = [chat[0]["content"] + " and so on" for chat in chats(60)]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    recipe = recipe_of(base, data, data={"format": "text"}, waive=["first_loss", "untrained_stop"])
    folder = train_run(recipe, tmp_path, False)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["eval_loss"]["best"] < manifest["eval_loss"]["start"]
    assert not (folder / "prompts.jsonl").exists()  # they are no chats


@pytest.mark.parametrize(
    "lora", [{}, {"use_dora": True}, {"use_rslora": True}, {"target_modules": ["qkv_proj"]}]
)
def test_kinds_of_adapters_on_a_base_in_16_bit(
    lora: dict[str, Any], base: Path, data: Path, tmp_path: Path
) -> None:
    folder = train_run(recipe_of(base, data, lora=lora), tmp_path, False)
    about = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert all(about[key] == value or key == "target_modules" for key, value in lora.items())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["eval_loss"]["best"] < manifest["eval_loss"]["start"]
    adapter = adapter_of(folder)
    assert manifest["trainable_parameters"] == sum(tensor.numel() for tensor in adapter.values())
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, str(folder / "adapter")).merge_and_unload()
    assert all(parameter.isfinite().all() for parameter in merged.parameters())


def test_checkpointing_changes_no_loss(base: Path, data: Path, tmp_path: Path) -> None:
    losses = {}
    for kind in ("none", "full"):
        recipe = recipe_of(
            base, data, name=kind, sft={"gradient_checkpointing": kind}, lora={"lora_dropout": 0.1}
        )
        losses[kind] = [line[0] for line in metrics_of(train_run(recipe, tmp_path, False), "loss") if line[0]]
    assert len(losses["none"]) == 4
    assert losses["full"] == pytest.approx(losses["none"], abs=1e-5)


def random_row(generator: torch.Generator, length: int, trained: bool = True) -> Encoded:
    ids = torch.randint(10, 30_000, (length,), generator=generator).tolist()
    return Encoded(ids, [int(trained)] * length, [])


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    """A model of this family with an adapter that changes something, and a window shorter than the rows."""
    folder = tiny(request.param, tmp_path_factory.mktemp(request.param) / "base")
    config = json.loads((folder / "config.json").read_text())
    if config.get("sliding_window"):
        config["sliding_window"] = 16
    (folder / "config.json").write_text(json.dumps(config))
    recipe = recipe_of(folder, folder)
    adapted = Adapted(load_base(str(folder), recipe, CPU), recipe, CPU)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    return adapted


def test_every_family_learns_from_packed_rows(family: Adapted) -> None:
    adapted = family
    generator = torch.Generator().manual_seed(0)
    batch = collate([random_row(generator, length) for length in (40, 9, 25)])
    optimizer = torch.optim.AdamW(adapted.parameters_to_train(), lr=1e-3)
    adapted.train()
    losses = []
    for _ in range(3):
        loss = adapted(batch)
        loss.backward()
        assert all(parameter.grad is not None for parameter in adapted.parameters_to_train())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]


@torch.no_grad()
def test_no_row_sees_another(family: Adapted) -> None:
    adapted = family
    adapted.eval()
    generator = torch.Generator().manual_seed(1)
    row = random_row(generator, 40)
    losses = []
    for _ in range(3):
        first, last = (random_row(generator, length, trained=False) for length in (30, 20))
        losses.append(adapted(collate([first, row, last])).item())
    assert losses[0] == losses[1] == losses[2]
    assert losses[0] == pytest.approx(adapted(collate([row])).item(), rel=1e-5)
    turned = Encoded(row.ids[::-1], row.mask, [])
    assert adapted(collate([turned])).item() != pytest.approx(losses[0], rel=1e-3)
