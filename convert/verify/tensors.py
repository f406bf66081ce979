"""Check: no tensor is missing, misshapen, not finite, or further from 16 bit than its type allows.

The tripwire looks at a sample of each tensor, the search for NaN and infinity at all of the file.
"""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, dequantize
from gguf.constants import GGML_QUANT_SIZES
from gguf.gguf_reader import ReaderTensor
from numpy.typing import NDArray

from convert.verify.limits import Check, Verdict, relative_rmse_limit
from core.errors import ConvertError

SAMPLED_ELEMENTS = 2**20  # of each tensor: 3.8 billion parameters take seconds
SCANNED_BLOCKS = 2**22  # at once, so that the memory stays small
K_QUANT_BLOCK = 256

# Where the f16 scales of a quantised block are (ggml/src/ggml-common.h): nothing else can be NaN or infinite.
_SCALES = {
    "Q4_0": slice(0, 2), "Q4_1": slice(0, 4), "Q5_0": slice(0, 2), "Q5_1": slice(0, 4), "Q8_0": slice(0, 2),
    "Q2_K": slice(80, 84), "Q3_K": slice(108, 110), "Q4_K": slice(0, 4), "Q5_K": slice(0, 4),
    "Q6_K": slice(208, 210), "IQ4_NL": slice(0, 2), "IQ4_XS": slice(0, 2), "IQ3_S": slice(0, 2),
    "IQ3_XXS": slice(0, 2), "IQ2_S": slice(0, 2), "IQ2_XS": slice(0, 2), "IQ2_XXS": slice(0, 2),
    "IQ1_S": slice(0, 2),
}  # fmt: skip
# Unsigned view and the bits of its exponent: all of them set means NaN or infinity.
_EXPONENTS = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}


class GgufTensors(GGUFReader):
    """The tensors of a GGUF that `read_gguf` has accepted, memory-mapped.

    gguf-py makes an object of each entry of each list, two million for a Gemma's vocabulary; here lists are
    passed over.
    """

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[NDArray[np.generic]], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        data = self.data.data
        kind, count = struct.unpack_from("<IQ", data, orig_offs)
        end = orig_offs + 12
        if kind == GGUFValueType.STRING:
            for _ in range(count):
                end += 8 + struct.unpack_from("<Q", data, end)[0]
        else:
            end += count * np.dtype(self.gguf_scalar_to_np[GGUFValueType(kind)]).itemsize
        return end - orig_offs, [], [], [GGUFValueType.ARRAY]

    @property
    def by_name(self) -> dict[str, ReaderTensor]:
        return {tensor.name: tensor for tensor in self.tensors}


def check_tensors(gguf: Path, sixteen_bit: Path, on_tensor: Callable[[], None]) -> list[Check]:
    """Look for NaN and infinity in `gguf`, and compare its tensors with those of `sixteen_bit`."""
    ours, theirs = GgufTensors(gguf).by_name, GgufTensors(sixteen_bit).by_name
    checks = [_same_set(ours, theirs)]
    infinite, errors = [], dict[str, float]()
    for name, tensor in ours.items():
        if not is_finite(tensor):
            infinite.append(name)
        elif name in theirs and list(theirs[name].shape) == list(tensor.shape):
            errors[name] = relative_rmse(tensor, theirs[name])
        on_tensor()
    verdict: Verdict = "fail" if infinite else "ok"
    reason = f"in {_listed(infinite)}" if infinite else ""
    checks.append(Check("finite", verdict, f"NaN or infinity in {len(infinite)} of {len(ours)}", reason))
    if gguf != sixteen_bit:
        checks.append(_errors({name: (ours[name].tensor_type.name, value) for name, value in errors.items()}))
    return checks


