"""What the chat needs to know about a GGUF file, read without llama.cpp, which a hostile file can crash.

The rules by which a vocabulary's tokens are special are llama.cpp's own, and a child process asks it.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from core.errors import ModelFileError
from core.gguf_reader import Header, Value, check_parts, read_header, read_leading
from core.gguf_vocab import FORM_KEY, Form, Vocab, form_named, read_vocab
from core.machine import human_size

_F16_BYTES = 2

# general.file_type -> name (gguf-py/gguf/constants.py, LlamaFileType)
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0",
    37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip

# general.type of files that go with a model but aren't one
_COMPANIONS = {
    "adapter": 'is a LoRA adapter, not a model; list it under "adapters" of its base model in models.json',
    "mmproj": "is the image part of a model, not a language model; choose the other file of its repository",
    "imatrix": "is an importance matrix for quantising, not a model",
}
# llama.cpp's architectures that read text but write none (llama-arch.cpp)
_ENCODERS = {
    "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3",
    "eurobert", "gemma-embedding", "t5encoder", "llama-embed", "wavtokenizer-dec",
}  # fmt: skip

_MAGIC = b"GGUF"
_SIGNS = (
    (b"version https://git-lfs", "a Git LFS pointer; run 'git lfs pull' in its repository"),
    (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint?)"),
    (b"\x80\x02", "a Python pickle (an old PyTorch checkpoint?)"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"tjgg", "a GGJT file from before GGUF; download the model as GGUF"),
    (b"lmgg", "a GGML file from before GGUF; download the model as GGUF"),
)


@dataclass(frozen=True)
class GgufFile:
    """One model. Sizes in bytes."""

    path: Path  # the file that llama.cpp is given: the first part of a split model
    parts: tuple[Path, ...]  # all of its files; one where it isn't split
    file_size: int  # of all parts
    architecture: str
    name: str  # general.name; empty where the file has none
    n_ctx_train: int  # tokens; 0 where the file doesn't say
    n_vocab: int
    n_params: int  # 0: a vocabulary without weights, good for tokenising only
    file_type: str | None  # Q4_K_M, F16, ...; None where unknown
    chat_template: str | None
    kv_bytes_per_token: int  # with an f16 cache, every layer counted in full
    tokenizer: str  # tokenizer.ggml.model: gpt2, llama, ...
    keys: frozenset[str]  # of its metadata
    unicode_form: Form = ""  # that text is brought into for it

    @cached_property
    def vocab(self) -> Vocab:
        """Its special tokens. Asking takes a second for each file. Raises ModelFileError."""
        return read_vocab(self.path, self.chat_template or "")


def read_gguf(path: Path) -> GgufFile:
    """Read and check the model at `path`, which may be any part of a split one.

    Raises ModelFileError with a sentence for the user.
    """
    header, size = _read_header(path)
    if _split(header, "count") <= 1:
        return _describe((path,), size, header, header.n_params)
    paths = check_parts(path)
    if len(paths) != _split(header, "count"):
        raise ModelFileError(
            f"{path.name} is one of {_split(header, 'count')} parts of a model, and its name doesn't say "
            "which; give all parts the names that they were published with"
        )
    read = [(header, size) if part == path else _read_header(part) for part in paths]
    headers = [header for header, _ in read]
    _check_split(paths, headers)
    return _describe(
        tuple(paths), sum(size for _, size in read), headers[0], sum(header.n_params for header in headers)
    )


@lru_cache(maxsize=256)
def read_sizes(path: Path, changed_ns: int) -> tuple[int, int]:
    """Return (n_ctx_train, kv_bytes_per_token) of the model at `path`, last changed at `changed_ns`.

    Takes a moment. 0 where the file doesn't say them before its vocabulary, or it can't be read.
    """
    try:
        with path.open("rb") as file:
            metadata = read_leading(file, path.stat().st_size, path.name)
        architecture = _text(metadata, "general.architecture")
        trained = _number(metadata, f"{architecture}.context_length")
        return trained, _kv_bytes_per_token(metadata, architecture)
    except (OSError, ModelFileError, ValueError, OverflowError):
        return 0, 0


def _read_header(path: Path) -> tuple[Header, int]:
    """Return the header of one file and the file's size. Raises ModelFileError."""
    try:
        if path.is_dir():
            raise ModelFileError(f"{str(path)!r} is a folder; give the .gguf file inside it")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(1024)
            if not start.startswith(_MAGIC):
                raise ModelFileError(f"{path.name} is not a GGUF model but {_seems(start)}")
            file.seek(0)
            header = read_header(file, size, path.name)
    except FileNotFoundError:
        raise ModelFileError(f"there is no file {str(path)!r}") from None
    except OSError as error:
        raise ModelFileError(f"can't read {str(path)!r}: {error.strerror}") from None
    if header.needed_size > size:
        sizes = f"{human_size(size)} of {human_size(header.needed_size)}"
        raise ModelFileError(f"{path.name} is cut short: {sizes}; download it again")
    return header, size


def _split(header: Header, key: str) -> int:
    found = header.metadata.get(f"split.{key}", 0)
    return found if isinstance(found, int) else 0


