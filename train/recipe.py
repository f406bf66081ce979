"""A recipe: everything that a run depends on, as a closed YAML file of about 20 lines.

Sections are called like the upstream classes, keys like their keywords, so that their documentation is ours.
Defaults are the QLoRA paper's (arXiv 2305.14314) where it names one: NF4, double quantisation, all linear
layers, 2e-4; dropout is 0, since adapters on a frozen base hardly overfit before the data does.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from core.errors import TrainError
from train.foreign_keys import instead
from train.paths import ROOT, find_file, located, read_yaml

RECIPES = Path(__file__).with_name("recipes")

# What a recipe may break on purpose, by name; each is printed when it is waived.
Check = Literal[
    "unmatched_targets",
    "pad_is_stop",
    "untrained_stop",
    "bos",
    "first_loss",
    "fp16_gemma",
    "rows_lost",
    "rows_left_out",
    "context",
    "warmup",
]
Task = Literal["auto", "quotes", "oasst1", "code", "sms"]
Share = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # torch.manual_seed takes more, and drops the rest on a CPU


class Section(BaseModel):
    """Frozen, and closed: an unknown key is an error, and so are NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class Model(Section):
    """The base: a hub name or a folder, or a folder or a Python package with the GGUF file `gguf_file`."""

    base_model: str = ""
    package: str = ""  # of Python, instead of `base_model`
    gguf_file: str = ""
    revision: str | None = None
    license: str  # of the base, for the model card
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if bool(self.base_model) == bool(self.package):
            raise ValueError("give either base_model or package")
        if self.package and not self.gguf_file:
            raise ValueError("package needs gguf_file, the name of the file in it")
        return self


class Data(Section):
    """What `datasets.load_dataset` gets, how its rows become chats, and how they are split."""

    path: str  # a hub name or a file: .jsonl, .json, .csv, .tsv or .parquet
    license: str = "unknown"
    task: Task = "auto"  # `auto` finds out by the columns
    columns: dict[str, str] = {}  # a format's column and the data's, where they differ: {prompt: question}
    format: Literal["chat", "text"] = "chat"  # `text` is the row's own string, without a template or an end
    unescape_html: bool = False  # `&quot;` in the rows is a quotation mark
    name: str | None = None
    revision: str | None = None
    split: str = "train"
    lang: list[str] = []  # oasst1 only; all languages if empty
    group_by: str | None = None  # the column whose rows stay together when splitting
    validation: Share = 0.1
    test: Share = 0.1
    limit: Annotated[int, Field(gt=0)] | None = None  # rows, after a shuffle that is always the same


class BitsAndBytes(Section):
    """How the base is quantised; leave the section out for a base in 16 bit."""

    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    bnb_4bit_use_double_quant: bool = True

    @model_validator(mode="after")
    def _one_width(self) -> BitsAndBytes:
        if self.load_in_4bit == self.load_in_8bit:
            raise ValueError("say load_in_4bit: true or load_in_8bit: true; leave the section out for 16 bit")
        return self


class Gptq(Section):
    """A base that was quantised by GPTQ. Exllama's kernels have no backward pass: they are off."""

    bits: Literal[4] = 4


