"""PEFT's LoRA adapters: read, checked against a base, and added to its weights as PEFT itself does it.

Covered: LoRA (arXiv:2106.09685), rsLoRA (arXiv:2312.03732), DoRA (arXiv:2402.09353), ranks and alphas by
module, trained biases, LoRA on embeddings, fan_in_fan_out, modules saved whole (`modules_to_save`, resized
embeddings). Not covered, and refused: whatever changes the base's weights before training, or isn't a sum of
weights (aLoRA, QALoRA, experts' parameters).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from core.adapter_names import refuse_kind, saved_name
from core.checkpoint import Checkpoint, TensorFile, TextCheckpoint
from core.errors import ConvertError
from core.families import complicated, is_match, text_name
from core.files import ADAPTER_CONFIG, read_json

WEIGHTS = "adapter_model.safetensors"
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
HEADS = ("lm_head.weight", "embed_out.weight")
BLOCK = 2**16  # values that are worked on at a time: a few of these fit the processor's cache

_PART = re.compile(r"(.+)\.(lora_embedding_[AB]|lora_[AB]|lora_magnitude_vector)(?:\.(weight|bias))?")


@dataclass
class LowRank:
    """One module's update; `a`, `b` and `magnitude` are names in the adapter's file.

    Shapes: a (r, in), b (out, r), magnitude (out). An embedding is out x in, too: out = width, in = tokens.
    """

    scaling: float = 0.0
    a: str = ""
    b: str = ""
    magnitude: str = ""
    transposed: bool = False  # the weight is stored as (in, out): embeddings, fan_in_fan_out


class Adapter:
    """An adapter's folder. All its tensors are accounted for: in `low_rank`, `bias` or `whole`."""

    def __init__(self, folder: Path) -> None:
        """Read the config and the tensors' names. Raises ConvertError for what a merge can't express."""
        self.folder = folder
        self.config = read_json(folder / ADAPTER_CONFIG)
        refuse_kind(folder, self.config)
        if not (folder / WEIGHTS).is_file():
            raise ConvertError(
                f"{folder} has no {WEIGHTS}; save the adapter as safetensors: "
                "model.save_pretrained(folder, safe_serialization=True)"
            )
        self._file = TensorFile(folder / WEIGHTS)
        self.left_out: list[str] = []
        self.low_rank: dict[str, LowRank] = {}  # all three by the name of the base's tensor
        self.bias: dict[str, tuple[str, float]] = {}  # name in the adapter's file, scaling
        self.whole: dict[str, str] = {}
        self._names_of_adapters: set[str] = set()
        for key in self._file.shapes:
            self._sort(key)
        for name, update in self.low_rank.items():
            self._complete(name, update)

    def _sort(self, key: str) -> None:
        """Find what a tensor of the file is for."""
        name, adapter = saved_name(key)
        name = in_text(name)
        if ".original_module." in name:
            return  # PEFT's copy of what a resized module was before training; its own loader skips it, too
        self._names_of_adapters.add(adapter)
        found = _PART.fullmatch(name)
        if not found:
            name = name.replace(".base_layer.", ".")
            known = self.whole.setdefault(name, key)
            # PEFT saves a resized embedding that is trained as a whole under both of its names.
            same = known == key or torch.equal(self._file.read(known), self._file.read(key))
            self._once(key if same else known, key)
            return
        module, part, field = found.groups()
        if part == "lora_B" and field == "bias":
            self._once(self.bias.setdefault(f"{module}.bias", (key, 0.0))[0], key)
            return
        update = self.low_rank.setdefault(f"{module}.weight", LowRank())
        update.transposed |= part.startswith("lora_embedding")
        place = {"A": "a", "B": "b"}.get(part[-1], "magnitude")
        self._once(getattr(update, place) or key, key)
        setattr(update, place, key)

    def _once(self, known: str, key: str) -> None:
        """Refuse a file with two tensors for one thing."""
        if len(names := sorted(self._names_of_adapters - {""})) > 1:
            raise ConvertError(
                f"{self._file.path} holds several adapters ({', '.join(names)}); save one of them alone: "
                f"model.save_pretrained(folder, selected_adapters=[{names[0]!r}])"
            )
        if known != key:
            raise ConvertError(f"{self._file.path} has two tensors for one: {known} and {key}")

    def _complete(self, name: str, update: LowRank) -> None:
        """Check that an update has its parts, and find its scaling."""
        module = name.removesuffix(".weight")
        shapes = [self._file.shapes.get(key, ()) for key in (update.a, update.b)]
        if any(len(shape) != 2 for shape in shapes) or not shapes[0][0] == shapes[1][1] > 0:
            raise ConvertError(f"{self._file.path}: {module} lacks a lora_A and a lora_B of the same rank")
        if bool(update.magnitude) != bool(self.config.get("use_dora")):
            raise ConvertError(f"{self._file.path}: {module} and use_dora of {ADAPTER_CONFIG} disagree")
        rank = shapes[0][0]
        update.scaling = self._alpha(module) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        if f"{module}.bias" in self.bias:
            self.bias[f"{module}.bias"] = (self.bias[f"{module}.bias"][0], update.scaling)

    def _alpha(self, module: str) -> float:
        """lora_alpha, unless alpha_pattern names the module: the first match, as PEFT's get_pattern_key.

        Ranks need no such rule: they are the tensors' own.
        """
        for pattern, alpha in (self.config.get("alpha_pattern") or {}).items():
            if complicated(pattern):
                raise ConvertError(f"alpha_pattern {pattern!r} of {self.folder} is too complicated")
            try:
                if is_match(pattern, module):
                    return float(alpha)
            except (re.error, ValueError, TypeError) as error:
                raise ConvertError(f"alpha_pattern {pattern!r} of {self.folder}: {error}") from None
        return float(self.config["lora_alpha"])

    def touches(self, name: str) -> bool:
        """Whether a tensor of the base is changed at all."""
        return name in self.low_rank or name in self.bias or name in self.whole

    def check(self, base: Checkpoint, shapes: dict[str, tuple[int, ...]]) -> None:
        """Refuse an adapter of another base. `shapes`: of the base's tensors, a tied head included.

        What it changes in other parts of a base than the text model stays out (`left_out`): no text reads it.
        """
        if isinstance(base, TextCheckpoint):
            self._leave_out_other_parts()
        names = [*self.low_rank, *self.bias, *self.whole]
        for name in names:
            if name not in shapes:
                self._refuse_prefix(names, shapes)
                raise self._another_base(base, f"it changes {name}, which the base doesn't have")
        for name, key in self.whole.items():
            given, wanted = self._file.shapes[key], shapes[name]
            rows_may_differ = name.endswith(EMBEDDINGS + HEADS)
            if given[1:] != wanted[1:] or (given != wanted and not rows_may_differ):
                raise self._another_base(base, f"its {name} is {_by(given)}, the base's {_by(wanted)}")
        for name, update in self.low_rank.items():
            given = (self._file.shapes[update.b][0], self._file.shapes[update.a][1])
            wanted = self._file.shapes[self.whole[name]] if name in self.whole else shapes[name]
            if self.config.get("fan_in_fan_out") and given[::-1] == wanted:
                update.transposed = True
            if (given[::-1] if update.transposed else given) != wanted:
                raise self._another_base(base, f"its {name} is {_by(given)}, the base's {_by(wanted)}")

    def _leave_out_other_parts(self) -> None:
        for tensors in (self.low_rank, self.bias, self.whole):
            for name in [name for name in tensors if text_name(name) is None]:
                self.left_out.append(name)
                del tensors[name]
        if not (self.low_rank or self.bias or self.whole):
            raise ConvertError(
                f"{self._file.path} changes only other parts than the text model ({self.left_out[0]}), and "
                "only the text model is merged and converted; train an adapter of its layers"
            )

    def notes(self) -> list[str]:
        """Lines on what `check` left out."""
        if not self.left_out:
            return []
        return [
            f"note: {len(self.left_out)} of the tensors that the adapter changes are of other parts than the "
            f"text model (the first: {self.left_out[0]}), and are left out"
        ]

    def _refuse_prefix(self, names: list[str], shapes: Iterable[str]) -> None:
        """Say so where all names are the base's but for what stands before them."""
        known = set(shapes)
        steps = names[0].split(".")
        for count in range(1, len(steps)):
            prefix = ".".join(steps[:count]) + "."
            if all(name.startswith(prefix) and name[len(prefix) :] in known for name in names):
                raise ConvertError(
                    f"all names in {self._file.path} have {prefix!r} before the base's own, which PEFT "
                    "doesn't write; save the adapter without what it was wrapped in"
                )
        for prefix in {name.partition(".")[0] + "." for name in known}:
            if all(prefix + name in known for name in names):
                raise ConvertError(
                    f"all names in {self._file.path} lack {prefix!r} before them: it was trained on a model "
                    "without a head, not on a language model; train it with AutoModelForCausalLM"
                )

    def _another_base(self, base: Checkpoint, reason: str) -> ConvertError:
        trained_on = self.config.get("base_model_name_or_path")
        return ConvertError(
            f"the adapter {self.folder} was trained on another base ({trained_on}) than {base.folder}: "
            f"{reason}; give the right one: --base-model DIR"
        )

    def read(self, key: str) -> torch.Tensor:
        """Return a tensor of the adapter's file. Raises ConvertError if it isn't finite."""
        tensor = self._file.read(key)
        if not torch.isfinite(tensor).all():
            raise ConvertError(f"{self._file.path}: {key} holds NaN or infinity; the training run broke down")
        return tensor

    def whole_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that replaces the base's."""
        return self._file.shapes[self.whole[name]]

    def merged(self, name: str, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the tensor `name` with the update in it: computed in fp32, rounded once to `dtype`.

        W' = W + s*B*A; with DoRA m * (W + s*B*A) / |W + s*B*A|, the norm taken for each output (PEFT 0.21,
        tuners/lora/layer.py and variants.py). The same operations in PEFT's order, so its fp32 result comes
        out bit for bit, only in blocks of rows that stay in the cache.
        """
        if name in self.whole:
            weight = self.read(self.whole[name])
        if name in self.bias:
            key, scaling = self.bias[name]
            return (weight.float() + self.read(key).float() * scaling).to(dtype)
        if name not in self.low_rank:
            return weight.to(dtype)
        update = self.low_rank[name]
        left, right = self.read(update.b).float(), self.read(update.a).float()
        if update.transposed:
            left, right = right.T, left.T
        magnitude = self.read(update.magnitude).float().reshape(-1, 1) if update.magnitude else None
        by_column = magnitude is not None and update.transposed  # then the norms need all rows
        rows = len(weight) if by_column else max(1, BLOCK // weight.shape[1])
        out = torch.empty(weight.shape, dtype=dtype)
        for start in range(0, len(weight), rows):
            part = slice(start, start + rows)
            block = torch.mm(left[part], right).mul_(update.scaling).add_(weight[part])
            if magnitude is not None:
                norm = torch.linalg.norm(block.T if by_column else block, dim=1)
                factor = (magnitude if by_column else magnitude[part]) / norm.reshape(-1, 1)
                block.mul_(factor.T if by_column else factor)
            out[part].copy_(block)
        return out


def in_text(name: str) -> str:
    """A name with the text model of a base with more parts taken for the base itself; others as they are."""
    return text_name(name) or name


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
