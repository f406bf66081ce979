"""The engine inside the app: llama-cpp-python's low-level bindings, owned by one thread.

llama.cpp's context must never be entered twice. Only the owner thread touches it, one whole reply at a
time; a lock around single calls would not do, and neither does a limit of Gradio's queue, which counts page
and API apart. Stopping goes through llama.cpp's abort callback, so it works inside a long prompt too.
"""

from __future__ import annotations

import codecs
import ctypes
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import llama_cpp

from chat.engine import CHUNK_INTERVAL_S, PENALTY_WINDOW, Chunk, Sampling, Stats
from chat.errors import ChatError, ModelFileError

MAX_BATCH = 512  # llama.cpp's physical batch: larger ones evaluate no faster
FIRST_BATCH = 128
BATCH_TIME_S = 0.5  # how often a long prompt reports progress
ABORTED = 2  # llama_decode's return value after the abort callback said so

# The abort callback is asked hundreds of times a token. strlen over a flag byte answers without Python and
# without its lock: an empty string is 0 (go on), a set byte makes it 1 (stop).
_libc = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
_flag_is_set = ctypes.cast(_libc.strlen, llama_cpp.ggml_abort_callback)

_log: deque[str] = deque(maxlen=200)  # llama.cpp's last messages: the only place where it says why


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_log(level: int, text: bytes, _: Any) -> None:
    _log.append(text.decode("utf-8", "replace").rstrip())


