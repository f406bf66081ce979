"""What an adapter's GGUF adds to each layer of its base's GGUF, for the same check as a merged checkpoint's.

llama.cpp adds alpha / rank times B A (llm_graph_context::build_lora_mm), to embeddings before they are scaled
(build_inp_embd). The converter may write a layer's rows in another order, which the base itself tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import gguf
import numpy as np
from gguf.gguf_reader import ReaderTensor

from convert.verify.adapted import Floats, Layer
from convert.verify.merged import plain
from convert.verify.tensors import GgufTensors
from core.gguf_reader import read_metadata

SAME = 0.02  # relative: rounding to 16 bit makes 0.002, another order of rows about 1
MATCHED_ROWS = 32_768  # of a layer in another order; no layer but a vocabulary's has more


class LoraFile:
    """An adapter's GGUF with the GGUF of its base, both as they are on the disk."""

    def __init__(self, base: Path, lora: Path) -> None:
        self._base, self._lora = GgufTensors(base).by_name, GgufTensors(lora).by_name
        about, own = read_metadata(base), read_metadata(lora)
        arch = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[
            str(about["general.architecture"])
        ]
        blocks = int(str(about[f"{about['general.architecture']}.block_count"]))
        self._names = gguf.get_tensor_name_map(arch, blocks)
        self._alpha = float(str(own["adapter.lora.alpha"]))

    def outputs(self, layers: Iterable[Layer]) -> Iterator[tuple[Layer, Floats | None]]:
        """Yield what becomes of each layer's probe with the file's update, None where the file has none.

        A layer that the base's GGUF holds in another form (one of several in one tensor) is left out.
        """
        for layer in layers:
            name = self._names.get_name(f"model.{plain(layer.name)}") or self._names.get_name(
                plain(layer.name)
            )
            base = self._base.get(f"{name}.weight")
            if base is None or (order := self._order(layer, f"{name}")) is None:
                continue
            update = self._update(layer, base.name)
            if update is not None:
                yield layer, layer.base + update[:, order[0]] * order[1]
            else:
                yield layer, layer.base if np.array_equal(layer.base, layer.adapted) else None

    def _order(self, layer: Layer, name: str) -> tuple[np.ndarray, float] | None:
        """Where each of the layer's outputs is in the base's GGUF, and how many times as large."""
        weight, given = _numbers(self._base[f"{name}.weight"]), layer.given().numpy()
        found = weight[given] if given.ndim == 1 else given @ weight.T
        if f"{name}.bias" in self._base:
            found = found + _numbers(self._base[f"{name}.bias"])
        if found.shape != layer.base.shape:
            return None
        scale = 1.0
        if given.ndim == 1:  # Gemma's embeddings are scaled when they are looked up
            scale = float(np.vdot(found, layer.base) / np.vdot(found, found))
        order = np.arange(found.shape[1])
        if not _same(found * scale, layer.base) and found.shape[1] <= MATCHED_ROWS:
            order = _nearest(found, layer.base)
        return (order, scale) if _same(found[:, order] * scale, layer.base) else None

    def _update(self, layer: Layer, name: str) -> Floats | None:
        left, right = self._lora.get(f"{name}.lora_b"), self._lora.get(f"{name}.lora_a")
        if left is None or right is None:
            return None
        b, a, given = _numbers(left), _numbers(right), layer.given().numpy()
        inner = a[given] if given.ndim == 1 else given @ a.T
        found: Floats = (self._alpha / b.shape[1] * (inner @ b.T)).astype(np.float32)
        return found


def _same(found: Floats, expected: Floats) -> bool:
    return bool(np.linalg.norm(found - expected) <= SAME * np.linalg.norm(expected))


def _nearest(found: Floats, expected: Floats) -> np.ndarray:
    """For each expected column, the found one that is most like it."""
    squares = np.sum(found**2, axis=0)
    blocks = np.array_split(np.arange(expected.shape[1]), -(-expected.shape[1] // 1024))
    return np.concatenate([np.argmin(squares - 2 * expected[:, b].T @ found, axis=1) for b in blocks])


def _numbers(tensor: ReaderTensor) -> Floats:
    found: Floats = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    return found