class Lora(Section):
    """The adapter."""

    r: Annotated[int, Field(gt=0)] = 16
    lora_alpha: Annotated[float, Field(gt=0)] = 32
    lora_dropout: Share = 0.0
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool = True

    @field_validator("init_lora_weights", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        if isinstance(value, str) and value.startswith(("pissa", "loftq", "olora", "corda")):
            raise ValueError(
                f"{value!r} changes the base's weights too: it survives neither NF4 nor the merge on "
                "the original base; leave it out, or use use_rslora or use_dora"
            )
        return value


class Sft(Section):
    """The training itself."""

    max_length: Annotated[int, Field(gt=7)] = 2048  # tokens of a block; a longer chat is left out and counted
    packing: bool = True
    assistant_only_loss: bool = True
    per_device_train_batch_size: Annotated[int, Field(gt=0)] = 4
    per_device_eval_batch_size: Annotated[int, Field(gt=0)] | None = None  # otherwise as in training
    gradient_accumulation_steps: Annotated[int, Field(gt=0, le=2**16)] = 1
    num_train_epochs: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    max_steps: Annotated[int, Field(ge=-1)] = -1  # above 0 it goes before the epochs
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup_ratio: Share = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0  # above 0 it goes before the ratio
    optim: Literal["adamw_torch_fused", "paged_adamw_8bit", "paged_adamw_32bit"] = "adamw_torch_fused"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    fp16: bool = False  # otherwise bf16
    gradient_checkpointing: Literal["none", "full"] | None = None  # goes before the recipe's memory
    group_by_length: bool = False
    logging_steps: Annotated[int, Field(gt=0)] = 10
    eval_steps: Annotated[int, Field(gt=0)] | None = None  # and checkpoints; otherwise once an epoch
    early_stopping_patience: Annotated[int, Field(gt=0)] | None = None  # evaluations without a lower loss
    report_to: list[Literal["tensorboard", "trackio"]] = []
    seed: Seed = 0

    @model_validator(mode="after")
    def _fits(self) -> Sft:
        if not self.max_steps:
            raise ValueError("max_steps: 0 trains nothing; leave it out to train by num_train_epochs")
        if self.group_by_length and self.packing:
            raise ValueError("group_by_length sorts rows that are padded; say packing: false with it")
        return self


def warmup_steps(sft: Sft, steps: int) -> int:
    """Steps until the learning rate is reached."""
    return sft.warmup_steps or round(sft.warmup_ratio * steps)


class Recipe(Section):
    """One run."""

    name: str = ""  # otherwise the file's
    description: str = ""
    model: Model
    data: Data
    bnb: BitsAndBytes | None = Field(None, alias="BitsAndBytesConfig")
    gptq: Gptq | None = Field(None, alias="GPTQConfig")
    lora: Lora = Field(Lora(), alias="LoraConfig")
    sft: Sft = Field(Sft(), alias="SFTConfig")
    memory: Literal["auto", "lean", "fast"] = "auto"  # the fastest that the plan says will fit
    save_minutes: Annotated[float, Field(gt=0)] = 10.0  # the longest between two checkpoints
    waive: list[Check] = []

    @model_validator(mode="after")
    def _one_quantisation(self) -> Recipe:
        if self.bnb and self.gptq:
            raise ValueError("a base is quantised by bitsandbytes or by GPTQ: keep one of the two sections")
        return self

    @property
    def fast(self) -> bool:
        """Whether to keep what the backward pass needs, and not to compute it again."""
        if self.sft.gradient_checkpointing:
            return self.sft.gradient_checkpointing == "none"
        return self.memory == "fast"

    @property
    def pace(self) -> str:
        """In a word, how the memory is used."""
        return "fast" if self.fast else "lean"

    def config_hash(self) -> str:
        """The first 12 hexadecimal digits of a SHA-256 of everything that changes the result."""
        aside = {"name", "description", "memory", "save_minutes", "waive"}
        content = self.model_dump(exclude=aside, by_alias=True)
        path = Path(self.data.path)
        content["data"]["path"] = path.name if path.is_file() else self.data.path  # wherever the file lies
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


SECTIONS: dict[str, type[Section]] = {
    "model": Model,
    "data": Data,
    "BitsAndBytesConfig": BitsAndBytes,
    "GPTQConfig": Gptq,
    "LoraConfig": Lora,
    "SFTConfig": Sft,
}


def load_recipe(given: str | Path) -> Recipe:
    """Read a recipe by its path, or by the name of one of the project's. Raises TrainError, all at once."""
    path = find_file(given, RECIPES, "recipe")
    recipe = with_paths(parse(read_yaml(path), path), path.parent, ROOT)
    return recipe.model_copy(update={"name": recipe.name or path.stem})


def with_paths(recipe: Recipe, *starts: Path) -> Recipe:
    """The recipe with the paths of its data and base as `located` gives them."""
    data, model = recipe.data, recipe.model
    data = data.model_copy(update={"path": located(data.path, *starts)})
    if model.base_model:
        model = model.model_copy(update={"base_model": located(model.base_model, *starts)})
    return recipe.model_copy(update={"data": data, "model": model})


def parse(content: dict[str, Any], where: Path | str) -> Recipe:
    """Check a recipe's content. Raises TrainError with every mistake in it."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        mistakes = "\n  ".join(map(sentence, error.errors()))
        raise TrainError(f"{where}:\n  {mistakes}") from None


def changed(recipe: Recipe, values: dict[str, Any], where: str) -> Recipe:
    """The recipe with other values, by dotted keys. Raises TrainError."""
    content = recipe.model_dump(by_alias=True)
    for key, value in values.items():
        inside, (*sections, name) = content, key.split(".")
        for section in sections:
            deeper = {} if inside.get(section) is None else inside[section]
            if not isinstance(deeper, dict):
                inside, name = content, key
                break
            inside[section] = inside = deeper
        inside[name] = value
    return parse(content, where)


def sentence(error: Mapping[str, Any]) -> str:
    """One mistake in words, with the value and the nearest known key."""
    place = ".".join(str(part) for part in error["loc"]) or "recipe"
    if error["type"] == "extra_forbidden":
        return f"{place}: unknown key; {_known_instead(error['loc'])}"
    if error["type"] == "missing":
        return f"{place}: is missing"
    given = "" if isinstance(error["input"], dict | list) else f" (given: {error['input']!r})"
    return f"{place}: {error['msg'].removeprefix('Value error, ')}{given}"


def _known_instead(place: tuple[int | str, ...]) -> str:
    """Which key is right where `place` isn't one: of another section, of other programs, or the nearest."""
    key, inside = str(place[-1]), len(place) > 1
    section = SECTIONS.get(str(place[0]), Recipe) if inside else Recipe
    homes = [f"{name}.{key}" for name, home in SECTIONS.items() if key in home.model_fields]
    if inside and key in Recipe.model_fields:
        homes.append(f"{key}, beside the sections")
    if homes:
        return f"say {' or '.join(homes)}"
    if answer := instead(key):
        return answer
    known = [field.alias or name for name, field in section.model_fields.items()]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
