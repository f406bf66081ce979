"""A recipe: everything that a run depends on, as a closed YAML file of about 20 lines.

Sections are called like the upstream classes, keys like their keywords, so that their documentation is ours.
Their types, bounds and defaults are in `train.sections`. Files that are named mean the same from anywhere.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from core.command import ROOT
from core.errors import TrainError
from train import mistakes
from train.dpo_config import Dpo
from train.sections import BitsAndBytes, Data, Gptq, Lora, Model, Sft
from train.upstream import Section

FILES = (".jsonl", ".json", ".csv", ".parquet", ".tsv", ".gguf")  # no name on the hub ends like these
RECIPES = Path(__file__).with_name("recipes")

# Of the steps of a run in FP8, the share at the end that is in 16 bit, as the adapter is used: there it
# unlearns what made good FP8's own errors, as in arXiv 2509.25149, appendix D. With a cosine's rates, which
# end at zero, a tenth does nothing, and three bring the loss back (bench/results/train-same-fp8.json).
LAST_IN_16_BIT = 0.3

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
    dpo: Dpo | None = Field(None, alias="DPOConfig")  # in place of SFTConfig
    memory: Literal["auto", "lean", "fast"] = "auto"  # the fastest that the plan says will fit
    precision: Literal["16-bit", "fp8"] = "16-bit"  # of products with frozen weights
    fully_shard: bool = False  # share the base out among several GPUs, each of which keeps a part
    save_minutes: Annotated[float, Field(gt=0)] = 10.0  # the longest between two checkpoints
    waive: list[Check] = Field([])

    @model_validator(mode="before")
    @classmethod
    def _one_trainer(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "DPOConfig" not in content:
            return content
        if content.get("SFTConfig") is not None:
            raise ValueError(
                "SFTConfig trains on answers and DPOConfig on preferences between two: keep one of the two "
                "(an adapter that SFTConfig made is gone on with by model.adapter)"
            )
        defaults = {"DPOConfig": content["DPOConfig"] or {}}  # also where nothing stands below its name
        return {key: value for key, value in content.items() if key != "SFTConfig"} | defaults

    @model_serializer(mode="wrap")
    def _one_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the section of the trainer that isn't used."""
        unused = ("dpo", "DPOConfig") if self.dpo is None else ("sft", "SFTConfig")
        return {name: value for name, value in handler(self).items() if name not in unused}

    @model_validator(mode="after")
    def _pairs_on_whole_cards(self) -> Recipe:
        if self.dpo and self.fully_shard:
            raise ValueError("fully_shard is for SFTConfig: preferences want the whole base on each GPU")
        return self

    @model_validator(mode="after")
    def _dropout_that_counts(self) -> Recipe:
        if self.dpo and self.dpo.disable_dropout and self.lora.lora_dropout:
            raise ValueError(
                "LoraConfig.lora_dropout does nothing while DPOConfig.disable_dropout is on, as it is if "
                "nothing is said: leave lora_dropout out, or say disable_dropout: false"
            )
        return self

    @model_validator(mode="after")
    def _one_quantisation(self) -> Recipe:
        if self.bnb and self.gptq:
            raise ValueError("a base is quantised by bitsandbytes or by GPTQ: keep one of the two sections")
        if (self.bnb or self.gptq) and self.lora.init_lora_weights == "orthogonal":
            raise ValueError(
                "LoraConfig.init_lora_weights: orthogonal makes an adapter of the base's own type, and "
                "a quantised base's is none to train in; leave it out, or say gaussian"
            )
        return self

    @model_validator(mode="after")
    def _shared_out(self) -> Recipe:
        if not self.fully_shard:
            return self
        cures = {
            "GPTQConfig": (self.gptq, "give the 16-bit base, with BitsAndBytesConfig: {load_in_4bit: true}"),
            "load_in_8bit": (self.bnb and self.bnb.load_in_8bit, "say load_in_4bit: true"),
            "use_dora": (self.lora.use_dora, "leave use_dora out, or say use_rslora: true"),
            "modules_to_save": (self.lora.modules_to_save, "leave modules_to_save out"),
        }
        for key, (given, cure) in cures.items():
            if given:
                raise ValueError(f"fully_shard can't share a base out with {key}: {cure}, or fully_shard out")
        return self

    @property
    def fast(self) -> bool:
        """Whether to keep what the backward pass needs, and not to compute it again."""
        if self.args.gradient_checkpointing:
            return self.args.gradient_checkpointing == "none"
        return self.memory == "fast"

    @property
    def args(self) -> Sft | Dpo:
        """The trainer's arguments: those of DPOConfig where it is there, else of SFTConfig."""
        return self.dpo or self.sft

    @property
    def pace(self) -> str:
        """In a word, how the memory is used."""
        return "fast" if self.fast else "lean"

    def fp8_steps(self, steps: int) -> int:
        """How many of a run's steps are in FP8: the first ones."""
        return steps - round(LAST_IN_16_BIT * steps) if self.precision == "fp8" else 0

    def config_hash(self) -> str:
        """The first 12 hexadecimal digits of a SHA-256 of everything that changes the result."""
        aside = {"name", "description", "memory", "save_minutes", "waive"}
        content = self.model_dump(exclude=aside, by_alias=True)
        if not self.model.adapter:  # as in runs that were begun before there was such a key
            del content["model"]["adapter"]
        if self.precision == "16-bit":
            del content["precision"]
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
    "DPOConfig": Dpo,
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
    """Check a recipe's content. Raises TrainError with every mistake in it.

    A key that no section has is refused by `upstream.Section`; `refused.py` says why upstream's own may not
    be set, `mistakes.py` words it all.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        told = "\n  ".join(map(sentence, error.errors()))
        if "DPOConfig" in content and "SFTConfig" not in content:
            told = told.replace("say SFTConfig.", "say DPOConfig.")
        raise TrainError(f"{where}:\n  {told}") from None


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
    return mistakes.sentence(error, SECTIONS, Recipe)


class _Loader(yaml.SafeLoader):
    """YAML that refuses the same key twice; the library takes the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def located(path: str, *starts: Path) -> str:
    """A file or folder as an absolute path, the same from anywhere; the name of a hub's as it is.

    `~` is the home; a relative path begins at the first of `starts` where it is there. In a recipe these are
    the recipe's folder and the repository, on the command line the working directory.
    """
    home = Path(path).expanduser()
    places = [os.path.abspath(start / home) for start in starts]
    found = next((place for place in places if os.path.exists(place)), None)
    named = home.suffix in FILES or path.startswith((".", "~", "/"))
    return found or (places[0] if named else path)


def full_path(given: str) -> Path:
    """A folder of the command line, in full: what is printed with it is right from anywhere."""
    return Path(given).expanduser().absolute()


def find_file(given: str | Path, folder: Path, kind: str) -> Path:
    """The file `given`, or the one of that name that comes with the project. Raises TrainError."""
    for path in (Path(given).expanduser(), folder / f"{given}.yaml"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    near = difflib.get_close_matches(Path(given).stem, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise TrainError(f"no {kind} is called {str(given)!r}; {hint}There are: {', '.join(known)}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping. Raises TrainError."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainError(f"can't read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise TrainError(f"{path} has no sections; see train/recipes for some that do")
    return content
