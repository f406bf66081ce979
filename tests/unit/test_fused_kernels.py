"""Triton's kernels against the formulas of train/fused/reference_ops.py, in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.interpreted_kernels import DECODED, FP8S, WRONG, cases

ROOT = Path(__file__).resolve().parents[2]
TOLERANCES = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 8e-3}  # of the results' last bits

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason=f"needs Triton, which is for Linux only; this is {sys.platform}"
)


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """The relative error of each case, by a child process that imports Triton as an interpreter."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.unit.interpreted_kernels"]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, float] = json.loads(ran.stdout)
    return found


@pytest.mark.parametrize("name", cases())
def test_a_kernel_computes_its_formula(errors: dict[str, float], name: str) -> None:
    assert errors[name] <= TOLERANCES[name.rpartition("-")[2]]


@pytest.mark.parametrize("name", DECODED)
def test_decoded_weights_are_bitsandbytes_bit_for_bit(errors: dict[str, float], name: str) -> None:
    assert errors[name] == 0


@pytest.mark.parametrize("name", FP8S)
def test_operands_in_fp8_are_the_formulas_byte_for_byte(errors: dict[str, float], name: str) -> None:
    assert errors[name] == 0


@pytest.mark.parametrize("name", WRONG)
def test_another_formula_would_be_noticed(errors: dict[str, float], name: str) -> None:
    assert errors[name] > 0.01
