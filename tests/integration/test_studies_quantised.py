"""The study of quantised bases on two layers of the embedded model: its arms, its GPTQ, its going on."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from statistics import fmean

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3TextConfig

from bench.cells import FILE, Results, Runner, read_results
from bench.short_run import forget_bases, fresh_adapter
from bench.task_runs import tuned
from bench.task_sets import TEST, judge, load_tasks
from core.errors import ChatError, TrainError
from core.gptq import open_checkpoint
from studies.quantised import ARMS, PLAN, STUDY, Plan, begin, main, on_processor
from studies.quantised_report import DATA
from train.gptq import GptqLinear, load
from train.to_gptq import GROUP, gptq, layer_calls, quantise_checkpoint, round_to_nearest, windows_of

CPU = torch.device("cpu")
QUICK = PLAN["quick"]
TWO_STEPS = QUICK["sizes"] | {"train_rows": 4, "test_rows": 2, "epochs": 1, "batch": 2, "unlike_tokens": 32}
TWO_STEPS |= {"new_tokens": 4, "repeats": 1}
ABOUT = {"command": "c", "base": "b", "date": "d", "cores": 2, "versions": {"torch": "2"}}
SMALL = QUICK | {"sizes": TWO_STEPS, "alphas": [32], "windows": [2, 32], "rates": [], "batches": [1]}
TASKS = load_tasks(DATA)


@pytest.fixture(scope="module")
def study(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A study that was stopped before its first cell: only the GPTQ base is made."""
    made = begin(base, tmp_path_factory.mktemp("study"), "cpu", SMALL)
    made.results.put("about", ABOUT)
    _, failed, left = STUDY.measure(made.results, made.lines, time.monotonic(), before=made.quantise)
    assert not failed
    assert left == sum(len(line) for line in made.lines())
    assert list(made.results.content["cells"]) == ["about", "gptq"]
    return made


def correlated(inputs: int, rows: int = 512) -> torch.Tensor:
    """What a layer sees: few directions carry most of it."""
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(rows, inputs, generator=generator)
    return seen @ torch.randn(inputs, inputs, generator=generator) * torch.rand(inputs, generator=generator)


def test_gptq_errs_less_than_rounding_to_nearest() -> None:
    seen = correlated(128)
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    parts, made = gptq(weight, seen.T @ seen)
    errors = [((weight - other) @ seen.T).square().sum() for other in (made, round_to_nearest(weight))]
    assert errors[0] < 0.7 * errors[1]
    read = GptqLinear(nn.Linear(128, 64, bias=False), list(parts.values()), {"group_size": GROUP})
    torch.testing.assert_close(read.weight, made, rtol=1e-5, atol=1e-6)


def test_gptq_without_correlation_is_rounding_to_nearest() -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(gptq(weight, torch.eye(128))[1], round_to_nearest(weight))


def test_a_width_that_makes_no_groups_is_refused() -> None:
    with pytest.raises(TrainError, match="96 x 8 has no groups of 64"):
        gptq(torch.ones(8, 96), torch.eye(96))


def test_a_whole_checkpoint_is_read_by_training_and_conversion(base: Path, tmp_path: Path) -> None:
    windows = torch.randint(100, 20_000, (4, 64), generator=torch.Generator().manual_seed(0))
    ratios = quantise_checkpoint(base, tmp_path / "gptq", windows, CPU)
    assert len(ratios) == 14
    assert max(ratios) < 1
    model = load(tmp_path / "gptq", torch.float32, CPU, "sdpa")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    layer = "model.layers.1.mlp.down_proj"
    before, after = plain.get_submodule(layer).weight, model.get_submodule(layer).weight
    assert 0.01 < (after - before).norm() / before.norm() < 0.2
    converted = open_checkpoint(tmp_path / "gptq").read(f"{layer}.weight").float()
    torch.testing.assert_close(converted, after, rtol=2e-3, atol=1e-4)
    ids = windows[:1]
    assert (model(ids).logits - plain(ids).logits).abs().mean() < plain(ids).logits.std()


