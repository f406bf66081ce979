"""The frozen base, 4-bit, 8-bit, 16-bit or GPTQ, and the adapter on it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import peft
import torch
from huggingface_hub import snapshot_download
from peft.helpers import disable_input_dtype_casting
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.utils.logging import (
    disable_progress_bar,
    get_verbosity,
    set_verbosity,
    set_verbosity_error,
)

from core.adapter_names import name_for_whole, text_tensors
from core.errors import TrainError
from core.families import KEY_MAPPING, text_config
from core.template import ChatTemplate, write_template
from train import gptq, sharding
from train.attention import attention_for
from train.batches import Batch
from train.fused.fuse import fuse, fused, unfuse
from train.fused.supports import allows, fits, fp8_obstacle, has_kernels, obstacle
from train.layers import adapted_layers, linears, lora_config
from train.loss import head_loss
from train.recipe import Recipe
from train.sections import BitsAndBytes


def compute_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """fp32 on a CPU, where it is as fast and rounds nothing; else what the recipe says."""
    if device.type == "cpu":
        return torch.float32
    return torch.float16 if recipe.args.fp16 else torch.bfloat16


def load_base(folder: str | None, recipe: Recipe, device: torch.device, **options: Any) -> PreTrainedModel:
    """Load and freeze the base as the recipe says; `options` go to from_pretrained. Raises TrainError.

    One that is to be shared out stays on the host until its adapter is there.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]  # hundreds of lines in a log
    given = {"revision": recipe.model.revision, "trust_remote_code": False}
    config = options.pop("config", None)
    config = config or text_config(AutoConfig.from_pretrained(str(folder), **given))
    attention = attention_for(config, device)
    dtype = torch.float32  # on a CPU
    if device.type == "cuda":  # with fp16 all of it is: attention takes no mixture
        dtype = torch.float16 if recipe.args.fp16 else getattr(torch, recipe.model.dtype)
    if hasattr(config, "part_of"):
        options["key_mapping"] = KEY_MAPPING
    if gptq.is_gptq(config.to_dict()):
        model = gptq.load(_local(str(folder), recipe.model.revision), dtype, device, attention)
    else:
        quantisation = _quantisation(recipe.bnb, compute_dtype(recipe, device))
        if quantisation and recipe.fully_shard:
            quantisation = sharding.on_gpu(quantisation, device)
        auto: Any = options.pop("model_class", AutoModelForCausalLM)  # untyped
        with _unreported():
            model, about = auto.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                quantization_config=quantisation,
                device_map={"": "cpu" if recipe.fully_shard else device},
                attn_implementation=attention,
                use_safetensors=True,
                output_loading_info=True,
                **given,
                **options,
            )
        if lacking := sorted(about["missing_keys"]):
            raise TrainError(
                f"the base {folder!r} lacks {lacking[0]}, which its config asks for; get it again"
            )
    model.config.use_cache = False
    model.requires_grad_(False)
    for module in model.modules():
        # On a CPU with this feature, the first evaluation repacks the weights for good, and from then on
        # backward passes skip them without a word.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 (typed as a tensor)
    loaded: PreTrainedModel = model
    return loaded


@contextmanager
def _unreported() -> Iterator[None]:
    """Keep transformers from listing the hundreds of tensors of a vision part, which aren't wanted."""
    before = get_verbosity()
    set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        set_verbosity(before)


def _local(folder: str, revision: str | None) -> Path:
    """The folder of a base, fetched if it is a hub name: weights as safetensors and settings only."""
    if Path(folder).is_dir():
        return Path(folder)
    return Path(snapshot_download(folder, revision=revision, allow_patterns=["*.safetensors", "*.json"]))


def _quantisation(section: BitsAndBytes | None, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if section is None:
        return None
    if section.load_in_8bit:  # bitsandbytes warns of its cast in every forward pass of every layer
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_not_of_the_cast)
    config: Any = BitsAndBytesConfig  # untyped
    given = section.model_dump()
    if kept := section.passed().get("llm_int8_skip_modules"):  # in place of upstream's own, the head
        given["llm_int8_skip_modules"] = [*kept, "lm_head"]
    made: BitsAndBytesConfig = config(**given, bnb_4bit_compute_dtype=dtype)
    return made


