"""Gemma 4's tokenizer, rebuilt from llama.cpp's vocabulary of it, without its longer words."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.integrations.gguf.reader import read_gguf_metadata

from core.gguf_tokenizer import NORMAL

LONGEST = 3  # characters of a word that is kept: all 262,144 entries take transformers half a minute


def gemma4_tokenizer(source: Path, folder: Path) -> dict[int, int]:
    """Write a GGUF's tokenizer into `folder`: BPE, `\u2581` for spaces, bytes for what it lacks.

    Returns the new id of each id that is kept. What is merged of short words is short: the rules are whole.
    """
    wanted = [f"tokenizer.ggml.{key}" for key in ("tokens", "token_type", "merges")]
    fields, _ = read_gguf_metadata(str(source), wanted)
    all_texts, all_types, merges = (fields[key] for key in wanted)
    kept = [i for i, text in enumerate(all_texts) if all_types[i] != NORMAL or len(text) <= LONGEST]
    texts, types = [all_texts[i] for i in kept], [all_types[i] for i in kept]
    pairs = [pair for merge in merges if len("".join(pair := _pair(merge))) <= LONGEST]
    vocabulary = {text: i for i, text in enumerate(texts)}
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    added = [
        AddedToken(text, normalized=False, special=kind == 3)
        for text, kind in zip(texts, types, strict=True)
        if kind in (3, 4)
    ]
    tokenizer.add_tokens(added)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "GemmaTokenizer",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "add_bos_token": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return {old: new for new, old in enumerate(kept)}


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right