def test_each_layer_is_calibrated_as_the_model_calls_it() -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 32, "vocab_size": 300, "sliding_window": 8}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Gemma3TextConfig(**sizes, layer_types=kinds)).eval()
    windows = torch.randint(0, 300, (2, 32))
    with torch.no_grad():
        states = model(windows, output_hidden_states=True).hidden_states
        ((hidden, options),) = layer_calls(model, windows)
        for number, layer in enumerate(list(model.get_decoder().layers)[:2], 1):
            hidden = layer(hidden, **options[number - 1])
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            torch.testing.assert_close(hidden, states[number])


def test_too_little_to_calibrate_on_is_refused() -> None:
    with pytest.raises(TrainError, match="7 tokens to calibrate on make no window of 8"):
        windows_of(range(7), 8, 1)


@pytest.mark.parametrize("arm", ARMS)
def test_each_arm_trains_two_steps(arm: str, study: Plan) -> None:
    found = tuned(study.recipe(arm, seed=1), "cpu", TASKS["sentiment"], TWO_STEPS)
    assert len(found["losses"]) == len(found["grad_norms"]) == 2
    assert not found["diverged"]
    assert [set(each) for each in found["evals"]] == [{"loss", "licence", "code", "manual"}] * 2
    assert found["evals"][0] != found["evals"][1]  # it was trained
    assert set(found["changed"]) == {
        *("typos", "case", "paraphrase", "distractor", "injection", "other domain")
    }
    assert 0 <= found["obeyed"] <= 1
    json.dumps(found, allow_nan=False)


def test_all_tasks_judged_together_are_as_each_alone(study: Plan) -> None:
    with fresh_adapter(study.recipe("bf16"), CPU) as session:
        rows = [row for task in TASKS.values() for row in task.rows(TEST, 3)]
        together = judge(session, rows)
        assert set(together) == set(TASKS)
        for task in TASKS:
            alone = [judge(session, [row])[task] for row in rows if row.task.name == task]
            assert together[task] == pytest.approx(fmean(alone))


def test_a_base_is_loaded_once_for_adapters_that_begin_anew(study: Plan) -> None:
    forget_bases()
    found = [tuned(study.recipe("bf16", seed=1), "cpu", TASKS["quotes"], TWO_STEPS, False) for _ in range(2)]
    assert found[0]["losses"] == found[1]["losses"]
    with fresh_adapter(study.recipe("bf16"), CPU) as one:
        weights = one.adapted.base
    with fresh_adapter(study.recipe("bf16"), CPU) as other:
        assert other.adapted.base is weights


def test_a_rate_that_breaks_training_is_a_result(study: Plan) -> None:
    study.sizes = TWO_STEPS | {"epochs": 4}
    found = tuned(study.recipe("bf16", rate=0.999), "cpu", TASKS["quotes"], TWO_STEPS, judged=False)
    study.sizes = TWO_STEPS
    assert found["diverged"]
    json.dumps(found, allow_nan=False)


