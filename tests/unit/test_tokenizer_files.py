"""Where a merged checkpoint's tokenizer comes from."""

from __future__ import annotations

import json
from pathlib import Path

from convert.tokenizer_files import TokenizerFiles


def test_added_tokens_of_a_sentencepiece_are_told_where_llama_cpp_looks(tmp_path: Path) -> None:
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    for folder in (base, adapter, out):
        folder.mkdir()
    (base / "tokenizer.model").write_bytes(b"sentencepiece")
    (base / "tokenizer_config.json").write_text('{"tokenizer_class": "GemmaTokenizer"}')
    mark = {"id": 106, "content": "<start_of_turn>", "special": True, "lstrip": False, "rstrip": False}
    tokenizer = {"model": {"vocab": {"a": 0}}, "added_tokens": [mark]}
    (adapter / "tokenizer.json").write_text(json.dumps(tokenizer))
    # As transformers 5 saves it, without added_tokens_decoder.
    (adapter / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend", "auto_map": {}}')
    TokenizerFiles(base, adapter).copy(out)
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert config["added_tokens_decoder"]["106"]["content"] == "<start_of_turn>"
    assert config["added_tokens_decoder"]["106"]["special"] is True
    assert config["tokenizer_class"] == "GemmaTokenizer"
    assert "auto_map" not in config
    assert (out / "tokenizer.model").read_bytes() == b"sentencepiece"
