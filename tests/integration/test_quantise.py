"""llama.cpp's own quantiser on a real model: sizes as forecast, an importance matrix from real text."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from convert import llamacpp, quantise
from core.errors import ConvertError
from core.gguf_model import read_gguf


@pytest.fixture(scope="module")
def sixteen_bit(short_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of the embedded model with 16 bits a weight."""
    target = tmp_path_factory.mktemp("16") / "16bit.gguf"
    llamacpp.run([llamacpp.tool("llama-quantize"), "--allow-requantize", short_model, target, "F16"])
    return target


def test_every_name_that_we_offer_is_known_to_the_tool(sixteen_bit: Path) -> None:
    for name in quantise.TYPES:
        assert quantise.predicted_size(sixteen_bit, name) > 0, name


def test_the_file_has_the_size_of_the_forecast_and_progress_is_told(
    sixteen_bit: Path, tmp_path: Path
) -> None:
    steps: list[tuple[int, int]] = []
    target = tmp_path / "q4.gguf"
    quantise.quantise(sixteen_bit, target, "Q4_K_M", None, lambda done, total: steps.append((done, total)))
    forecast = quantise.predicted_size(sixteen_bit, "Q4_K_M")
    assert target.stat().st_size == pytest.approx(forecast, rel=0.001)
    assert steps[-1] == (20, 20)
    assert read_gguf(target).file_type == "Q4_K_M"
    assert [path.name for path in tmp_path.iterdir()] == ["q4.gguf"]


def test_an_importance_matrix_comes_from_text_with_special_tokens(sixteen_bit: Path, tmp_path: Path) -> None:
    text = tmp_path / "chats.txt"
    turn = "<|im_start|>user\nWhat is a {0}?<|im_end|>\n<|im_start|>assistant\nA {0} is a thing.<|im_end|>\n"
    text.write_text("".join(turn.format(word) for word in ("llama", "house", "boat", "tree", "river")) * 10)
    matrix, steps = tmp_path / "imatrix.gguf", list[int]()
    quantise.importance_matrix(sixteen_bit, text, matrix, lambda done, total: steps.append(done))
    measured = [tensor.name for tensor in gguf.GGUFReader(matrix).tensors if tensor.name.endswith(".in_sum2")]
    assert len(measured) == 2 * 7  # all linear layers
    assert steps
    quantise.quantise(sixteen_bit, tmp_path / "iq2.gguf", "IQ2_M", matrix, lambda done, total: None)


def test_a_broken_file_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ConvertError, match=r"llama-quantize"):
        quantise.quantise(broken, tmp_path / "q4.gguf", "Q4_K_M", None, lambda done, total: None)
    assert not (tmp_path / "q4.gguf").exists()
