"""Every keyword of the installed classes works in a recipe or is refused with its reason, before torch."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.command import missing
from core.errors import TrainError
from train import upstream
from train.dpo_config import DIVERGENCES, LOSSES, SMOOTHED, WITH_DIVERGENCE
from train.recipe import SECTIONS, Recipe, changed, parse
from train.refused import REFUSED
from train.sections import steps_of
from train.upstream import SOURCES, choices, keywords, trackers

GOOD = {"model": {"base_model": "some/model", "license": "mit"}, "data": {"path": "rows.jsonl"}}
# Older releases had them, and recipes do: they are translated.
OURS = {"warmup_ratio", "group_by_length", "early_stopping_patience"}


def recipe_of(section: str, **keys: Any) -> Recipe:
    return parse(GOOD | {section: keys}, "test")


def installed(section: str) -> set[str]:
    """The keywords of the class itself, which is imported."""
    if section == "BitsAndBytesConfig":
        from transformers import BitsAndBytesConfig

        parameters = inspect.signature(BitsAndBytesConfig.__init__).parameters.values()
        return {p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD} - {"self"}
    import peft
    import trl

    fields = dataclasses.fields(getattr(peft if section == "LoraConfig" else trl, section))
    return {field.name for field in fields if field.init}


@pytest.mark.parametrize("section", SOURCES)
def test_each_installed_keyword_works_or_is_refused(section: str) -> None:
    there, works, refused = installed(section), set(SECTIONS[section].model_fields), set(REFUSED[section])
    assert set(keywords(section)) == there
    assert works & refused == set()
    assert (works | refused) - there == (OURS if section in ("SFTConfig", "DPOConfig") else set())
    assert there - works - refused == set()


def test_the_choices_are_the_libraries_own() -> None:
    from transformers import SchedulerType
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.training_args import OptimizerNames

    assert choices("OptimizerNames") == [name.value for name in OptimizerNames]
    assert choices("SchedulerType") == [name.value for name in SchedulerType]
    assert trackers() == list(INTEGRATION_TO_CALLBACK)


def test_defaults_that_nobody_set_are_the_classes_own() -> None:
    import peft
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.sft_config import SFTConfig

    made_of = {"SFTConfig": SFTConfig, "DPOConfig": DPOConfig, "LoraConfig": peft.LoraConfig}
    for section, made in made_of.items():
        rest = SECTIONS[section].rest  # type: ignore[attr-defined]
        for field in dataclasses.fields(made):
            if field.name in rest - {"project"} and field.default is not dataclasses.MISSING:
                assert SECTIONS[section].model_fields[field.name].default == field.default, field.name


def test_a_recipe_is_read_without_torch() -> None:
    code = (
        "import sys; from train.recipe import load_recipe; load_recipe('smollm2-quotes');"
        "print([name for name in ('torch', 'transformers', 'trl', 'peft') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    said = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("section", "key", "value", "reason"),
    [
        ("SFTConfig", "learning_rate", "abc", r"SFTConfig.learning_rate: .*number.* \(given: 'abc'\)"),
        ("SFTConfig", "per_device_train_batch_size", -1, r"greater than 0 \(given: -1\)"),
        ("SFTConfig", "per_device_train_batch_size", 4.5, r"valid integer.* \(given: 4.5\)"),
        ("SFTConfig", "logging_steps", 2.5, r"whole; below 1 it is a share of all steps \(given: 2.5\)"),
        ("SFTConfig", "optim", "lion_8bits", r"'lion_8bits' is none .*did you mean 'lion_8bit'\?"),
        ("SFTConfig", "optim", "galore_adamw", r"'galore_adamw' is refused: it is for training all"),
        ("SFTConfig", "lr_scheduler_type", "cosin", r"did you mean 'cosine'\?"),
        ("SFTConfig", "lr_scheduler_type", "reduce_lr_on_plateau", r"refused: it waits for upstream's own"),
        ("SFTConfig", "report_to", ["wandbb"], r"did you mean 'wandb'\?"),
        ("SFTConfig", "adam_beta2", 1.0, r"SFTConfig.adam_beta2: .*less than 1"),
        ("SFTConfig", "adam_beta3", 0.5, r"adam_beta3: unknown key; did you mean 'adam_beta2'\?"),
        ("SFTConfig", "lr_scheduler_kwargs", "min_lr=0", r"lr_scheduler_kwargs: .*dictionary"),
        ("SFTConfig", "neftune_noise_alpha", 5, r"can't be set: its noise is scaled by a row's length"),
        ("SFTConfig", "save_steps", 50, r"can't be set: a checkpoint is kept .* every save_minutes"),
        ("DPOConfig", "beta", 0, r"DPOConfig.beta: .*greater than 0"),
        ("DPOConfig", "beta", -0.1, r"DPOConfig.beta: .*greater than 0"),
        ("DPOConfig", "loss_type", "sigmod", r"'sigmod' is none .*did you mean 'sigmoid'\?"),
        ("DPOConfig", "loss_type", [], r"DPOConfig.loss_type: .*at least 1"),
        ("DPOConfig", "loss_type", ["sft", "sft"], r"loss_type: a loss is there twice"),
        ("DPOConfig", "loss_type", "exo_pair", r"exo_pair needs label_smoothing"),
        ("DPOConfig", "loss_weights", [1.0, 2.0], r"loss_weights: 2 for the 1 of loss_type"),
        ("DPOConfig", "loss_weights", [0], r"loss_weights.0: .*greater than 0"),
        ("DPOConfig", "label_smoothing", 0.5, r"label_smoothing: .*less than 0.5"),
        (
            "DPOConfig",
            "label_smoothing",
            0.1,
            r"label_smoothing does nothing here; .* robust",
        ),
        ("DPOConfig", "ld_alpha", 1.5, r"ld_alpha: .*less than or equal to 1"),
        ("DPOConfig", "f_divergence_type", "kl", r"f_divergence_type: .*'reverse_kl'"),
        ("DPOConfig", "f_alpha_divergence_coef", 0.3, r"does nothing here; .* alpha_divergence"),
        ("DPOConfig", "discopop_tau", 0.1, r"does nothing here; it is for loss_type discopop"),
        ("DPOConfig", "precompute_ref_batch_size", 4, r"does nothing without precompute_ref_log_probs"),
        ("DPOConfig", "sync_ref_model", True, r"can't be set: the reference stays"),
        ("DPOConfig", "save_steps", 50, r"can't be set: .*\(DPOConfig.eval_steps\)"),
        ("DPOConfig", "truncation_mode", "keep_end", r"can't be set: a pair is trained whole"),
        ("DPOConfig", "reference_free", True, r"reference_free: unknown key; TRL has dropped it"),
        ("DPOConfig", "rpo_alpha", 1.0, r"say DPOConfig.loss_type: \[sigmoid, sft\]"),
        ("DPOConfig", "lr", 1.0, r"DPOConfig.lr: unknown key; say DPOConfig.learning_rate"),
        ("DPOConfig", "packing", True, r"DPOConfig.packing: unknown key; it is SFTConfig's alone"),
        ("SFTConfig", "beta", 0.1, r"SFTConfig.beta: unknown key; it is DPOConfig's.* in place of SFTConfig"),
        ("LoraConfig", "r", 0, r"LoraConfig.r: .*greater than 0"),
        ("LoraConfig", "lora_dropout", 1, r"LoraConfig.lora_dropout: .*less than 1"),
        ("LoraConfig", "rank_pattern", {"q_proj": 0}, r"rank_pattern.q_proj: .*greater than 0"),
        ("LoraConfig", "alpha_pattern", {"(.*)*": 8}, r"too complicated for the conversion"),
        ("LoraConfig", "rank_pattern", {"q_proj(": 8}, r"'q_proj\(' is no expression"),
        ("LoraConfig", "layers_pattern", "layers", r"say that, too"),
        ("LoraConfig", "init_lora_weights", "eva", r"'eva' reads the data first"),
        ("LoraConfig", "trainable_token_indices", [1], r"can't be set: say LoraConfig.modules_to_save"),
        ("BitsAndBytesConfig", "bnb_4bit_compute_dtype", "bfloat16", r"can't be set: training is in bf16"),
        ("BitsAndBytesConfig", "bnb_4bit_quant_storage", "int3", r"bnb_4bit_quant_storage: .*'bfloat16'"),
    ],
)
def test_what_upstream_lets_pass_is_told(section: str, key: str, value: Any, reason: str) -> None:
    more = {"load_in_4bit": True} if section == "BitsAndBytesConfig" else {}
    with pytest.raises(TrainError, match=reason) as caught:
        recipe_of(section, **{key: value}, **more)
    assert len(str(caught.value).splitlines()) == 2  # the file's name first


@pytest.mark.parametrize(("given", "fast"), [("none", True), ("full", False), (False, True), (True, False)])
def test_gradient_checkpointing_means_what_it_says(given: Any, fast: bool) -> None:
    assert recipe_of("SFTConfig", gradient_checkpointing=given).fast is fast


def test_steps_may_be_a_share_of_all() -> None:
    assert [steps_of(given, 30) for given in (0, 0.1, 0.05, 1, 7)] == [0, 3, 2, 1, 7]
    assert recipe_of("SFTConfig", eval_steps=0.25).sft.eval_steps == 0.25


def test_keywords_that_nobody_set_are_not_in_the_hash_nor_written() -> None:
    plain = recipe_of("LoraConfig", r=8)
    content = plain.model_dump(by_alias=True)
    assert "rank_pattern" not in content["LoraConfig"]
    assert "adam_beta2" not in content["SFTConfig"]
    assert recipe_of("LoraConfig", r=8, rank_pattern={}).config_hash() == plain.config_hash()
    other = changed(plain, {"SFTConfig.adam_beta2": 0.95, "LoraConfig.rank_pattern": {"q_proj": 4}}, "--set")
    assert other.config_hash() != plain.config_hash()
    again = changed(other, {"SFTConfig.seed": 0}, "--set")
    assert again == other
    assert again.sft.passed() == {"adam_beta2": 0.95}
    assert again.lora.rank_pattern == {"q_proj": 4}


def test_a_package_that_is_missing_is_told_as_an_import_of_it_would_be() -> None:
    """Every command turns that into one line with pip's command."""
    with pytest.raises(ModuleNotFoundError) as raised:
        upstream._read("no_such_package", "config.py")
    assert missing(raised.value).startswith("error: the package 'no_such_package' isn't installed: pip ")


