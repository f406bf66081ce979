"""Finding the base of an adapter: a folder, what the run says, the hub's cache, a GGUF."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from convert.base import find_base
from core.errors import ChatError, ConvertError
from core.files import file_hash, file_hashes
from core.from_gguf import GGUF_WRITERS
from tests.integration.merge_bases import save_base

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "adapter"
    folder.mkdir(parents=True)
    return folder


def trained_on(adapter: Path, named: str | None, revision: str | None = None) -> Path:
    about = {"base_model_name_or_path": named, "revision": revision}
    (adapter / "adapter_config.json").write_text(json.dumps(about))
    return adapter


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's, and no hub."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def in_cache(cache: Path, name: str, kind: str) -> Path:
    """Put a small model where huggingface_hub would have put it."""
    repo = cache / f"models--{name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    return save_base(kind, repo / "snapshots" / COMMIT)


def test_a_folder_that_the_adapter_names(adapter: Path, tmp_path: Path) -> None:
    assert find_base(trained_on(adapter, str(tmp_path))) == tmp_path


def test_the_manifest_goes_before_the_adapter(adapter: Path, tmp_path: Path) -> None:
    manifest = {"base": {"base_model": str(tmp_path)}}
    (adapter.parent / "manifest.json").write_text(json.dumps(manifest))
    assert find_base(trained_on(adapter, "some/model")) == tmp_path


def test_a_folder_that_the_user_names_goes_first(adapter: Path, tmp_path: Path) -> None:
    assert find_base(trained_on(adapter, "/nowhere"), str(tmp_path)) == tmp_path


@pytest.mark.parametrize("named", ["/nowhere/model", "../model", "a/b/c"])
def test_a_folder_that_is_gone(adapter: Path, named: str) -> None:
    with pytest.raises(ConvertError, match=r"is not on this machine; say where it is: --base-model DIR"):
        find_base(trained_on(adapter, named))


def test_an_adapter_that_names_nothing(adapter: Path) -> None:
    with pytest.raises(ConvertError, match="doesn't say what it was trained on"):
        find_base(trained_on(adapter, None))


def test_the_hubs_cache(adapter: Path, offline: Path) -> None:
    folder = in_cache(offline, "some/model", "phi3")
    assert find_base(trained_on(adapter, "some/model")) == folder


@pytest.mark.parametrize("lost", ["model.safetensors", "tokenizer.model", "config.json"])
def test_a_cache_that_is_not_whole(adapter: Path, offline: Path, lost: str) -> None:
    (in_cache(offline, "some/model", "phi3") / lost).unlink()
    with pytest.raises(ConvertError, match=rf"'some/model' is not whole: .*{lost}.* --base-model DIR"):
        find_base(trained_on(adapter, "some/model"))


def test_offline_without_a_cache(adapter: Path, offline: Path) -> None:
    with pytest.raises(ConvertError, match=r"can't be downloaded .* --base-model DIR"):
        find_base(trained_on(adapter, "some/model"))


def test_a_gguf_is_written_out_unless_that_was_done_before(adapter: Path, tmp_path: Path) -> None:
    """What writing it out gives is test_from_gguf's business."""
    gguf, out = tmp_path / "base.gguf", adapter.parent / "convert" / "base"
    gguf.write_bytes(b"no GGUF")
    manifest = {"base": {"base_model": str(tmp_path), "gguf_file": "base.gguf"}}
    (adapter.parent / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ChatError, match=r"base\.gguf"):
        find_base(trained_on(adapter, "some/model"))
    out.mkdir(parents=True)
    made_from = {"gguf": [file_hash(gguf)], "writers": file_hashes(GGUF_WRITERS)}
    (out / "made_from.json").write_text(json.dumps(made_from))
    assert find_base(adapter) == out
    assert find_base(adapter, str(gguf), adapter.parent / "convert") == out
    os.utime(gguf, (0, 0))  # the same content
    assert find_base(adapter) == out
    gguf.write_bytes(b"on GGUF")  # other content of the same name, size and time
    os.utime(gguf, (0, 0))
    with pytest.raises(ChatError, match=r"base\.gguf"):
        find_base(adapter)


def test_a_gguf_that_is_gone(adapter: Path) -> None:
    with pytest.raises(ConvertError, match=r"'/nowhere/x.gguf' is not on this machine"):
        find_base(trained_on(adapter, "/nowhere/x.gguf"))
