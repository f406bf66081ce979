"""How llama.cpp draws a token in this process: its samplers in llama-server's order, and a grammar over them.

A grammar that llama.cpp can't go on with ends the process (a C++ exception). So a token reaches it only after
it has accepted that token, and only a grammar of `chat/structured.py` gets here.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from core.engine import PENALTY_WINDOW, Request
from core.errors import ChatError

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


class Sampler:
    """The samplers of one reply; `free` it. Raises ChatError for a grammar that llama.cpp refuses."""

    def __init__(self, vocab: Any, n_vocab: int, request: Request) -> None:
        self._n_vocab = n_vocab
        self._grammar = None
        if request.grammar:
            self._grammar = llama_cpp.llama_sampler_init_grammar(vocab, request.grammar.encode(), b"root")
            if not self._grammar:
                raise ChatError("llama.cpp can't use the grammar of this JSON schema. Write it more simply.")
        self._chain = _chain(n_vocab, request)

    def draw(self, context: Any) -> int:
        """Draw the token that follows the context, as llama-server does: the grammar looks at one token, and
        at the whole vocabulary only where it doesn't fit."""
        if not self._grammar:
            token: int = llama_cpp.llama_sampler_sample(self._chain, context, -1)
            return token
        candidates = np.zeros(self._n_vocab, _CANDIDATE)
        token = self._choose(candidates, context)
        if not self._allows(np.array([(token, 0, 0)], _CANDIDATE)):
            token = self._choose(candidates, context, constrained=True)
        llama_cpp.llama_sampler_accept(self._grammar, token)
        llama_cpp.llama_sampler_accept(self._chain, token)
        return token

    def _choose(self, candidates: NDArray[Any], context: Any, constrained: bool = False) -> int:
        candidates["id"] = np.arange(self._n_vocab)
        candidates["logit"] = logits(context, self._n_vocab)
        if constrained and not self._allows(candidates):
            raise ChatError("This model has no token that goes on with what the JSON schema asks for.")
        array = _array(candidates)
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(candidates["id"][array.selected])

    def _allows(self, candidates: NDArray[Any]) -> bool:
        """Take from `candidates` what the grammar forbids; False when nothing is left."""
        llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(_array(candidates)))
        return bool(np.isfinite(candidates["logit"]).any())

    def free(self) -> None:
        llama_cpp.llama_sampler_free(self._chain)
        if self._grammar:
            llama_cpp.llama_sampler_free(self._grammar)


def _chain(n_vocab: int, request: Request) -> Any:
    """llama.cpp's default order, as llama-server has it."""
    s = request.sampling
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    add = llama_cpp.llama_sampler_chain_add
    if s.repeat_penalty != 1:
        window = llama_cpp.llama_sampler_init_penalties(n_vocab, PENALTY_WINDOW, s.repeat_penalty, 0.0, 0.0)
        add(chain, window)
        for token in request.ids[-PENALTY_WINDOW:]:
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


def _array(candidates: NDArray[Any]) -> Any:
    data = candidates.ctypes.data_as(llama_cpp.llama_token_data_p)
    return llama_cpp.llama_token_data_array(data, len(candidates), -1, False)


def logits(context: Any, n_vocab: int) -> NDArray[np.float32]:
    """Return what the model thinks of the next token, shape (n_vocab,); the next step overwrites it."""
    pointer = llama_cpp.llama_get_logits_ith(context, -1)
    return np.ctypeslib.as_array((ctypes.c_float * n_vocab).from_address(ctypes.addressof(pointer.contents)))


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the log-probabilities of one position's logits."""
    shifted: NDArray[np.float32] = logits.astype(np.float32) - np.max(logits)
    shifted -= np.float32(math.log(np.sum(np.exp(shifted), dtype=np.float64)))
    return shifted


def likeliest(log_probs: NDArray[np.float32], count: int) -> list[int]:
    """Return the `count` likeliest ids, the likeliest first."""
    if not count:
        return []
    found = np.argpartition(-log_probs, min(count, len(log_probs)) - 1)[:count]
    return [int(i) for i in found[np.argsort(-log_probs[found], kind="stable")]]