def test_one_trainer_has_its_section() -> None:
    pairs = recipe_of("DPOConfig", beta=0.2)
    assert pairs.args is pairs.dpo
    assert "SFTConfig" not in pairs.model_dump(by_alias=True)
    assert changed(pairs, {"DPOConfig.seed": 1}, "--set").args.seed == 1
    assert recipe_of("SFTConfig").args.title == "SFTConfig"
    assert "DPOConfig" not in recipe_of("SFTConfig").model_dump(by_alias=True)
    with pytest.raises(TrainError, match=r"SFTConfig trains on answers and DPOConfig on preferences"):
        parse(GOOD | {"SFTConfig": {"seed": 1}, "DPOConfig": {"seed": 1}}, "test")
    with pytest.raises(TrainError, match=r"lora_dropout does nothing while DPOConfig.disable_dropout is on"):
        parse(GOOD | {"LoraConfig": {"lora_dropout": 0.1}, "DPOConfig": {}}, "test")


def test_the_losses_are_trls_own() -> None:
    """Their names are read from the trainer's source, and the config's help names the same."""
    from trl.trainer.dpo_config import DPOConfig

    (field,) = (field for field in dataclasses.fields(DPOConfig) if field.name == "loss_type")
    assert set(LOSSES) == set(re.findall(r"`'(\w+)'`", field.metadata["help"]))
    (field,) = (field for field in dataclasses.fields(DPOConfig) if field.name == "f_divergence_type")
    assert set(DIVERGENCES) <= set(re.findall(r"`(\w+)`", field.metadata["help"]))
    assert set(WITH_DIVERGENCE) < set(LOSSES)
    assert set(SMOOTHED) < set(LOSSES)