def _check_split(paths: list[Path], headers: list[Header]) -> None:
    """Check that the parts are those of one model, as llama_model_loader does. Raises ModelFileError."""
    for number, (path, header) in enumerate(zip(paths, headers, strict=True)):
        if (_split(header, "no"), _split(header, "count")) != (number, len(paths)):
            says = f"part {_split(header, 'no') + 1} of {_split(header, 'count') or 1}"
            raise ModelFileError(f"{path.name} says that it is {says} of its model; download it again")
    announced, found = _split(headers[0], "tensors.count"), sum(header.n_tensors for header in headers)
    if announced != found:
        raise ModelFileError(
            f"the parts of {paths[0].name} are of different models: they hold {found} tensors, and the first "
            f"announces {announced}; download all of them again"
        )


def _describe(parts: tuple[Path, ...], size: int, header: Header, n_params: int) -> GgufFile:
    metadata, path = header.metadata, parts[0]
    architecture = _text(metadata, "general.architecture")
    companion = _COMPANIONS.get(_text(metadata, "general.type"))
    if companion or architecture == "clip":
        raise ModelFileError(f"{path.name} {companion or _COMPANIONS['mmproj']}")
    if architecture in _ENCODERS:
        raise ModelFileError(f"{path.name} can't chat: a {architecture} model reads text but writes none")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not architecture or not isinstance(tokens, list) or not tokens:
        missing = "vocabulary" if architecture else "architecture"
        raise ModelFileError(f"{path.name} is not a language model: it has no {missing}")
    try:
        _check_vocabulary(tokens, metadata.get("tokenizer.ggml.token_type"))
        file_type = metadata.get("general.file_type")
        return GgufFile(
            path=path,
            parts=parts,
            file_size=size,
            architecture=architecture,
            name=_text(metadata, "general.name"),
            n_ctx_train=_number(metadata, f"{architecture}.context_length"),
            n_vocab=len(tokens),
            n_params=n_params,
            file_type=_FILE_TYPES.get(file_type) if isinstance(file_type, int) else None,
            chat_template=_text(metadata, "tokenizer.chat_template") or None,
            kv_bytes_per_token=_kv_bytes_per_token(metadata, architecture),
            tokenizer=_text(metadata, "tokenizer.ggml.model"),
            keys=frozenset(metadata),
            unicode_form=form_named(metadata.get(FORM_KEY)),
        )
    except (ValueError, OverflowError) as error:
        raise ModelFileError(f"{path.name} can't be used: {error}") from None


def _check_vocabulary(tokens: list[bytes], types: Value) -> None:
    """Raise ValueError, with the end of a sentence, for a vocabulary on which llama.cpp would abort."""
    counts = Counter(token for token in tokens if token)
    if len(counts) < len(tokens):
        ((token, count),) = counts.most_common(1)
        if count > 1:
            raise ValueError(
                f"the token {token.decode('utf-8', 'backslashreplace')!r} is in the vocabulary twice"
            )
    if types is not None and (not isinstance(types, array) or len(types) < len(tokens)):
        raise ValueError("the list of token types doesn't match the vocabulary")


def _kv_bytes_per_token(metadata: Mapping[str, Value], architecture: str) -> int:
    """Layers x KV heads x (key length + value length) x 2 bytes, heads given once or for each layer.

    As llama_hparams::n_embd_k_gqa has it. Sliding-window layers count in full, so it is an upper bound there.
    """
    layers = _number(metadata, f"{architecture}.block_count")
    heads = metadata.get(f"{architecture}.attention.head_count")
    n_heads = max(heads, default=0) if isinstance(heads, array) else heads
    if not isinstance(n_heads, int) or n_heads <= 0:
        return 0  # no attention at all: Mamba, RWKV
    width = _number(metadata, f"{architecture}.embedding_length") // n_heads
    lengths = sum(
        _number(metadata, f"{architecture}.attention.{kind}_length", width) for kind in ("key", "value")
    )
    kv_heads = metadata.get(f"{architecture}.attention.head_count_kv", heads)
    if isinstance(kv_heads, array):
        total = int(sum(kv_heads[:layers]))
    else:
        total = layers * (kv_heads if isinstance(kv_heads, int) else n_heads)
    return max(0, total) * lengths * _F16_BYTES


def _number(metadata: Mapping[str, Value], key: str, default: int = 0) -> int:
    found = metadata.get(key, default)
    if isinstance(found, int) and found >= 0:
        return found
    raise ValueError(f"{key} is {str(found)[:40]!r}, not a count")


def _text(metadata: Mapping[str, Value], key: str) -> str:
    found = metadata.get(key, "")
    return found if isinstance(found, str) else ""


def _seems(start: bytes) -> str:
    """Say what a file that isn't a GGUF looks like."""
    if not start:
        return "an empty file; download it again"
    for sign, what in _SIGNS:
        if start.startswith(sign):
            return what
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "an HTML page; the link led to a web page, so download the file itself"
    if start[8:9] == b"{":
        return "a safetensors file; convert it first: python convert/to_gguf.py"
    return f"something else: it begins with {start[:8]!r}"
