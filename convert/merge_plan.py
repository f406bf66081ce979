"""What comes out of a merge: which tensors, made of what, and the config that goes with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

import torch

from convert.adapter import EMBEDDINGS, HEADS, Adapter
from convert.checkpoint import Checkpoint
from convert.errors import ConvertError
from convert.loading import has_own_head, ties_head

DROPPED = ("auto_map", "torch_dtype", "quantization_config", "transformers_weights")


class MergePlan:
    """A base and an adapter that fit each other.

    Tied embeddings: a head that is the embedding is never written, even if the base stored it twice; one that
    has other values is no tied one, whatever config.json says (transformers, tie_weights). An adapter that
    trains only one of the two, or both apart, unties them: PEFT leaves the other as it was.
    """

    def __init__(self, base: Checkpoint, adapter: Adapter) -> None:
        """Match the two. Raises ConvertError."""
        self._base, self._adapter = base, adapter
        self._sources = {name: name for name in base.names}  # of each tensor that is written
        embedding, head = _ending(EMBEDDINGS, base.names), _ending(HEADS, base.names)
        if embedding is None:
            raise no_embedding(base)
        self._embedding = embedding
        self._tied = is_tied(base)
        self._head = head or _ending(HEADS, [*adapter.low_rank, *adapter.whole]) or HEADS[0]
        shapes = {name: base.shape(name) for name in base.names}
        if self._tied:
            shapes[self._head] = base.shape(embedding)
            self._sources.pop(self._head, None)
        adapter.check(base, shapes)
        if self._tied and self._unties():
            self._sources[self._head] = embedding
            self._tied = False
        self.rows = self._rows(embedding)
        self._check_rows()

    @property
    def size_bytes(self) -> int:
        """The size of all tensors together."""
        return sum(
            prod(self._base.shape(source)) * self._base.dtype(source).itemsize
            for source in self._sources.values()
        )

    @property
    def config(self) -> dict[str, Any]:
        """The base's config.json, true for the merged checkpoint; it asks for no code and no quantisation."""
        config = {key: value for key, value in self._base.config.items() if key not in DROPPED}
        config["dtype"] = str(self._base.dtype(self._embedding)).removeprefix("torch.")
        config["tie_word_embeddings"] = self._tied
        if isinstance(inner := config.get("text_config"), dict):  # a model that reads pictures too
            keys = {key: config[key] for key in ("dtype", "tie_word_embeddings")}
            config["text_config"] = {**inner, **keys, "vocab_size": self.rows}
        else:
            config["vocab_size"] = self.rows
        return config

    def tensors(self, simulate_nf4: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the name and the values of each tensor. Raises ConvertError if one isn't finite."""
        for name, source in self._sources.items():
            weight = self._base.read(source)
            if simulate_nf4:
                from convert import nf4  # bitsandbytes takes seconds to import

                weight = nf4.simulate(weight) if nf4.is_quantised(name, weight) else weight
            tensor = self._adapter.merged(name, weight, self._base.dtype(source))
            if not _is_finite(tensor):
                raise self._not_finite(name, weight, tensor)
            yield name, tensor

    def _not_finite(self, name: str, weight: torch.Tensor, tensor: torch.Tensor) -> ConvertError:
        if not _is_finite(weight):
            return ConvertError(f"{self._base.folder}: {name} holds NaN or infinity; get the base again")
        return ConvertError(
            f"{name} with the update of {self._adapter.folder} is beyond the range of {tensor.dtype}; "
            "the training run broke down, train again with a lower learning rate"
        )

    def _unties(self) -> bool:
        """Whether the head can't stay the embedding. Raises ConvertError where a GGUF can't have that."""
        adapter, embedding, head = self._adapter, self._embedding, self._head
        if adapter.config.get("ensure_weight_tying") or not (
            adapter.touches(embedding) or adapter.touches(head)
        ):
            return False
        if not adapter.touches(head) and self._rows(embedding) != self._base.shape(embedding)[0]:
            if embedding not in adapter.low_rank:
                return False  # resized, and resizing keeps them tied
            adapter.whole[head] = adapter.whole[embedding]  # both resized, and only one trained
        if {embedding, head} <= adapter.whole.keys() and not {embedding, head} & adapter.low_rank.keys():
            both = [adapter.read(adapter.whole[name]) for name in (embedding, head)]
            if torch.equal(*both):
                return False
        refuse_own_head(
            self._base.config,
            f"{adapter.folder} trains embedding and head apart",
            "train again with ensure_weight_tying, or without embed_tokens and lm_head",
        )
        return True

    def _rows(self, name: str) -> int:
        adapter = self._adapter
        shape = adapter.whole_shape(name) if name in adapter.whole else self._base.shape(self._sources[name])
        return shape[0]

    def _check_rows(self) -> None:
        """Embedding and head have to agree on the size of the vocabulary."""
        if self._head in self._sources and self._rows(self._head) != self.rows:
            raise ConvertError(
                f"{self._adapter.folder} makes an embedding of {self.rows} rows and a head of "
                f"{self._rows(self._head)}; train again with both embed_tokens and lm_head in modules_to_save"
            )


def rows_of(checkpoint: Checkpoint) -> int:
    """The rows of a checkpoint's embedding. Raises ConvertError where it has none."""
    embedding = _ending(EMBEDDINGS, checkpoint.names)
    if embedding is None:
        raise no_embedding(checkpoint)
    return checkpoint.shape(embedding)[0]


def no_embedding(checkpoint: Checkpoint) -> ConvertError:
    """What to say of a checkpoint that is no language model."""
    return ConvertError(
        f"{checkpoint.folder} has no embedding ({', '.join(EMBEDDINGS)}): it is no language model"
    )


def _ending(endings: tuple[str, ...], names: Iterable[str]) -> str | None:
    return next((name for name in names if name.endswith(endings)), None)


def is_tied(checkpoint: Checkpoint) -> bool:
    """Whether embedding and head are one tensor: as transformers would load them, or because a GGUF of this
    kind has no other place for them. Raises ConvertError where config.json, files and GGUF can't agree."""
    says_tied = ties_head(checkpoint)
    embedding, head = (_ending(endings, checkpoint.names) for endings in (EMBEDDINGS, HEADS))
    if embedding is None or head is None:
        return True
    apart = checkpoint.shape(embedding) != checkpoint.shape(head) or not torch.equal(
        checkpoint.read(embedding), checkpoint.read(head).to(checkpoint.dtype(embedding))
    )
    if apart:
        refuse_own_head(checkpoint.config, f"{checkpoint.folder} holds a {head} that isn't its {embedding}")
    return not apart and (says_tied or not has_own_head(str(checkpoint.config.get("model_type"))))


def surplus_head(checkpoint: Checkpoint) -> list[str]:
    """A stored copy of the embedding as head that llama.cpp's converter has no name for (Cohere's)."""
    head = _ending(HEADS, checkpoint.names)
    kind = str(checkpoint.config.get("model_type"))
    return [head] if head and is_tied(checkpoint) and not has_own_head(kind) else []


def refuse_own_head(config: dict[str, Any], reason: str, cure: str = "get the base again") -> None:
    """Raises ConvertError where a GGUF of this kind takes its embedding for the head."""
    if not has_own_head(kind := str(config.get("model_type"))):
        raise ConvertError(f"{reason}, and a GGUF of {kind} has one place for both; {cure}")


def _is_finite(tensor: torch.Tensor) -> bool:
    """NaN and infinity both survive a sum, which is quick; a sum that overflowed is looked at closely."""
    return bool(torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all())
