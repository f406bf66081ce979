"""The sections of a recipe. Those that are called like an upstream class have all of its keywords.

What the program itself reads is typed here, with bounds (upstream checks nothing) and our own defaults; the
rest comes from the class's source (`train.upstream`), less what `train.refused` refuses, and is passed on as
it is. Defaults are the QLoRA paper's (arXiv 2305.14314) where it names one: NF4, double quantisation, all
linear layers, 2e-4; dropout is 0, since adapters on a frozen base hardly overfit before the data does.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from core.families import complicated
from train.refused import why_not
from train.upstream import Section, Upstream, of, trackers

Task = Literal["auto", "quotes", "oasst1", "code", "sms"]
Share = Annotated[float, Field(ge=0, lt=1)]
Above0 = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # torch.manual_seed takes more, and drops the rest on a CPU
Pattern = Annotated[str, Field(min_length=1)]
Tokens = Annotated[int, Field(gt=7)]


def _whole(given: float) -> float:
    """A number of steps; as upstream, below 1 it is a share of all."""
    if given >= 1 and given != int(given):
        raise ValueError("a number of steps is whole; below 1 it is a share of all steps")
    return int(given) if given == int(given) else given


def _checkpointed(value: Any) -> Any:
    """What upstream's switch means."""
    return ("full" if value else "none") if isinstance(value, bool) else value


Steps = Annotated[float, Field(gt=0), AfterValidator(_whole)]
StepsOr0 = Annotated[float, Field(ge=0), AfterValidator(_whole)]
Checkpointing = Annotated[Literal["none", "full"] | None, BeforeValidator(_checkpointed)]


class Model(Section):
    """The base: a hub name or a folder, or a folder or a Python package with the GGUF file `gguf_file`."""

    base_model: str = ""
    package: str = ""  # of Python, instead of `base_model`
    gguf_file: str = ""
    revision: str | None = None
    license: str  # of the base, for the model card
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    adapter: str = ""  # an earlier run, or a folder with an adapter: training goes on from it

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
    columns: dict[str, str] = Field({})  # a format's column and the data's where it is another
    format: Literal["chat", "text"] = "chat"  # `text` is the row's own string, without a template or an end
    unescape_html: bool = False  # `&quot;` in the rows is a quotation mark
    name: str | None = None
    revision: str | None = None
    split: str = "train"
    lang: list[str] = Field([])  # oasst1 only; all languages if empty
    group_by: str | None = None  # the column whose rows stay together when splitting
    validation: Share = 0.1
    test: Share = 0.1
    limit: Above0 | None = None  # rows, after a shuffle that is always the same


@of(
    "BitsAndBytesConfig",
    llm_int8_threshold=Annotated[float, Field(ge=0)],
    llm_int8_skip_modules=list[str] | None,
    bnb_4bit_quant_storage=Literal["uint8", "bfloat16", "float16", "float32"] | None,
)
class BitsAndBytes(Upstream):
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


