"""The recipes of the project load and say what they break; a wrong one is told all its mistakes at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from core.errors import TrainError
from train.batches import Order
from train.examples import Encoded
from train.recipe import RECIPES, load_recipe
from train.sections import Sft

FILES = sorted(RECIPES.glob("*.yaml"))
FAITHFUL = [path for path in FILES if path.stem.endswith("-faithful")]
# What their settings break. gemma-2b-code broke nothing that is a setting: its code couldn't run.
BROKEN = {
    "gemma-7b-quotes": ["fp16_gemma", "untrained_stop"],
    "phi3.5-oasst1": ["unmatched_targets", "untrained_stop", "warmup"],
    "gemma-2b-code": [],
    "llama2-7b-gptq-quotes": ["untrained_stop"],
}

GOOD = """
model: {base_model: some/model, license: mit}
data: {path: rows.jsonl}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_of_the_project_loads_and_is_short(path: Path) -> None:
    recipe = load_recipe(path.stem)
    assert recipe.name == path.stem
    assert recipe.description
    assert recipe.model.license != "unknown"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert len(lines) <= 27
    assert max(map(len, lines)) <= 110


def test_each_seed_has_a_recipe_and_a_twin_where_its_settings_are_known() -> None:
    better = {path.stem for path in FILES} - {path.stem for path in FAITHFUL}
    assert better == {
        *BROKEN,
        "mistral-7b-sms",
        "smollm2-quotes",
        "smollm2-quotes-dpo",
        "qwen3-4b-oasst1",
        "gemma-3-4b-oasst1",
    }
    assert {path.stem.removesuffix("-faithful") for path in FAITHFUL} == BROKEN.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_only_faithful_recipes_waive_checks(path: Path) -> None:
    broken = BROKEN[path.stem.removesuffix("-faithful")] if path in FAITHFUL else []
    assert sorted(load_recipe(path).waive) == broken


@pytest.mark.parametrize("path", [path for path in FILES if path not in FAITHFUL], ids=lambda path: path.stem)
def test_the_better_forms_hold_rows_out_and_stop_early(path: Path) -> None:
    recipe = load_recipe(path)
    sft = recipe.args
    assert recipe.data.format == "chat"
    assert recipe.data.validation > 0
    assert recipe.data.test > 0
    assert sft.assistant_only_loss
    assert sft.packing or recipe.dpo
    assert not sft.fp16
    assert sft.early_stopping_patience
    assert 0 < sft.warmup_ratio < 1
    assert sft.lr_scheduler_type != "constant"
    assert recipe.lora.target_modules == "all-linear"
    if "smollm2" not in path.stem:  # those are for two CPU cores
        assert sft.max_length * sft.per_device_train_batch_size * sft.gradient_accumulation_steps >= 8192


def test_the_tours_data_come_with_it() -> None:
    assert Path(load_recipe("smollm2-quotes").data.path).is_file()
    assert Path(load_recipe("smollm2-quotes-dpo").data.path).is_file()


def test_each_recipe_has_a_hash_of_its_own() -> None:
    assert len({load_recipe(path).config_hash() for path in FILES}) == len(FILES)


