"""Log-probabilities as other engines send them."""

from __future__ import annotations

from chat.remote_reply import _logprobs


def test_a_part_of_a_character_has_no_log_probability() -> None:
    told = {"tokens": ["", "🌟"], "token_logprobs": [None, -0.5], "top_logprobs": [None, {"🌟": -0.5}]}
    assert [(t.id, t.logprob, len(t.top)) for t in _logprobs(told, [7, 8])] == [(7, None, 0), (8, -0.5, 1)]
    content = [{"token": "", "logprob": None, "bytes": [], "top_logprobs": []}]
    assert [t.logprob for t in _logprobs({"content": content}, [])] == [None]
