"""Sweeps: what they stand for, that nothing is run twice or lost, and what their table says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import TrainError
from train import sweep as command
from train.recipe import Recipe
from train.sweep import ROWS, run_sweep
from train.sweep_grid import SWEEPS, Cell, Sweep, cells, load_sweep, scale
from train.sweep_results import groups_of, write_results

ALPHAS = [16, 64]
BASIC: dict[str, Any] = {
    "recipe": "smollm2-quotes",
    "grid": {"LoraConfig.lora_alpha": ALPHAS},
    "seeds": [1, 2, 3],
    "arms": ["fixed", "compensated"],
}


def written(folder: Path, **changes: Any) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(BASIC | changes, sort_keys=False))
    return str(path)


def loaded(folder: Path, **changes: Any) -> tuple[Sweep, list[Cell]]:
    sweep = load_sweep(written(folder, **changes))
    return sweep, cells(sweep)


class Trained:
    """Stands for training: figures that depend on all of the recipe, and a note of each run."""

    def __init__(self, killed_at: int | None = None, equal: bool = False) -> None:
        self.hashes: list[str] = []
        self._killed_at, self._equal = killed_at, equal

    def __call__(self, recipe: Recipe, folder: Path) -> dict[str, float | None]:
        if len(self.hashes) == self._killed_at:
            raise KeyboardInterrupt
        self.hashes.append(recipe.config_hash())
        effect = math.log2(scale(recipe.lora) * recipe.sft.learning_rate / 1e-3)
        loss = 2.0 + 0.1 * effect**2 + recipe.sft.seed / 100 + recipe.lora.lora_alpha / 1e6
        diverged = effect > 2 and recipe.sft.seed == 3
        return {
            "start_eval_loss": 3.5,
            "best_eval_loss": 2.0 if self._equal else loss,
            "last_eval_loss": None if diverged else 2.0 if self._equal else loss + 0.1,
            "grad_norm_max": 1.0 if self._equal else loss / 2,
            "diverged": diverged,
            "steps": 10,
        }


def test_the_sweep_of_the_project_is_the_seeds() -> None:
    sweep = load_sweep("lora-alpha")
    runs = cells(sweep)
    assert len(runs) == 6 * 3 * 2
    ratios = sorted({run.recipe.lora.lora_alpha / run.recipe.lora.r for run in runs})
    assert ratios == [2, 4, 8, 16, 32, 64]  # as in the seed
    assert all(path.read_text().startswith("# ") for path in SWEEPS.glob("*.yaml"))


def test_the_compensated_arm_keeps_alpha_over_r_times_the_rate(tmp_path: Path) -> None:
    _, runs = loaded(tmp_path)
    products = {
        arm: sorted({scale(c.recipe.lora) * c.recipe.sft.learning_rate for c in runs if c.arm == arm})
        for arm in ("fixed", "compensated")
    }
    assert products["fixed"] == pytest.approx([1 * 1e-3, 4 * 1e-3])
    assert products["compensated"] == pytest.approx([2 * 1e-3])  # the recipe's own


def test_rslora_scales_by_the_root_of_r(tmp_path: Path) -> None:
    _, runs = loaded(tmp_path, grid={"LoraConfig.r": [16, 64], "LoraConfig.use_rslora": [True]})
    assert sorted({scale(run.recipe.lora) for run in runs}) == [32 / 8, 32 / 4]


def test_a_grid_can_change_a_section_that_the_recipe_leaves_out(tmp_path: Path) -> None:
    _, runs = loaded(
        tmp_path, recipe="gemma-7b-quotes", grid={"data.limit": [100, 200], "GPTQConfig": [None]}
    )
    assert {run.recipe.data.limit for run in runs} == {100, 200}
    assert all(run.recipe.sft.seed == run.seed for run in runs)


def test_max_steps_are_those_of_each_run(tmp_path: Path) -> None:
    sweep, _ = loaded(tmp_path)
    assert {run.recipe.sft.max_steps for run in cells(sweep, 7)} == {7}


def test_a_run_of_both_arms_is_done_once_and_nothing_twice(tmp_path: Path) -> None:
    sweep, runs = loaded(tmp_path, grid={"LoraConfig.lora_alpha": [32, 64]})  # 32 is the recipe's own
    first, second = Trained(), Trained()
    rows = run_sweep(sweep, runs, tmp_path / "out", first)
    assert len(rows) == 12
    assert len(first.hashes) == len(set(first.hashes)) == 9
    assert run_sweep(sweep, runs, tmp_path / "out", second) == rows
    assert not second.hashes


def test_a_kill_loses_only_the_run_that_was_going_on(tmp_path: Path) -> None:
    sweep, runs = loaded(tmp_path)
    killed, second = Trained(killed_at=5), Trained()
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, runs, tmp_path / "out", killed)
    lines = (tmp_path / "out" / ROWS).read_text().splitlines()
    assert [json.loads(line)["config"] for line in lines] == killed.hashes
    rows = run_sweep(sweep, runs, tmp_path / "out", second)
    assert [row["config"] for row in rows] == killed.hashes + second.hashes


def test_equal_results_of_different_settings_are_refused(tmp_path: Path) -> None:
    sweep, runs = loaded(tmp_path)
    with pytest.raises(TrainError, match="different settings and equal results") as caught:
        run_sweep(sweep, runs, tmp_path / "out", Trained(equal=True))
    assert all(run.recipe.config_hash() in str(caught.value) for run in runs[:2])
    assert len((tmp_path / "out" / ROWS).read_text().splitlines()) == 1


def test_a_row_that_was_copied_by_hand_is_refused(tmp_path: Path) -> None:
    sweep, runs = loaded(tmp_path)
    rows = run_sweep(sweep, runs, tmp_path / "out", Trained())
    rows[1] = rows[0] | {"config": rows[1]["config"]}
    (tmp_path / "out" / ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(TrainError, match="either one is a copy"):
        run_sweep(sweep, runs, tmp_path / "out", Trained())


def test_a_broken_file_of_rows_is_named(tmp_path: Path) -> None:
    sweep, runs = loaded(tmp_path)
    (tmp_path / ROWS).write_text('{"config": ')
    with pytest.raises(TrainError, match=f"can't read .*{ROWS}"):
        run_sweep(sweep, runs, tmp_path, Trained())


def test_table_and_plot_show_spread_and_divergence(tmp_path: Path) -> None:
    sweep, runs = loaded(tmp_path, grid={"LoraConfig.lora_alpha": [16, 64, 256]})
    rows = run_sweep(sweep, runs, tmp_path / "out", Trained())
    groups = groups_of(runs, rows)
    assert [group.cell.arm for group in groups] == ["fixed"] * 3 + ["compensated"] * 3
    assert groups[0].spread("best_eval_loss") == pytest.approx((2.02, 0.01), abs=1e-4)
    assert [group.diverged for group in groups] == [0, 0, 1, 0, 0, 0]
    write_results(sweep, runs, rows, tmp_path / "out")
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert "| fixed | 16 | 1 | 0.001 | 2.020 ± 0.010 | 2.120 ± 0.010 | 1.01 ± 0.005 | no |" in lines
    assert "| fixed | 256 | 16 | 0.001 | 3.620 ± 0.010 | 3.715 ± 0.007 | 1.81 ± 0.005 | 1 of 3 |" in lines
    assert (tmp_path / "out" / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "out").glob("*.partial"))


def test_words_and_a_second_key_are_drawn_too(tmp_path: Path) -> None:
    grid = {"SFTConfig.lr_scheduler_type": ["linear", "cosine"], "LoraConfig.lora_alpha": [16, 64]}
    sweep, runs = loaded(tmp_path, grid=grid, arms=["fixed"])
    figures = iter(range(1, 100))

    def run_cell(recipe: Recipe, folder: Path) -> dict[str, float | None]:
        return Trained()(recipe, folder) | {"best_eval_loss": next(figures) / 10}

    rows = run_sweep(sweep, runs, tmp_path / "out", run_cell)
    assert "| fixed | cosine | 64 |" in write_results(sweep, runs, rows, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seeds": [1, 2]}, "less than 3 different ones"),
        ({"seeds": [1, 1, 1]}, "less than 3 different ones"),
        ({"seeds": [], "allow_few_seeds": True}, "less than"),
        ({"arms": ["fixd"]}, r"arms.0: .*'fixed' or 'compensated'"),
        ({"gird": {}}, r"gird: unknown key; did you mean 'grid'\?"),
        ({"grid": {}}, "grid: .*at least 1"),
        ({"grid": {"LoraConfig.r": []}}, "grid.LoraConfig.r: .*at least 1"),
        ({"grid": {"LoraConfig.lora_alfa": [1]}}, r"unknown key; did you mean 'lora_alpha'\?"),
        ({"grid": {"LoraConf.r": [1]}}, r"LoraConf: unknown key; did you mean 'LoraConfig'\?"),
        ({"grid": {"waive.bos": [1]}}, "waive.bos: unknown key"),
        ({"grid": {"LoraConfig.r": [8, -1]}}, r"LoraConfig.r: .*\(given: -1\)"),
        ({"grid": {"SFTConfig.seed": [1, 2]}}, "seeds has a key of its own"),
        ({"grid": {"data.validation": [0.1]}, "recipe": "smolm2-quotes"}, r"did you mean 'smollm2-quotes'\?"),
        ({"grid": {"LoraConfig.r": [0], "SFTConfig.max_lenght": [9]}}, r"(?s)LoraConfig.r.*max_length"),
    ],
)
def test_a_mistake_is_told(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=reason):
        loaded(tmp_path, **changes)


def test_few_seeds_are_allowed_on_request(tmp_path: Path) -> None:
    assert len(loaded(tmp_path, seeds=[1], allow_few_seeds=True)[1]) == 4


def test_the_command_says_what_is_wrong_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["lora-alhpa"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: no sweep is called 'lora-alhpa'; did you mean 'lora-alpha'"
    )
    with pytest.raises(SystemExit):
        command.main(["lora-alpha", "--max-steps", "0"])
    assert "--max-steps 0 is not above 0" in capsys.readouterr().err