def test_arms_run_side_by_side_and_one_that_fails_is_told_of(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = begin(base, tmp_path, "cpu", SMALL | {"tasks": []})
    STUDY.measure(study.results, study.lines, time.monotonic(), 2, study.quantise)
    (tmp_path / "gptq" / "model.safetensors").write_bytes(b"not whole")
    with Runner(study.results, workers=2) as runner:
        alphas = [cell for line in study.lines() for cell in line if cell.key.startswith("alpha|fixed|")]
        runner.do(alphas)
        assert runner.failed == 1
    assert "alpha|fixed|32|gptq|1: " in capsys.readouterr().err
    done = {f"alpha|fixed|32|{arm}|1" for arm in ("nf4", "int8", "bf16")}
    assert set(study.results.content["cells"]) == done | {"gptq"}


def test_speed_is_measured_here_and_added_to_results_from_elsewhere(base: Path, tmp_path: Path) -> None:
    study = begin(base, tmp_path, "cpu", SMALL)
    study.results.content["settings"]["device"] = "a GPU"
    study.results.put("about", ABOUT)
    assert on_processor(base, tmp_path)[1:] == (0, 0)
    found = read_results(tmp_path, STUDY.version)["cells"]
    assert {f"processor|{arm}" for arm in ARMS} <= set(found)
    for key in ("processor|nf4", "gguf|Q4_K_M"):
        (batch,) = found[key]["batches"].values()
        assert min(batch["tokens_per_s"] + batch["first_s"]) > 0
        assert 0.01 < batch["memory_gb"] < 16
    assert found["gguf|Q4_K_M"]["weights_gb"] < found["gguf|F16"]["weights_gb"] < 0.2
    assert found["processor|gptq"]["weights_gb"] < found["processor|bf16"]["weights_gb"]
    text = STUDY.page(json.loads((tmp_path / FILE).read_text()), {})
    assert re.search(r"On processor \(\d+ cores\):\n\n\|.* int8 \| bf16 \| llama.cpp F16 \| .*Q4", text)
    with pytest.raises(ChatError, match=r"other settings .base"):
        on_processor(tmp_path / "gptq", tmp_path)


def test_a_study_goes_on_and_its_report_comes_from_the_file_alone(study: Plan, base: Path) -> None:
    key = "task|quotes|nf4|1"
    for arm in ("nf4", "bf16"):
        kept = tuned(study.recipe(arm, seed=1), "cpu", TASKS["quotes"], TWO_STEPS)
        study.results.put(f"task|quotes|{arm}|1", kept)
    kept = study.results.content["cells"][key]
    again = begin(base, study.out, "cpu", SMALL)
    assert again.results.content["cells"][key] == json.loads(json.dumps(kept))
    todo = [cell.key for line in again.lines() for cell in line if not again.results.done(cell.key)]
    assert key not in todo
    assert "task|quotes|nf4|2" in todo
    STUDY.write(again.results.content, study.out)
    written = (study.out / "report.md").read_text(encoding="utf-8")
    (study.out / "report.md").unlink()
    STUDY.write(json.loads((study.out / FILE).read_text(encoding="utf-8")), study.out)
    assert (study.out / "report.md").read_text(encoding="utf-8") == written
    assert f"{kept['loss']:.3f}" in written
    assert "one seed, so no spread to judge by" in written
    assert (study.out / "tasks.png").stat().st_size > 10_000
    pages = study.out / "pages"
    assert STUDY.publish(study.out, pages, "quantised-small") == 0
    published = (pages / "quantised-small.md").read_text(encoding="utf-8")
    assert published == re.sub(r"\]\((\w+\.png)", r"](quantised-small/\1", written)
    kept_there = json.loads((pages / "quantised-small" / FILE).read_text(encoding="utf-8"))
    assert kept_there == again.results.content


def test_results_of_another_version_or_study_are_refused(tmp_path: Path, base: Path) -> None:
    begin(base, tmp_path, "cpu", SMALL).results.put("about", ABOUT)
    with pytest.raises(ChatError, match=r"other settings .alphas \[32\], and now \[16, 512\]"):
        begin(base, tmp_path, "cpu", SMALL | {"alphas": [16, 512]})
    (tmp_path / FILE).unlink()
    Results(tmp_path, 0, {}).put("gptq", {})
    with pytest.raises(ChatError, match="another version"):
        begin(base, tmp_path, "cpu", SMALL)
    with pytest.raises(ChatError, match="another version"):
        STUDY.publish(tmp_path, tmp_path / "pages", "quantised")


def test_the_command_says_so_in_a_line(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Results(tmp_path, 0, {}).put("gptq", {})
    assert main(["--quick", "--base", str(base), "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ")
    assert "another version" in error
    assert "Traceback" not in error
    with pytest.raises(SystemExit) as left:
        main(["--base", str(tmp_path)])
    assert left.value.code == 2
    assert f"--base '{tmp_path}' is no checkpoint, as it has no config.json" in capsys.readouterr().err


def test_the_command_without_time_leaves_a_report_that_says_how_to_go_on(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of cells that begin; the GPTQ base is made in any case."""
    words = ["--quick", "--base", str(base), "--out", str(tmp_path / "out"), "--minutes", "0"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"\d+ cells aren't measured yet; go on with: .*quantised.py --quick .*--minutes 0", printed
    )
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert f"`python studies/quantised.py --quick --base {base.name}` on CPU" in text
    assert f"The base is {base.name} (licence not given)" in text
    assert "This is the quick look" in text
    assert text.count("Not measured yet.") == 8
    assert "On the 16 windows of 128 tokens that it was calibrated on" in text
    assert "nan" not in text
