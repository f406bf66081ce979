"""A GGUF loaded through llama-cpp-python's low-level bindings, with one context. For one thread at a time."""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp

from core.engine import LoadCancelled, Request, TokenLogProb, first_reason, wanted
from core.errors import ChatError, ModelFileError
from core.llama_sampler import Sampler, likeliest, log_softmax, logits
from core.machine import give_back

MAX_BATCH = 512  # llama.cpp's physical batch: larger ones evaluate no faster
ABORTED = 2  # llama_decode's return value after the abort callback said so

# The abort callback is asked hundreds of times a token. strlen over a flag byte answers without Python and
# without its lock: an empty string is 0 (go on), a set byte makes it 1 (stop).
_libc = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
_flag_is_set = ctypes.cast(_libc.strlen, llama_cpp.ggml_abort_callback)

ERROR = 4  # ggml_log_level

_errors: deque[str] = deque(maxlen=200)  # llama.cpp's messages: the only place where it says why


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_errors(level: int, text: bytes, _: Any) -> None:
    if level == ERROR:
        _errors.append(text.decode("utf-8", "replace").rstrip())


class LlamaModel:
    """Weights, vocabulary, and a context that remembers which ids it holds. Raises ModelFileError."""

    def __init__(
        self,
        path: Path,
        n_ctx: int,
        n_threads: int,
        adapters: list[str],
        cancelled: Callable[[], bool] = wanted,
        overrides: Mapping[str, int] | None = None,
    ) -> None:
        self.cached: list[int] = []  # the ids whose keys and values the context holds
        self._model = _load(path, cancelled, overrides or {})
        # What it was trained on is the end of its context, as llama-server has it.
        n_ctx_train = llama_cpp.llama_model_n_ctx_train(self._model)
        n_ctx = min(n_ctx, n_ctx_train) if n_ctx_train > 0 else n_ctx
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._context = self._open_context(path, n_ctx, n_threads)
        self.n_ctx = min(n_ctx, llama_cpp.llama_n_ctx(self._context))  # it rounds up to blocks of 256
        self.n_batch = min(MAX_BATCH, llama_cpp.llama_n_batch(self._context))
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._scales: list[float] = []
        self._loras = self._load_adapters(path, adapters)
        self.adapt([1.0] * len(adapters))
        self._one = (llama_cpp.llama_token * 1)()
        self._batch_of_one = llama_cpp.llama_batch_get_one(self._one, 1)
        self._piece = ctypes.create_string_buffer(1024)

    def _open_context(self, path: Path, n_ctx: int, n_threads: int) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = MAX_BATCH
        params.n_threads = params.n_threads_batch = n_threads
        _errors.clear()
        context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            llama_cpp.llama_model_free(self._model)
            raise ModelFileError(f"{path.name} loads, but a context of {n_ctx} tokens does not: {_reason()}")
        return context

    def _load_adapters(self, path: Path, adapters: list[str]) -> list[Any]:
        _errors.clear()
        files = map(os.fsencode, adapters)
        loras = [llama_cpp.llama_adapter_lora_init(self._model, file) for file in files]
        if not all(loras):
            self.close()
            raise ModelFileError(f"{path.name}: an adapter of {adapters} does not load: {_reason()}")
        return loras

    def adapt(self, scales: Sequence[float]) -> None:
        """Let the adapters apply with `scales`, one for each. Another choice forgets what the context holds:
        its keys and values come from the adapters it was evaluated with."""
        if list(scales) == self._scales:
            return
        self._scales = list(scales)
        array = (llama_cpp.llama_adapter_lora_p_ctypes * len(scales))(*self._loras)
        llama_cpp.llama_set_adapters_lora(
            self._context, array, len(scales), (ctypes.c_float * len(scales))(*scales)
        )
        self.cached.clear()
        llama_cpp.llama_memory_clear(self._memory, True)

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Ids of `text`, no BOS added. Reads the vocabulary only, so any thread may call it."""
        data = text.encode("utf-8", "surrogatepass")
        buffer = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), buffer, len(buffer), False, special)
        if count < 0:
            raise ChatError(f"This text of {len(data)} bytes could not be tokenised.")
        return list(buffer[:count])

    def bytes_of(self, token: int, special: bool = False) -> bytes:
        """The token's part of the text, perhaps half a character; a control token's only if `special`."""
        size = llama_cpp.llama_token_to_piece(self._vocab, token, self._piece, len(self._piece), 0, special)
        return self._piece.raw[: max(0, size)]

    def ends_reply(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def abort_when(self, flag: ctypes.Array[ctypes.c_char]) -> None:
        """Let `evaluate` return False within milliseconds once the first byte of `flag` is set."""
        llama_cpp.llama_set_abort_callback(self._context, _flag_is_set, ctypes.addressof(flag))

    def keep_common_prefix(self, ids: list[int]) -> int:
        """Forget what `ids` does not begin with; return how many of its tokens need no evaluation."""
        same = 0
        for ours, theirs in zip(self.cached, ids[:-1], strict=False):  # the last one's logits are needed
            if ours != theirs:
                break
            same += 1
        if not llama_cpp.llama_memory_seq_rm(self._memory, 0, same, -1):
            same = 0  # a recurrent or windowed model can't forget half a chat
            llama_cpp.llama_memory_clear(self._memory, True)
        del self.cached[same:]
        return same

    def evaluate(self, ids: list[int]) -> bool:
        """Add `ids` (at most n_batch) to the context; False when aborted. Raises ChatError."""
        if len(ids) == 1:
            self._one[0], batch = ids[0], self._batch_of_one
        else:
            tokens = (llama_cpp.llama_token * len(ids))(*ids)  # the batch points into it: it must stay
            batch = llama_cpp.llama_batch_get_one(tokens, len(ids))
        result = llama_cpp.llama_decode(self._context, batch)
        if result == 0:
            self.cached += ids
            return True
        llama_cpp.llama_memory_seq_rm(self._memory, 0, len(self.cached), -1)  # drop a half-evaluated batch
        if result != ABORTED:
            raise ChatError(f"llama.cpp could not evaluate this chat (code {result}): {_reason()}")
        return False

    def logits(self, ids: list[int], wanted: set[int]) -> Iterator[tuple[int, ctypes.Array[ctypes.c_float]]]:
        """Evaluate `ids` from the beginning; yield (position, n_vocab logits of the token that follows it)
        for each position in `wanted`. The next step overwrites the array. Raises ChatError."""
        self.cached.clear()
        llama_cpp.llama_memory_clear(self._memory, True)
        for start in range(0, len(ids), self.n_batch):
            part = ids[start : start + self.n_batch]
            batch = llama_cpp.llama_batch_init(len(part), 0, 1)
            try:
                batch.n_tokens = len(part)
                for i, token in enumerate(part):
                    batch.token[i], batch.pos[i], batch.logits[i] = token, start + i, start + i in wanted
                    batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                if code := llama_cpp.llama_decode(self._context, batch):
                    raise ChatError(f"llama.cpp could not evaluate these tokens (code {code}): {_reason()}")
                for i in sorted(
                    position - start for position in wanted if start <= position < start + len(part)
                ):
                    pointer = llama_cpp.llama_get_logits_ith(self._context, i)
                    address = ctypes.addressof(pointer.contents)
                    yield start + i, (ctypes.c_float * self.n_vocab).from_address(address)
            finally:
                llama_cpp.llama_batch_free(batch)

    def log_prob(self, token: int, top: int) -> TokenLogProb:
        """How likely `token` was to follow the context, and the `top` likeliest ones. Call it after the draw,
        before the next `evaluate`."""
        log_probs = log_softmax(logits(self._context, self.n_vocab))

        def of(i: int) -> TokenLogProb:
            return TokenLogProb(i, self.bytes_of(i), float(log_probs[i]))

        return replace(of(token), top=tuple(map(of, likeliest(log_probs, top))))

    def sampler(self, request: Request) -> Sampler:
        """The samplers of one reply. Raises ChatError."""
        return Sampler(self._vocab, self.n_vocab, request)

    def sample(self, sampler: Sampler) -> int:
        """Draw the token that follows the context. Raises ChatError."""
        return sampler.draw(self._context)

    def close(self) -> None:
        """Free the memory; nothing else may be called afterwards."""
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)
        give_back()


def _load(path: Path, cancelled: Callable[[], bool], overrides: Mapping[str, int]) -> Any:
    """Load the weights, on a GPU where this build has one. Raises ModelFileError with llama.cpp's reason.

    `overrides` are keys of the file that count as having these values.
    """
    llama_cpp.llama_log_set(_keep_errors, None)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = -1 if llama_cpp.llama_supports_gpu_offload() else 0
    callback = llama_cpp.llama_progress_callback(lambda progress, data: not cancelled())
    params.progress_callback = callback
    table = (llama_cpp.llama_model_kv_override * (len(overrides) + 1))()  # ends at an empty key
    for entry, (key, value) in zip(table, overrides.items(), strict=False):
        entry.tag, entry.key, entry.value.val_i64 = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, key.encode(), value
    params.kv_overrides = table
    _errors.clear()
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if cancelled():
        if model:
            llama_cpp.llama_model_free(model)
        raise LoadCancelled(f"Stopped while {path.name} was being loaded.")
    if not model:
        raise ModelFileError(f"{path.name} could not be loaded: {_reason()}")
    return model


def _reason() -> str:
    """llama.cpp's own reason, or a plain sentence where it gave none."""
    return first_reason(_errors) or "llama.cpp gave no reason; the memory may be too small"