def _not_of_the_cast(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("MatMul8bitLt: inputs will be cast")


ADAPTER = "default"  # what PEFT calls the one that is trained


class Adapted(nn.Module):
    """The base with a fresh adapter; calling it gives the summed loss of a batch.

    `template` is the one that its rows are rendered with, saved beside the adapter.
    """

    template = ChatTemplate()

    def __init__(self, base: PreTrainedModel, recipe: Recipe, device: torch.device) -> None:
        super().__init__()
        self.dtype = compute_dtype(recipe, device)
        self._scale = _head_scale(base)
        there = linears(base)
        if not adapted_layers(recipe.lora, there):
            raise TrainError(f"none of {recipe.lora.target_modules} is a linear layer of this model")
        settings = lora_config(recipe.lora, there)
        settings.revision = recipe.model.revision  # of the base, for whoever merges the adapter into it
        torch.manual_seed(recipe.args.seed)  # before the adapter's A is drawn, or a seed repeats nothing
        with warnings.catch_warnings():
            # peft 0.21 asks a transformers model for a property that transformers 5.23 has renamed
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            try:
                self.peft = peft.get_peft_model(base, settings)
            except ValueError as error:
                raise TrainError(f"LoraConfig: {' '.join(str(error).split())[:300]}") from None
        self._trained = [parameter for parameter in self.peft.parameters() if parameter.requires_grad]
        for parameter in self._trained:  # copies of a base's modules are as it was stored
            parameter.data = parameter.data.float()
        self._fast = recipe.fast
        if why := fp8_obstacle(recipe, obstacle(base), there, device):
            raise TrainError(why)
        if has_kernels(device) and allows(recipe) and fits(base):
            fuse(base, self.dtype, recipe.fast, recipe.precision == "fp8")
        elif not recipe.fast:
            # transformers 5.18 gave it a new name
            enable = getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        self.shared = sharding.shard(self, device) if recipe.fully_shard else None

    @property
    def base(self) -> Any:
        """The model inside, a causal language model."""
        return self.peft.get_base_model()

    @property
    def config(self) -> Any:
        """The base's, for a trainer that asks."""
        return self.base.config

    def add_model_tags(self, tags: Any) -> None:
        """Nothing: the card of a run is `train.card`'s."""

    def to(self, *_: Any, **__: Any) -> Adapted:
        """Itself: the base was loaded where it trains."""
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of the adapter's parameters alone: the base has thousands, and no gradients."""
        for parameter in self._trained:
            parameter.grad = None

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the sum of the loss over the batch's trained tokens, in nats (a scalar, fp32)."""
        hidden = self.hidden(batch)
        softcap = getattr(self.base.config, "final_logit_softcapping", None) or 0.0
        hidden = hidden * self._scale if self._scale != 1 else hidden
        whole = nullcontext(self.base.get_output_embeddings().weight)
        with self.shared.head() if self.shared else whole as head:
            return head_loss(hidden, head, batch, softcap)

    def hidden(self, batch: Batch) -> torch.Tensor:
        """The last hidden states (T, hidden)."""
        # The adapter is fp32 and autocast sees to types: PEFT's own cast would copy every activation. The
        # fused decoder doesn't ask PEFT's layers, and to tell all of them takes 10 ms.
        uncast = nullcontext() if fused(self.base) else disable_input_dtype_casting(self.peft)
        with (
            torch.autocast(batch.input_ids.device.type, self.dtype, enabled=self.dtype != torch.float32),
            uncast,
        ):
            hidden: torch.Tensor = self.base.get_decoder()(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                cu_seq_lens_q=batch.cu_seq_lens,
                cu_seq_lens_k=batch.cu_seq_lens,
                max_length_q=batch.max_length,
                max_length_k=batch.max_length,
                use_cache=False,
            ).last_hidden_state
        return hidden[0]

    def leave_fp8(self) -> None:
        """Train in 16 bit from now on, if it was in FP8."""
        if forward := fused(self.base):
            forward.leave_fp8()

    def parameters_to_train(self) -> list[nn.Parameter]:
        """The adapter's, in fp32."""
        return self._trained

    def save(self, folder: Path) -> None:
        """Write the adapter as PEFT does, for the base as it is published."""
        # The embeddings are the base's: PEFT would ask the hub whether they still are.
        self.peft.save_pretrained(str(folder), save_embedding_layers=False, selected_adapters=[ADAPTER])
        if hasattr(self.base.config, "part_of"):
            name_for_whole(folder)
        write_template(self.template, folder)

    def load(self, folder: Path) -> None:
        """Give the adapter the weights of one that `save` wrote. Raises TrainError."""
        peft.set_peft_model_state_dict(self.peft, self.read(folder))

    def read(self, folder: Path) -> dict[str, torch.Tensor]:
        """The tensors in `folder`, exactly those of this adapter, and all numbers. Raises TrainError."""
        unfit = f"the adapter {folder} doesn't fit this base"
        try:
            found = text_tensors(folder)
        except (ValueError, SafetensorError) as error:
            raise TrainError(f"{unfit}: {' '.join(str(error).split())[:200]}") from None
        own: dict[str, Any] = {"adapter_name": ADAPTER, "save_embedding_layers": False}
        wanted: dict[str, torch.Tensor] = peft.get_peft_model_state_dict(self.peft, **own)
        for name in sorted(wanted.keys() ^ found.keys()):
            raise TrainError(f"{unfit}: it {'lacks' if name in wanted else 'has no place for'} {name}")
        for name, tensor in found.items():
            if tensor.shape != wanted[name].shape:
                shapes = f"{list(tensor.shape)}, and {list(wanted[name].shape)} is needed"
                raise TrainError(f"{unfit}: {name} is {shapes}")
            if not tensor.float().isfinite().all():
                raise TrainError(
                    f"the adapter {folder} is broken: {name} holds what is no number; bring back what it "
                    "was, or train it anew with a lower learning_rate"
                )
        return found

    def unload(self) -> None:
        """Take the adapter off the base, which is as it was then."""
        kept = {
            name: module.original_module
            for name, module in self.base.named_modules()
            if isinstance(module, ModulesToSaveWrapper)
        }
        base: Any = self.peft.unload()
        for name, module in kept.items():  # PEFT leaves the trained copies there
            base.set_submodule(name, module)
        if fused(base):
            unfuse(base)
        elif not self._fast:
            disable = getattr(base, "activation_checkpointing_disable", None)
            (disable or base.gradient_checkpointing_disable)()


def _head_scale(base: Any) -> float:
    """What a model multiplies its logits by: Granite divides them, Cohere multiplies. Refuses a bias."""
    if base.get_output_embeddings().bias is not None:
        raise TrainError(
            f"the head of a {base.config.model_type} has a bias, which training here would leave out; choose "
            "a Llama, Mistral, Phi-3, Gemma or another base without"
        )
    divided = getattr(base.config, "logits_scaling", None) or 1
    return float(getattr(base.config, "logit_scale", None) or 1) / float(divided)