class InProcessGeneration:
    """One reply, produced by the owner thread and read by another."""

    def __init__(self, ids: list[int], sampling: Sampling) -> None:
        self.ids = ids
        self.sampling = sampling
        self.stats = Stats(prompt_tokens=len(ids), seed=sampling.seed or 0)
        self.flag = ctypes.create_string_buffer(2)
        self.out: SimpleQueue[Chunk | BaseException | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._begun = False

    def __iter__(self) -> Iterator[Chunk]:
        while (item := self.out.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def cancel(self) -> None:
        """Stop within a few milliseconds; a reply that still waits for its turn ends at once."""
        with self._lock:
            self.flag[0] = b"\1"
            if not self._begun:
                self.stats.finish_reason = "cancelled"
                self.out.put(None)

    def begin(self) -> bool:
        """Called by the owner thread when the reply's turn has come; False if it was stopped before."""
        with self._lock:
            self._begun = self.flag[0] == b"\0"
            return self._begun


class InProcessEngine:
    """A GGUF loaded into this process. Loading raises ModelFileError."""

    label = "in-process"

    def __init__(self, path: Path, n_ctx: int, n_threads: int, adapters: list[str] | None = None) -> None:
        self.n_ctx = n_ctx
        self.entered = 0  # replies inside the model now, and the most there ever were: for the tests
        self.most_entered = 0
        self._model = _load_model(path)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._n_vocab = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._context = self._open_context(path, n_threads, adapters or [])
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._cached: list[int] = []  # the ids whose keys and values the context holds
        self._one = (llama_cpp.llama_token * 1)()
        self._batch_of_one = llama_cpp.llama_batch_get_one(self._one, 1)
        self._piece = ctypes.create_string_buffer(1024)
        self._jobs: SimpleQueue[InProcessGeneration | None] = SimpleQueue()
        self._unfinished: set[InProcessGeneration] = set()
        self._owner = threading.Thread(target=self._own, name="llama.cpp", daemon=True)
        self._owner.start()

    def _open_context(self, path: Path, n_threads: int, adapters: list[str]) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.n_ctx
        params.n_batch = params.n_ubatch = MAX_BATCH
        params.n_threads = params.n_threads_batch = n_threads
        context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            llama_cpp.llama_model_free(self._model)
            raise ModelFileError(
                f"{path.name} loads, but a context of {self.n_ctx} tokens does not: {_reason()}"
            )
        loras = [llama_cpp.llama_adapter_lora_init(self._model, a.encode()) for a in adapters]
        if not all(loras):
            raise ModelFileError(f"{path.name}: an adapter of {adapters} does not load: {_reason()}")
        if loras:
            array = (llama_cpp.llama_adapter_lora_p_ctypes * len(loras))(*loras)
            scales = (ctypes.c_float * len(loras))(*[1.0] * len(loras))
            llama_cpp.llama_set_adapters_lora(context, array, len(loras), scales)
        return context

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Ids of `text`, no BOS added. Reads the vocabulary only, so any thread may call it."""
        self._require_alive()
        data = text.encode("utf-8", "surrogatepass")
        buffer = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), buffer, len(buffer), False, special)
        if count < 0:
            raise ChatError(f"This text of {len(data)} bytes could not be tokenised.")
        return list(buffer[:count])

    def generate(self, ids: list[int], sampling: Sampling) -> InProcessGeneration:
        """Queue a reply to the prompt `ids`; replies are made one after the other."""
        if not ids or len(ids) >= self.n_ctx or not all(0 <= i < self._n_vocab for i in ids):
            raise ChatError(f"A prompt of {len(ids)} tokens does not fit a context of {self.n_ctx} tokens.")
        self._require_alive()
        job = InProcessGeneration(list(ids), sampling.seeded())
        self._unfinished.add(job)
        self._jobs.put(job)
        return job

    def alive(self) -> bool:
        return self._owner.is_alive()

    def _require_alive(self) -> None:
        if not self.alive():
            raise ChatError("The model has been unloaded. Send the message again.")

    def close(self) -> None:
        """Stop what is running or queued, and free the model's memory."""
        for job in list(self._unfinished):
            job.cancel()
        self._jobs.put(None)
        self._owner.join()

    def _own(self) -> None:
        """The owner thread: one job, whole, after the other."""
        while (job := self._jobs.get()) is not None:
            if not job.begin():
                self._unfinished.discard(job)
                continue
            self.entered += 1
            self.most_entered = max(self.most_entered, self.entered)
            try:
                self._reply(job)
            except ChatError as error:
                job.out.put(error)
            finally:
                self.entered -= 1
                self._unfinished.discard(job)
                job.out.put(None)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def _reply(self, job: InProcessGeneration) -> None:
        started = time.perf_counter()
        llama_cpp.llama_set_abort_callback(self._context, _flag_is_set, ctypes.addressof(job.flag))
        chain = self._sampler(job)
        try:
            if not self._prefill(job):
                return
            prefilled = time.perf_counter()
            evaluated = len(job.ids) - job.stats.cached_tokens
            job.stats.prompt_per_s = evaluated / (prefilled - started)
            self._decode(job, chain, started)
            job.stats.generated_tokens = len(job.stats.ids)
            job.stats.generated_per_s = len(job.stats.ids) / (time.perf_counter() - prefilled)
        finally:
            llama_cpp.llama_sampler_free(chain)

    def _sampler(self, job: InProcessGeneration) -> Any:
        """llama.cpp's default order, as llama-server has it: penalties see the end of the prompt too."""
        s, chain = (
            job.sampling,
            llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params()),
        )
        add = llama_cpp.llama_sampler_chain_add
        if s.repeat_penalty != 1:
            window = llama_cpp.llama_sampler_init_penalties(
                self._n_vocab, PENALTY_WINDOW, s.repeat_penalty, 0.0, 0.0
            )
            add(chain, window)
            for token in job.ids[-PENALTY_WINDOW:]:
                llama_cpp.llama_sampler_accept(window, token)
        if s.temperature == 0:
            add(chain, llama_cpp.llama_sampler_init_greedy())
            return chain
        add(chain, llama_cpp.llama_sampler_init_top_k(s.top_k))
        add(chain, llama_cpp.llama_sampler_init_top_p(s.top_p, 1))
        add(chain, llama_cpp.llama_sampler_init_min_p(s.min_p, 1))
        add(chain, llama_cpp.llama_sampler_init_temp(s.temperature))
        add(chain, llama_cpp.llama_sampler_init_dist(s.seed or 0))
        return chain

    def _prefill(self, job: InProcessGeneration) -> bool:
        """Evaluate what the context does not hold yet; False when stopped."""
        done = self._keep_common_prefix(job.ids)
        job.stats.cached_tokens = done
        batch = FIRST_BATCH
        job.out.put(Chunk(prompt_done=done))
        while done < len(job.ids):
            part = job.ids[done : done + batch]
            began = time.perf_counter()
            tokens = (llama_cpp.llama_token * len(part))(*part)
            if not self._evaluate(llama_cpp.llama_batch_get_one(tokens, len(part)), job):
                return False
            self._cached += part
            done += len(part)
            job.out.put(Chunk(prompt_done=done))
            batch = max(32, min(MAX_BATCH, int(len(part) / (time.perf_counter() - began) * BATCH_TIME_S)))
        return True

    def _keep_common_prefix(self, ids: list[int]) -> int:
        same = 0
        for ours, theirs in zip(
            self._cached, ids[:-1], strict=False
        ):  # the last id is evaluated: it gives the logits
            if ours != theirs:
                break
            same += 1
        if not llama_cpp.llama_memory_seq_rm(self._memory, 0, same, -1):
            same = 0  # a recurrent or windowed model can't forget half a chat
            llama_cpp.llama_memory_clear(self._memory, True)
        del self._cached[same:]
        return same

    def _evaluate(self, batch: Any, job: InProcessGeneration) -> bool:
        result = llama_cpp.llama_decode(self._context, batch)
        if result == 0:
            return True
        llama_cpp.llama_memory_seq_rm(self._memory, 0, len(self._cached), -1)  # drop a half-evaluated batch
        if result != ABORTED:
            raise ChatError(f"llama.cpp could not evaluate this chat (code {result}): {_reason()}")
        job.stats.finish_reason = "cancelled"
        return False

    def _decode(self, job: InProcessGeneration, chain: Any, started: float) -> None:
        """Draw tokens until one ends the reply. Text leaves as whole characters, some times a second."""
        stats, decoder = job.stats, codecs.getincrementaldecoder("utf-8")("replace")
        # A reply that is continued may have been cut inside a character: its first bytes are in the prompt.
        decoder.decode(b"".join(map(self._bytes_of, job.ids[-4:])))
        limit = min(job.sampling.max_tokens, self.n_ctx - len(job.ids))
        text, fresh, last_put = "", 0, 0.0
        while True:
            token = llama_cpp.llama_sampler_sample(chain, self._context, -1)
            if llama_cpp.llama_vocab_is_eog(self._vocab, token):
                stats.finish_reason = stats.finish_reason or "stop"
                break
            stats.ids.append(token)
            text += decoder.decode(self._bytes_of(token))
            fresh += 1
            now = time.perf_counter()
            stats.first_token_s = stats.first_token_s or now - started
            if now - last_put >= CHUNK_INTERVAL_S and text:
                job.out.put(Chunk(text, tuple(stats.ids[-fresh:])))
                text, fresh, last_put = "", 0, now
            if len(stats.ids) >= limit:
                stats.finish_reason = stats.finish_reason or "length"
                break
            self._one[0] = token
            if not self._evaluate(self._batch_of_one, job):
                break
            self._cached.append(token)
        job.out.put(Chunk(text, tuple(stats.ids[len(stats.ids) - fresh :])))

    def _bytes_of(self, token: int) -> bytes:
        size = llama_cpp.llama_token_to_piece(self._vocab, token, self._piece, len(self._piece), 0, False)
        return self._piece.raw[: max(0, size)]


def _load_model(path: Path) -> Any:
    """Load the weights, on a GPU where this build has one. Raises ModelFileError with llama.cpp's reason."""
    llama_cpp.llama_log_set(_keep_log, None)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = -1 if llama_cpp.llama_supports_gpu_offload() else 0
    _log.clear()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise ModelFileError(f"{path.name} could not be loaded: {_reason()}")
    return model


def _reason() -> str:
    """llama.cpp's last complaint, or a plain sentence where it gave none."""
    for sign in ("error", "failed", "unknown"):  # "failed to load model" comes last and says least
        for line in reversed(_log):
            if sign in line:
                return line.split(": ", 1)[-1]
    return "llama.cpp gave no reason; the memory may be too small"