def _same_set(ours: dict[str, ReaderTensor], theirs: dict[str, ReaderTensor]) -> Check:
    shapes = [n for n in ours.keys() & theirs.keys() if list(ours[n].shape) != list(theirs[n].shape)]
    wrong = {
        "missing": theirs.keys() - ours.keys(),
        "not in the 16-bit file": ours.keys() - theirs.keys(),
        "of another shape": shapes,
    }
    reason = "; ".join(f"{what}: {_listed(names)}" for what, names in wrong.items() if names)
    kinds = Counter(tensor.tensor_type.name for tensor in ours.values())
    figure = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return Check("tensors", "fail" if reason else "ok", figure, reason)


def _errors(errors: dict[str, tuple[str, float]]) -> Check:
    """Each type by its own limit; the figure is each type's largest error."""
    largest: dict[str, float] = defaultdict(float)
    bad: dict[Verdict, list[str]] = defaultdict(list)
    for name, (kind, error) in errors.items():
        largest[kind] = max(largest[kind], error)
        if (verdict := relative_rmse_limit(kind).judge(error)) in ("warn", "fail"):
            limit = getattr(relative_rmse_limit(kind), verdict)
            bad[verdict].append(f"{name} ({kind}) {error:.3g}, over {limit:.3g}")
    gravest: Verdict = "fail" if bad["fail"] else "warn" if bad["warn"] else "ok"
    figure = ", ".join(f"{kind} {error:.2g}" for kind, error in sorted(largest.items()) if kind != "F32")
    return Check("tensor error", gravest, figure, _listed(bad[gravest]) if gravest != "ok" else "")


def _listed(names: Iterable[str]) -> str:
    """The first three of some names, and how many more there are."""
    first = sorted(names)
    return ", ".join(first[:3]) + (f" and {len(first) - 3} more" if len(first) > 3 else "")


def is_finite(tensor: ReaderTensor) -> bool:
    """Tell whether a tensor holds neither NaN nor infinity, from its bytes. True for types not known here."""
    kind = tensor.tensor_type.name
    if kind in _EXPONENTS:
        view, exponent = _EXPONENTS[kind]
        numbers = tensor.data.reshape(-1).view(view)
        return all(not np.any((part & exponent) == exponent) for part in _parts(numbers))
    if kind not in _SCALES:
        return True
    blocks = tensor.data.reshape(-1, GGML_QUANT_SIZES[tensor.tensor_type][1])
    scales = (np.ascontiguousarray(part[:, _SCALES[kind]]).view("<u2") for part in _parts(blocks))
    return all(not np.any((part & 0x7C00) == 0x7C00) for part in scales)


def _parts(array: NDArray[np.generic]) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(array), SCANNED_BLOCKS):
        yield array[start : start + SCANNED_BLOCKS]  # type: ignore[misc]


def relative_rmse(tensor: ReaderTensor, reference: ReaderTensor) -> float:
    """Root mean square of the error over that of the reference, on whole rows spread evenly; 0 is exact."""
    mine, theirs = _sample(tensor), _sample(reference)
    power = float(np.sum(np.square(theirs, dtype=np.float64)))
    error = float(np.sum(np.square(mine - theirs, dtype=np.float64)))
    if not power:
        return 0.0 if not error else float("inf")
    return float(np.sqrt(error / power))


def _sample(tensor: ReaderTensor) -> NDArray[np.float32]:
    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    wanted = max(1, SAMPLED_ELEMENTS // int(tensor.shape[0]))
    if wanted < len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, wanted).astype(np.int64)]
    try:
        return dequantize(rows, tensor.tensor_type).astype(np.float32, copy=False)
    except NotImplementedError:
        kind = tensor.tensor_type.name
        raise ConvertError(f"{tensor.name} is of type {kind}, which this version can't check") from None


def fallback_types(gguf: Path) -> set[str]:
    """Return the types that stand in for K-quants, whose blocks of 256 don't fit the rows of some tensors."""
    odd = [t for t in GgufTensors(gguf).tensors if int(t.shape[0]) % K_QUANT_BLOCK and len(t.shape) > 1]
    return {t.tensor_type.name for t in odd if t.tensor_type not in _UNQUANTISED}


_UNQUANTISED = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
