"""GGUFs for tests: edited ones, split ones, and a small real model whose every reply is known beforehand."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

UINT32, INT32, STRING, BOOL = (
    GGUFValueType.UINT32,
    GGUFValueType.INT32,
    GGUFValueType.STRING,
    GGUFValueType.BOOL,
)
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # llama_token_type
WIDTH = 128  # of the scripted model: one dimension for each token of its reply
FEED_FORWARD = 32
STRENGTH = 10.0  # the next token's logit; all others have 0

# A key's new value, of the type that it has; or with its type, for a key that is new.
Changes = Mapping[str, Any]


class Reader(GGUFReader):
    """gguf-py's reader, which takes 3 s for a list of 49,000 tokens and another of their merges, in 0.1 s."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        data = self.data.data
        kind, count = struct.unpack_from("<IQ", data, orig_offs)
        end = orig_offs + 12
        types, parts = [GGUFValueType.ARRAY, GGUFValueType(kind)][: 1 + (count > 0)], [data[orig_offs:end]]
        if kind != GGUFValueType.STRING:
            parts.append(self._get(end, self.gguf_scalar_to_np[GGUFValueType(kind)], count))
            return 12 + parts[-1].nbytes, parts, [1], types
        for _ in range(count):
            begin = end + 8
            end = begin + struct.unpack_from("<Q", data, end)[0]
            parts += (data[begin - 8 : begin], data[begin:end])
        return end - orig_offs, parts, list(range(2, len(parts), 2)), types


def edited(source: Path, out: Path, changes: Changes | None = None, drop: Iterable[str] = ()) -> Path:
    """Copy `source` to `out` with `changes` to its keys, without the keys and tensors named in `drop`."""
    reader = Reader(source)
    writer = _writer(reader, out, changes or {}, set(drop))
    for tensor in reader.tensors:
        if tensor.name not in set(drop):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    return _written(writer, out)


def split(source: Path, folder: Path, name: str, sizes: list[int]) -> list[Path]:
    """Split `source` as `llama-gguf-split` does, into parts with `sizes` tensors each; the first may be 0.

    The last part takes what is left. Returns `folder/<name>-0000I-of-0000N.gguf`, in order.
    """
    reader, paths, start = Reader(source), [], 0
    for number, size in enumerate(sizes):
        out = folder / f"{name}-{number + 1:05d}-of-{len(sizes):05d}.gguf"
        keys = {
            "split.no": (number, GGUFValueType.UINT16),
            "split.count": (len(sizes), GGUFValueType.UINT16),
            "split.tensors.count": (len(reader.tensors), INT32),
        }
        if number == 0:
            writer = _writer(reader, out, keys, set())
        else:
            writer = GGUFWriter(out, "")
            writer.kv_data[0].clear()  # a later part has no architecture
            for key, (value, kind) in keys.items():
                writer.add_key_value(key, value, kind)
        end = len(reader.tensors) if number == len(sizes) - 1 else start + size
        for tensor in reader.tensors[start:end]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        paths.append(_written(writer, out))
        start = end
    return paths


def scripted(
    source: Path,
    out: Path,
    script: list[str],
    template: str | None = None,
    extra: Iterable[tuple[str, int]] = (),
    changes: Changes | None = None,
    drop: Iterable[str] = (),
) -> list[int]:
    """Write a one-layer Llama with the vocabulary of `source` that answers anything with `script`.

    Each token of `script` comes at most once, and after the last one the reply ends (eos). `extra` tokens,
    (surface, type), join the vocabulary. Attention is zero: the next token depends on the last one alone.
    Returns the ids of `script`.
    """
    reader, extra = Reader(source), list(extra)
    tokens = [*reader.fields["tokenizer.ggml.tokens"].contents(), *(surface for surface, _ in extra)]
    types = [*reader.fields["tokenizer.ggml.token_type"].contents(), *(kind for _, kind in extra)]
    ids, added = {token: i for i, token in enumerate(tokens)}, {surface for surface, _ in extra}
    chain = [ids[piece if piece in added or piece in ids else _byte_level(piece)] for piece in script]
    assert len(set(chain)) == len(chain) < WIDTH, "each token of a script comes once"
    shape = {
        "block_count": 1,
        "embedding_length": WIDTH,
        "feed_forward_length": FEED_FORWARD,
        "attention.head_count": 1,
        "attention.head_count_kv": 1,
        "rope.dimension_count": WIDTH,
        "vocab_size": len(tokens),
    }
    keys: dict[str, Any] = {f"llama.{key}": (value, UINT32) for key, value in shape.items()}
    keys |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types, "general.file_type": 1}
    keys |= {} if template is None else {"tokenizer.chat_template": (template, STRING)}
    writer = _writer(reader, out, keys | dict(changes or {}), set(drop))
    end = int(reader.fields["tokenizer.ggml.eos_token_id"].contents())
    for name, data in _weights(len(tokens), chain, end).items():
        writer.add_tensor(name, data)
    _written(writer, out)
    return chain


def _weights(n_vocab: int, chain: list[int], end: int) -> dict[str, np.ndarray]:
    """Embeddings are one-hot: dimension 0 for what is not in the script, k + 1 for its k-th token."""
    embeddings = np.zeros((n_vocab, WIDTH), np.float16)
    embeddings[:, 0] = 1
    head = np.zeros((n_vocab, WIDTH), np.float16)
    for position, token in enumerate(chain):
        embeddings[token] = 0
        embeddings[token, position + 1] = 1
        head[token, position] = STRENGTH
    head[end, len(chain)] = STRENGTH
    ones = np.ones(WIDTH, np.float32)
    block = {f"attn_{part}": np.zeros((WIDTH, WIDTH), np.float16) for part in ("q", "k", "v", "output")}
    block |= {f"ffn_{part}": np.zeros((FEED_FORWARD, WIDTH), np.float16) for part in ("gate", "up")}
    block |= {"ffn_down": np.zeros((WIDTH, FEED_FORWARD), np.float16), "attn_norm": ones, "ffn_norm": ones}
    weights = {f"blk.0.{name}.weight": data for name, data in block.items()}
    return {"token_embd.weight": embeddings, "output.weight": head, "output_norm.weight": ones} | weights


def _writer(reader: GGUFReader, out: Path, changes: Changes, drop: set[str]) -> GGUFWriter:
    architecture = str(reader.fields["general.architecture"].contents())
    writer = GGUFWriter(out, changes.get("general.architecture", architecture))
    left = {key: value for key, value in changes.items() if key != "general.architecture"}
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in drop:
            continue
        value, kinds = left.pop(key, field.contents()), field.types
        if isinstance(value, tuple):
            value, kinds = value[0], list(value[1:])
        writer.add_key_value(key, value, kinds[0], kinds[-1] if kinds[0] == GGUFValueType.ARRAY else None)
    for key, (value, kind) in left.items():
        writer.add_key_value(key, value, kind)
    return writer


def _written(writer: GGUFWriter, out: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    if any(writer.tensors):
        writer.write_tensors_to_file()
    else:
        writer.write_ti_data_to_file()
    writer.close()
    return out


def _byte_level(text: str) -> str:
    """Write `text` in the letters of a GPT-2 vocabulary, where every byte is a printable one."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return "".join(letters[byte] for byte in text.encode())