@of("LoraConfig")
class Lora(Upstream):
    """The adapter."""

    r: Above0 = 16
    lora_alpha: Positive = 32
    lora_dropout: Share = 0.0
    target_modules: list[str] | str = "all-linear"  # all of them, a list of names, or an expression
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | Literal["gaussian", "orthogonal"] = True
    rank_pattern: dict[Pattern, Above0] = Field({})  # another r where an expression matches a layer's name
    alpha_pattern: dict[Pattern, Positive] = Field({})  # and another lora_alpha
    modules_to_save: list[Pattern] | None = None  # trained whole, beside the adapter: norms, embeddings
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[Annotated[int, Field(ge=0)]] | Annotated[int, Field(ge=0)] | None = None
    layers_pattern: list[str] | str | None = None

    rest: ClassVar[frozenset[str]] = frozenset(
        [
            "rank_pattern",
            "alpha_pattern",
            "modules_to_save",
            "exclude_modules",
            "layers_to_transform",
            "layers_pattern",
        ]
    )

    @field_validator("init_lora_weights", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        if why := why_not("init_lora_weights", value):
            raise ValueError(f"{value!r} {why}")
        return value

    @field_validator("rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", mode="after")
    @classmethod
    def _expressions(cls, value: Any, info: ValidationInfo) -> Any:
        for pattern in value if isinstance(value, dict) else [value] if isinstance(value, str) else []:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no expression: {error}") from None
            if info.field_name == "alpha_pattern" and complicated(pattern):
                raise ValueError(
                    f"{pattern!r} is too complicated for the conversion, which may match it for years"
                )
        return value

    @model_validator(mode="after")
    def _fits(self) -> Lora:
        by_layer = self.layers_to_transform is not None
        if by_layer and isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            raise ValueError("layers_to_transform is for a list of target_modules; say the layers in it")
        if self.layers_pattern is not None and not by_layer:
            raise ValueError("layers_pattern says where layers_to_transform counts: say that, too")
        odd = [rank for rank in (self.r, *self.rank_pattern.values()) if rank % 2]
        if self.init_lora_weights == "orthogonal" and odd:
            raise ValueError(f"init_lora_weights: orthogonal needs ranks that are even, and {odd[0]} is odd")
        return self


def _listed(value: Any) -> Any:
    """One tracker or several; upstream's word for none is `none`."""
    return ([] if value == "none" else [value]) if isinstance(value, str) else value


# Of both configs of trainers: what they share with TrainingArguments, whose keys have no bounds.
SHARED: dict[str, Any] = {
    "adam_beta1": Share,
    "adam_beta2": Share,
    "adam_epsilon": Positive,
    "ddp_bucket_cap_mb": Above0 | None,
    "report_to": Annotated[list[Literal[tuple(trackers())]], BeforeValidator(_listed)],  # type: ignore[misc]
}


class Arguments(Upstream):
    """What is said of the training itself, whatever the loss."""

    rest: ClassVar[frozenset[str]] = frozenset({"project"})

    per_device_train_batch_size: Above0 = 4
    per_device_eval_batch_size: Above0 | None = None  # otherwise as in training
    gradient_accumulation_steps: Annotated[int, Field(gt=0, le=2**16)] = 1
    num_train_epochs: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    max_steps: Annotated[int, Field(ge=-1)] = -1  # above 0 it goes before the epochs
    learning_rate: Positive = 2e-4
    lr_scheduler_type: str = "cosine"
    warmup_ratio: Share = 0.0
    warmup_steps: StepsOr0 = 0  # above 0 it goes before the ratio; below 1 a share of all steps
    optim: str = "adamw_torch_fused"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0  # 0 clips nothing
    fp16: bool = False  # otherwise bf16
    gradient_checkpointing: Checkpointing = None  # goes before the recipe's memory
    group_by_length: bool = False
    logging_steps: Steps = 10
    eval_steps: Steps | None = None  # and checkpoints; otherwise once an epoch
    early_stopping_patience: Above0 | None = None  # evaluations without a lower loss
    report_to: list[str] = Field([])
    project: str = "tune2chat"  # what trackers call all runs together
    seed: Seed = 0

    @model_validator(mode="after")
    def _some_steps(self) -> Arguments:
        if not self.max_steps:
            raise ValueError("max_steps: 0 trains nothing; leave it out to train by num_train_epochs")
        return self


@of("SFTConfig", **SHARED)
class Sft(Arguments):
    """Training on answers as they are."""

    title: ClassVar[str] = "SFTConfig"

    max_length: Tokens = 2048  # tokens of a block; a longer chat is left out and counted
    packing: bool = True
    assistant_only_loss: bool = True

    @model_validator(mode="after")
    def _fits(self) -> Sft:
        if self.group_by_length and self.packing:
            raise ValueError(
                "group_by_length sorts rows by their length, and packed blocks have one; say packing: false"
            )
        return self


def steps_of(given: float, steps: int) -> int:
    """A number of steps; below 1 a share of all `steps`, rounded up as transformers does."""
    return math.ceil(given * steps) if given < 1 else int(given)


def warmup_steps(args: Arguments, steps: int) -> int:
    """Steps until the learning rate is reached."""
    return steps_of(args.warmup_steps, steps) or round(args.warmup_ratio * steps)
