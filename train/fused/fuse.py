"""`fuse(model)`: a causal language model's decoder computes packed rows forward and backward by hand."""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from train.batches import Packed
from train.fused.decoder import Stack
from train.fused.graphs import Graphs
from train.fused.lora_linear import active_adapters
from train.fused.supports import adapters_obstacle, obstacle


def fuse(model: Any, dtype: torch.dtype = torch.bfloat16, fast: bool = True, fp8: bool = False) -> None:
    """Let `model`, a transformers model or PEFT's around one, pass packed rows through `Stack`.

    From then on its decoder, called with `input_ids` and `position_ids` (1, T) and the rows' beginnings
    (`cu_seq_lens_q`, `max_length_q`, as transformers' FlashAttention takes them), gives the last hidden
    states (1, T, hidden) in `dtype`, differentiable by the parameters of the active adapters, which have
    gradients of zero while they are disabled. Whatever comes in another form (a cache, a mask, embeddings)
    goes the model's own way.

    `fast` keeps what the backward pass needs and decoded matrices; else most is computed again. `fp8` makes
    the products with frozen matrices in FP8 where gradients are wanted; what is only asked is in `dtype`.
    Raises ValueError for a model or an adapter that can't be done so, with the reason.
    """
    if why := obstacle(model) or adapters_obstacle(model):
        raise ValueError(why)
    unfuse(model)
    decoder = model.get_decoder()
    decoder.forward = Forward(model, decoder.forward, dtype, fast, fp8)


def unfuse(model: Any) -> None:
    """Take back what `fuse` did, if it did; the decoded matrices are free."""
    decoder = model.get_decoder()
    if fused(model):
        del decoder.forward


def fused(model: Any) -> Forward | None:
    """What `fuse` gave the model; None if it didn't."""
    found = model.get_decoder().__dict__.get("forward")
    return found if isinstance(found, Forward) else None


class Forward:
    """A decoder's forward pass: `Stack`'s for packed rows, else its own."""

    def __init__(self, model: Any, own: Any, dtype: torch.dtype, fast: bool, fp8: bool) -> None:
        self._model, self._own, self._dtype, self._fast, self._fp8 = model, own, dtype, fast, fp8
        self._layers = [m for m in model.get_decoder().modules() if hasattr(m, "lora_A")]
        self._graphs: dict[bool, Graphs] = {}  # by whether they are in FP8
        self._active: list[tuple[str, ...]] = []

    def __call__(
        self,
        input_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cu_seq_lens_q: torch.Tensor | None = None,
        max_length_q: int | None = None,
        **others: Any,
    ) -> Any:
        strange = any(others.get(name) for name in ("past_key_values", "use_cache", "adapter_names"))
        strange |= any(others.get(name) is not None for name in ("attention_mask", "inputs_embeds"))
        strange |= any(layer.merged for layer in self._layers)
        if input_ids is None or position_ids is None or cu_seq_lens_q is None or strange:
            given = {"cu_seq_lens_q": cu_seq_lens_q, "max_length_q": max_length_q}
            given = {name: value for name, value in given.items() if value is not None}
            return self._own(input_ids=input_ids, position_ids=position_ids, **given, **others)
        longest = max_length_q or int(cu_seq_lens_q.diff().max())
        batch = Packed(
            input_ids=input_ids, position_ids=position_ids, cu_seq_lens=cu_seq_lens_q, max_length=longest
        )
        with torch.autocast(input_ids.device.type, enabled=False):
            hidden = self.graphs(input_ids.device)(batch)
        return BaseModelOutputWithPast(last_hidden_state=hidden[None])

    def leave_fp8(self) -> None:
        """Make all products in 16 bit from now on; what FP8 needed is free."""
        if self._fp8:
            self._fp8 = False
            self._graphs.clear()  # the evaluations' too: what trains in 16 bit serves them
            torch.cuda.empty_cache()  # recorded passes kept memory that nothing else may use

    def stack(self, device: torch.device) -> Stack:
        """What computes the next pass, in FP8 or not."""
        return self.graphs(device).stack

    def graphs(self, device: torch.device) -> Graphs:
        """Made when it is first used, and anew for other adapters: a model's answers don't need it."""
        active = [active_adapters(layer) for layer in self._layers]
        if self._active != active:
            self._graphs.clear()  # their matrices are free before the next ones are made
            self._active = active
        fp8 = self._fp8 and torch.is_grad_enabled()
        if fp8 not in self._graphs:
            fast = self._fast and fp8 == self._fp8  # one of the two keeps its matrices
            self._graphs[fp8] = Graphs(Stack(self._model, self._dtype, device, fast, fp8))
        return self._graphs[fp8]
