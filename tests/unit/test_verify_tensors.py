"""The tripwire on small files written by gguf-py: what each kind of damage does to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quantize

from convert.verify.limits import Check, relative_rmse_limit
from convert.verify.tensors import (
    _SCALES,
    SAMPLED_ELEMENTS,
    GgufTensors,
    check_tensors,
    fallback_types,
    is_finite,
    relative_rmse,
)

ROWS, COLUMNS = 64, 256


def weights(seed: int = 0, columns: int = COLUMNS) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ROWS, columns)).astype(np.float32)


def write(path: Path, tensors: dict[str, tuple[np.ndarray, str]]) -> Path:
    """Write a file of tensors, each stored in its type."""
    writer = GGUFWriter(path, "llama")
    writer.add_token_list(["<unk>", "é", "a" * 100])
    writer.add_token_types([2, 1, 1])
    for name, (array, kind) in tensors.items():
        qtype = GGMLQuantizationType[kind]
        stored = quantize(array, qtype)
        writer.add_tensor(name, stored, raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def sixteen(tmp_path: Path) -> Path:
    return write(tmp_path / "16bit.gguf", {"a": (weights(0), "F16"), "b": (weights(1), "F16")})


def check(ours: Path, theirs: Path) -> dict[str, Check]:
    return {found.name: found for found in check_tensors(ours, theirs, lambda: None)}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"])
def test_white_noise_passes_in_each_type_and_sets_the_limit(tmp_path: Path, sixteen: Path, kind: str) -> None:
    path = write(tmp_path / "q.gguf", {"a": (weights(0), kind), "b": (weights(1), kind)})
    assert {found.verdict for found in check(path, sixteen).values()} == {"ok"}
    tensor, reference = GgufTensors(path).by_name["a"], GgufTensors(sixteen).by_name["a"]
    if kind.startswith("Q"):
        assert relative_rmse(tensor, reference) == pytest.approx(relative_rmse_limit(kind).warn / 2, rel=0.05)


def test_a_sample_of_a_large_tensor_is_whole_rows_from_all_of_it(tmp_path: Path) -> None:
    rows = 3 * SAMPLED_ELEMENTS // 1024
    array = np.ones((rows, 1024), np.float32)
    right = write(tmp_path / "right.gguf", {"a": (array, "F16")})
    array[rows // 2 :] = 0
    wrong = write(tmp_path / "wrong.gguf", {"a": (array, "F16")})
    assert check(wrong, right)["tensor error"].verdict == "fail"
    error = relative_rmse(GgufTensors(wrong).by_name["a"], GgufTensors(right).by_name["a"])
    assert error == pytest.approx(0.5**0.5, rel=1e-2)


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path: Path, sixteen: Path) -> None:
    path = write(tmp_path / "q.gguf", {"a": (weights(0)[:32], "Q8_0"), "c": (weights(1), "Q8_0")})
    found = check(path, sixteen)["tensors"]
    assert found.verdict == "fail"
    assert found.reason == "missing: b; not in the 16-bit file: c; of another shape: a"


def test_a_tensor_of_zeros_and_swapped_tensors_fail(tmp_path: Path, sixteen: Path) -> None:
    zeros = write(tmp_path / "z.gguf", {"a": (weights(0) * 0, "Q8_0"), "b": (weights(1), "Q8_0")})
    found = check(zeros, sixteen)["tensor error"]
    assert found.verdict == "fail"
    assert found.reason.startswith("a (Q8_0) 1, over")
    swapped = write(tmp_path / "s.gguf", {"a": (weights(1), "Q8_0"), "b": (weights(0), "Q8_0")})
    assert check(swapped, sixteen)["tensor error"].reason.count("over") == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_one_number_that_is_none_fails(tmp_path: Path, sixteen: Path, kind: str, value: float) -> None:
    broken = weights(0)
    broken[63, 255] = value
    path = write(tmp_path / "n.gguf", {"a": (broken, kind), "b": (weights(1), kind)})
    found = check(path, sixteen)["finite"]
    assert (found.verdict, found.reason) == ("fail", "in a")
    assert check(sixteen, sixteen)["finite"].verdict == "ok"


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_1", "Q4_0", "Q4_1"])
def test_one_broken_scale_of_a_quantised_tensor_fails(tmp_path: Path, sixteen: Path, kind: str) -> None:
    path = write(tmp_path / "q.gguf", {"a": (weights(0), kind), "b": (weights(1), kind)})
    tensor = GgufTensors(path).by_name["b"]
    assert is_finite(tensor)
    at = int(tensor.data_offset) + int(tensor.n_bytes) // (ROWS * COLUMNS // 32) * 77
    with path.open("r+b") as file:
        file.seek(at + _SCALES[kind].stop - 2)
        file.write(np.float16(np.nan).tobytes())
    assert check(path, sixteen)["finite"].reason == "in b"


def test_types_that_stand_in_for_k_quants_are_found(tmp_path: Path, sixteen: Path) -> None:
    odd = {"a": (weights(0, 96), "Q5_1"), "b": (weights(1), "Q4_0"), "c": (weights(2, 96), "F16")}
    assert fallback_types(write(tmp_path / "odd.gguf", odd)) == {"Q5_1"}
    assert fallback_types(sixteen) == set()
