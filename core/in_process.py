"""The engine inside the app: llama-cpp-python, owned by one thread.

llama.cpp's context must never be entered twice. Only the owner thread touches it, one whole reply at a
time; a lock around single calls would not do, and neither does a limit of Gradio's queue, which counts page
and API apart. Stopping goes through llama.cpp's abort callback, so it works inside a long prompt too.
"""

from __future__ import annotations

import codecs
import ctypes
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

from core.engine import CHUNK_INTERVAL_S, Chunk, Request, Stats, TokenLogProb, wanted
from core.errors import ChatError
from core.llama import LlamaModel
from core.llama_sampler import Sampler
from core.lora import Adapter, strengths

FIRST_BATCH, MIN_BATCH = 128, 32
BATCH_TIME_S = 0.5  # how often a long prompt reports progress
LONGEST_CHARACTER = 4  # bytes, and so tokens, in UTF-8


class InProcessGeneration:
    """One reply, produced by the owner thread and read by another."""

    def __init__(self, request: Request, scales: list[float]) -> None:
        self.request, self.ids, self.scales = request, list(request.ids), scales
        self.stats = Stats(prompt_tokens=len(self.ids), seed=request.sampling.seed or 0)
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
    slots = 1

    def __init__(
        self,
        path: Path,
        n_ctx: int,
        n_threads: int,
        adapters: Sequence[Adapter] = (),
        cancelled: Callable[[], bool] = wanted,
        overrides: Mapping[str, int] | None = None,
    ) -> None:
        self.entered = 0  # replies inside the model now, and the most there ever were: for the tests
        self.most_entered = 0
        self._adapters = adapters
        files = [adapter.path for adapter in adapters]
        self._model = LlamaModel(path, n_ctx, n_threads, files, cancelled, overrides)
        self.n_ctx = self.n_cells = self._model.n_ctx
        self.shown: Mapping[str, int] = {}
        self._jobs: SimpleQueue[InProcessGeneration | None] = SimpleQueue()
        self._unfinished: set[InProcessGeneration] = set()
        self._owner = threading.Thread(target=self._own, name="llama.cpp", daemon=True)
        self._owner.start()

    def settle(self, cancelled: Callable[[], bool]) -> None:
        """Do nothing: batches follow the speed of each prompt."""

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Ids of `text`, no BOS added."""
        self._require_alive()
        return self._model.tokenize(text, special)

    def generate(self, request: Request) -> InProcessGeneration:
        """Queue a reply; replies are made one after the other."""
        ids = request.ids
        if not ids or len(ids) >= self.n_ctx or not all(0 <= i < self._model.n_vocab for i in ids):
            raise ChatError(f"A prompt of {len(ids)} tokens does not fit a context of {self.n_ctx} tokens.")
        self._require_alive()
        scales = strengths(self._adapters, request.adapters)
        job = InProcessGeneration(replace(request, sampling=request.sampling.seeded()), scales)
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
            if job.begin():
                self.entered += 1
                self.most_entered = max(self.most_entered, self.entered)
                try:
                    self._reply(job)
                except ChatError as error:
                    job.out.put(error)
                finally:
                    self.entered -= 1
                    job.out.put(None)
            self._unfinished.discard(job)
        self._model.close()

    def _reply(self, job: InProcessGeneration) -> None:
        started = time.perf_counter()
        self._model.abort_when(job.flag)
        self._model.adapt(job.scales)
        sampler = self._model.sampler(job.request)
        try:
            if not self._prefill(job):
                job.stats.finish_reason = "cancelled"
                return
            prefilled = time.perf_counter()
            evaluated = len(job.ids) - job.stats.cached_tokens
            job.stats.prompt_per_s = evaluated / (prefilled - started)
            self._decode(job, sampler, started)
            job.stats.generated_tokens = len(job.stats.ids)
            job.stats.generated_per_s = len(job.stats.ids) / (time.perf_counter() - prefilled)
        finally:
            sampler.free()

    def _prefill(self, job: InProcessGeneration) -> bool:
        """Evaluate what the context does not hold yet; False when stopped."""
        done = job.stats.cached_tokens = self._model.keep_common_prefix(job.ids)
        batch = min(FIRST_BATCH, self._model.n_batch)
        job.out.put(Chunk(prompt_done=done))
        while done < len(job.ids):
            part = job.ids[done : done + batch]
            began = time.perf_counter()
            if not self._model.evaluate(part):
                return False
            done += len(part)
            job.out.put(Chunk(prompt_done=done))
            speed = len(part) / (time.perf_counter() - began)
            batch = max(MIN_BATCH, min(self._model.n_batch, int(speed * BATCH_TIME_S)))
        return True

    def _decode(self, job: InProcessGeneration, sampler: Sampler, started: float) -> None:
        """Draw tokens until one ends the reply. Text leaves as whole characters, some times a second."""
        model, stats, decoder = self._model, job.stats, codecs.getincrementaldecoder("utf-8")("replace")
        # A reply that is continued may have been cut inside a character: its first bytes are in the prompt.
        decoder.decode(b"".join(map(model.bytes_of, job.ids[-LONGEST_CHARACTER:])))
        limit = min(job.request.sampling.max_tokens, self.n_ctx - len(job.ids))
        top = job.request.logprobs
        text, fresh, last_put = "", 0, 0.0
        logprobs: list[TokenLogProb] = []
        while not stats.finish_reason:
            token = model.sample(sampler)
            if model.ends_reply(token):
                stats.finish_reason = "stop"
                break
            stats.ids.append(token)
            logprobs += [model.log_prob(token, top)] if top is not None else []
            text += decoder.decode(model.bytes_of(token, token in self.shown.values()))
            fresh += 1
            now = time.perf_counter()
            stats.first_token_s = stats.first_token_s or now - started
            if now - last_put >= CHUNK_INTERVAL_S and text:
                job.out.put(Chunk(text, tuple(stats.ids[-fresh:]), logprobs=tuple(logprobs)))
                text, fresh, last_put, logprobs = "", 0, now, []
            if len(stats.ids) >= limit:
                stats.finish_reason = "length"
            elif not model.evaluate([token]):
                stats.finish_reason = "cancelled"
        job.out.put(Chunk(text, tuple(stats.ids[len(stats.ids) - fresh :]), logprobs=tuple(logprobs)))
