"""A clear sentence for what can go wrong around a conversion: disk, memory, two at once, Ctrl-C."""

from __future__ import annotations

import json
import shutil
import signal
import struct
import time
from pathlib import Path

import pytest

from convert.conversion import convert
from convert.pipeline import Pipeline
from convert.preflight import check, disk_needed, is_written_twice
from convert.source import find_source
from convert.stages import Settings
from core.checkpoint import Checkpoint
from core.errors import ConvertError
from tests.integration.commands import Command
from tests.integration.merge_bases import edit_json
from tests.integration.tiny_models import lora, tiny


def hollow_checkpoint(folder: Path, rows: int) -> Checkpoint:
    """A checkpoint of any size that takes no room: ten files with nothing but their headers written."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    size = rows // 10 * 4096 * 2
    names = {f"w{number}": f"{number}.safetensors" for number in range(10)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    for name, file_name in names.items():
        about = {"dtype": "BF16", "shape": [rows // 10, 4096], "data_offsets": [0, size]}
        header = json.dumps({name: about}).encode()
        with (folder / file_name).open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + size)
    return Checkpoint(folder)


def test_a_disk_that_is_too_small_is_noticed_before_anything_starts(tmp_path: Path) -> None:
    large = hollow_checkpoint(tmp_path / "large", rows=20_000_000)  # 164 GB
    (work := tmp_path / "work").mkdir()
    with pytest.raises(ConvertError, match=r"the disk is too small. Needs up to 327\.7 GB of disk"):
        check(large, merges=True, types=["Q4_K_M"], keep=False, folder=work, models=tmp_path)


def test_models_on_another_disk_needs_room_there(tmp_path: Path, another_disk: Path) -> None:
    """The GGUFs go there one by one: their making takes the room of one, models/ that of all."""
    model = hollow_checkpoint(tmp_path / "model", rows=100)
    (work := tmp_path / "work").mkdir()
    (models := tmp_path / "models").symlink_to(another_disk)
    types = ["F16"] * (shutil.disk_usage(another_disk).free // (2 * model.n_params) + 1000)
    with pytest.raises(ConvertError) as caught:
        check(model, merges=False, types=types, keep=False, folder=work, models=models)
    assert f"the disk of {another_disk.resolve()} is too small. Needs up to " in str(caught.value)
    assert f"1.6 MB of disk in {work} (" in str(caught.value)
    assert f"of disk in {models} (" in str(caught.value)
    said = check(model, merges=False, types=types[:2], keep=False, folder=work, models=models)
    assert f"1.6 MB of disk in {models} (" in said


def test_the_worst_moment_holds_two_copies_at_16_bit(tmp_path: Path) -> None:
    model = hollow_checkpoint(tmp_path / "model", rows=1000)
    sixteen = 2 * model.n_params
    assert disk_needed(model, merges=True, types=["Q4_K_M", "Q5_K_M"], keep=False) == 2 * sixteen
    assert disk_needed(model, merges=True, types=["Q4_K_M"], keep=False, twice=True) == 3 * sixteen
    assert disk_needed(model, merges=True, types=["Q4_K_M", "Q5_K_M"], keep=True) > 2.6 * sixteen
    assert sixteen < disk_needed(model, merges=False, types=["Q4_K_M"], keep=False) < 1.4 * sixteen


def test_a_tokenizer_that_composes_accents_makes_the_16_bit_file_twice(tmp_path: Path) -> None:
    base, adapter = tiny("phi3", tmp_path / "base"), tmp_path / "adapter"
    assert not is_written_twice(base)
    shutil.copytree(base, adapter)  # with a tokenizer of its own, which goes before the base's
    tokenizer = json.loads((adapter / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "NFC"}
    edit_json(adapter / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    (adapter / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert is_written_twice(base, adapter)
    (adapter / "tokenizer_config.json").unlink()
    assert not is_written_twice(base, adapter)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    tiny("llama", root / "base")
    lora(root / "base", root / "outputs" / "tiny" / "adapter")
    return root


def start(root: Path) -> Command:
    return Command("convert/to_gguf.py", "tiny", "--quant", "q4", "--root", root)


def test_two_conversions_of_one_run_do_not_mix_and_ctrl_c_is_quiet(root: Path) -> None:
    first = start(root)
    while "\n" not in first.stdout:  # until it has begun
        assert first.returncode is None, first.stderr
        time.sleep(0.01)
    second = start(root)
    assert second.wait() == 1
    assert "'tiny' is being converted by another program right now" in second.stderr
    first.send_signal(signal.SIGINT)
    started = time.monotonic()
    assert first.wait() == 130, first.stderr
    assert time.monotonic() - started < 20
    assert "Stopped. The same command goes on where it was." in first.stderr
    assert "Traceback" not in first.stderr


def test_two_sources_of_one_name_do_not_share_a_folder(root: Path, tmp_path: Path) -> None:
    for place in ("a", "b"):
        shutil.copytree(root / "outputs" / "tiny" / "adapter", tmp_path / place / "same")
    Pipeline(find_source(str(tmp_path / "a" / "same"), tmp_path / "outputs"), Settings())
    with pytest.raises(ConvertError, match=r"which has the same name; rename one of the two"):
        Pipeline(find_source(str(tmp_path / "b" / "same"), tmp_path / "outputs"), Settings())


def test_a_matrix_that_is_nowhere_is_noticed_first(root: Path) -> None:
    with pytest.raises(ConvertError, match=r"--imatrix 'nowhere.gguf' is no file"):
        convert(find_source("tiny", root / "outputs"), Settings(imatrix="nowhere.gguf"), ["Q4_K_M"], root)