def test_an_unknown_recipe_is_told_the_near_one() -> None:
    with pytest.raises(TrainError, match=r"no recipe is called 'phi3-oasst'; did you mean 'phi3.5-oasst1'\?"):
        load_recipe("phi3-oasst")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            GOOD + "LoraConfig: {lora_alhpa: 3}",
            r"LoraConfig.lora_alhpa: unknown key; did you mean 'lora_alpha'",
        ),
        (GOOD + "SFTConfg: {seed: 1}", r"SFTConfg: unknown key; did you mean 'SFTConfig'\?"),
        (GOOD + "SFTConfig: {seed: one}", r"SFTConfig.seed: .*integer.* \(given: 'one'\)"),
        (GOOD + "SFTConfig: {bf16: true}", r"SFTConfig.bf16: can't be set: training is in bf16 unless"),
        (GOOD + "SFTConfig: {save_steps: 50}", r"can't be set: a checkpoint is kept .* every save_minutes"),
        (GOOD + "bf16: true", r"bf16: unknown key; training is in bf16 unless"),
        (GOOD + "SFTConfig: {max_seq_length: 512}", r"unknown key; say SFTConfig.max_length"),
        (GOOD + "num_train_epochs: 3", r"num_train_epochs: unknown key; say SFTConfig.num_train_epochs"),
        (GOOD + "LoraConfig: {load_in_4bit: true}", r"unknown key; say BitsAndBytesConfig.load_in_4bit"),
        (GOOD + "LoraConfig: {lora_r: 8}", r"LoraConfig.lora_r: unknown key; say LoraConfig.r"),
        (GOOD + "output_dir: x", r"output_dir: unknown key; a run's folder is outputs/NAME"),
        (GOOD + "SFTConfig: {save_minutes: 5}", r"unknown key; say save_minutes, beside the sections"),
        (GOOD + "SFTConfig: {seed: -1}", r"SFTConfig.seed: .*\(given: -1\)"),
        (GOOD + f"SFTConfig: {{seed: {2**32}}}", r"SFTConfig.seed: .*less than 4294967296"),
        (GOOD + "SFTConfig: {learning_rate: .nan}", r"SFTConfig.learning_rate: .*\(given: nan\)"),
        (GOOD + "SFTConfig: {learning_rate: .inf}", r"SFTConfig.learning_rate: .*finite"),
        (GOOD + "SFTConfig: {num_train_epochs: .inf}", r"SFTConfig.num_train_epochs: "),
        (GOOD + "SFTConfig: {num_train_epochs: 0}", r"SFTConfig.num_train_epochs: .*greater than 0"),
        (GOOD + "SFTConfig: {max_steps: 0}", "max_steps: 0 trains nothing"),
        (GOOD + "SFTConfig: {per_device_train_batch_size: 0}", r"batch_size: .*greater than 0"),
        (GOOD + "LoraConfig: {r: 0}", r"LoraConfig.r: .*greater than 0"),
        (GOOD + "LoraConfig: {r: 8, r: 16}", "'r' is there twice"),
        (GOOD + "data: {path: other}", "'data' is there twice"),
        (GOOD + "LoraConfig: {init_lora_weights: pissa}", "'pissa' changes the base's weights too"),
        (GOOD + "BitsAndBytesConfig: {}", "say load_in_4bit: true or load_in_8bit: true"),
        (GOOD + "waive: [everything]", r"waive.0: .*'unmatched_targets'"),
        ("data: {path: rows.jsonl}", "model: is missing"),
        ("[1, 2]", "has no sections"),
        ("model: {", "can't read .*mine.yaml"),
        ("model: !!python/object/apply:os.system [ls]", "can't read .*mine.yaml"),
    ],
)
def test_one_mistake_is_one_sentence(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=reason) as caught:
        load_recipe(written(tmp_path, text))
    assert len(str(caught.value).splitlines()) <= 2


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    content = {
        "model": {"base_model": "a/b"},
        "data": {"path": "rows.jsonl", "validaton": 0.2},
        "LoraConfig": {"r": 0},
        "SFTConfig": {"learning_rate": -1, "packing": "perhaps"},
    }
    with pytest.raises(TrainError) as caught:
        load_recipe(written(tmp_path, yaml.safe_dump(content)))
    said = str(caught.value)
    assert len(said.splitlines()) == 6  # the file's name first
    for part in (
        "model.license",
        "did you mean 'validation'",
        "LoraConfig.r",
        "given: -1",
        "SFTConfig.packing",
    ):
        assert part in said


def test_a_data_file_beside_the_recipe_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    monkeypatch.chdir("/")
    assert load_recipe(written(tmp_path, GOOD)).data.path == str(tmp_path / "rows.jsonl")


def test_paths_of_a_recipe_mean_the_same_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home / "base", elsewhere / "base"):
        folder.mkdir(parents=True)
    for folder in (home, elsewhere):
        (folder / "rows.jsonl").write_text("{}\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    text = GOOD.replace("some/model", "~/base").replace("rows.jsonl", "~/rows.jsonl")
    recipe = load_recipe(written(home, text))
    assert (recipe.model.base_model, recipe.data.path) == (str(home / "base"), str(home / "rows.jsonl"))
    recipe = load_recipe("~/mine.yaml")
    assert recipe.data.path == str(home / "rows.jsonl")
    (home / "rows.jsonl").unlink()
    gone = load_recipe(written(home, GOOD))
    assert gone.data.path == str(home / "rows.jsonl")  # and not the one in the working directory
    assert gone.model.base_model == "some/model"  # a name on the hub stays one


def test_a_huge_seed_gives_an_order_of_its_own() -> None:
    rows = [Encoded([1, 2, 3], [0, 1, 1], [])] * 9
    orders = []
    for seed in (0, 2**31, 2**32 - 1):
        sft = Sft(seed=seed, packing=False, per_device_train_batch_size=1)
        order = Order(rows, sft)
        orders.append([order.micro_batches(step) for step in range(order.steps)])
    assert orders[0] != orders[1] != orders[2]
