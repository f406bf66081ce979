"""Which messages a turn sends: blocks of old ones drop out, the newest never, and a start stays put."""

from __future__ import annotations

from itertools import pairwise
from typing import NoReturn

import pytest

from chat.context import BYTES_PER_TOKEN_LIMIT, KEEP_SHARE, MIN_REPLY, before_stop, plan
from core.errors import ChatError
from core.prompt import Messages

SYSTEM = {"role": "system", "content": "be kind"}
N_CTX = 400
REPLY = 100  # a quarter of the context: what `plan` keeps free at most


def encode(messages: Messages) -> list[int]:
    """One id a word, and two around each message as templates have them."""
    return [0] * sum(2 + len(m["content"].split()) for m in messages)


def never(messages: Messages) -> NoReturn:
    raise AssertionError("tokenised a text that can't fit")


def user(n_words: int) -> dict[str, str]:
    return {"role": "user", "content": "word " * n_words}


def chat(turns: int, n_words: int = 10) -> Messages:
    """`turns` questions with replies, then a question: 2 * (n_words + 2) ids a turn."""
    return [user(n_words), {"role": "assistant", "content": "word " * n_words}] * turns + [user(n_words)]


def test_a_chat_that_fits_is_sent_whole() -> None:
    messages = [SYSTEM, *chat(10)]
    planned = plan(messages, encode, N_CTX, 2048)
    assert (planned.messages, planned.left_out) == (messages, 0)
    assert planned.ids == encode(messages)


def test_a_full_context_drops_the_oldest_pairs_down_to_the_target() -> None:
    messages = [SYSTEM, *chat(14)]
    planned = plan(messages, encode, N_CTX, 2048)
    target = (N_CTX - REPLY) * KEEP_SHARE
    assert planned.left_out > 0
    assert planned.messages == [SYSTEM, *messages[1 + planned.left_out :]]
    assert planned.messages[1]["role"] == "user"
    assert len(planned.ids) <= target < len(planned.ids) + 2 * 12, "one pair more would still have fitted"


def test_a_chat_without_a_system_message_is_cut_alike() -> None:
    planned = plan(chat(14), encode, N_CTX, 2048)
    assert planned.left_out > 0
    assert planned.messages == chat(14)[planned.left_out :]


def test_the_start_of_a_long_chat_rarely_moves() -> None:
    left_out, starts = 0, []
    for turns in range(60):
        planned = plan([SYSTEM, *chat(turns)], encode, N_CTX, 2048, left_out)
        assert len(planned.ids) + REPLY <= N_CTX
        assert planned.left_out >= left_out, "what is out stays out"
        left_out = planned.left_out
        starts.append(left_out)
    moves = sum(a != b for a, b in pairwise(starts))
    # Each move frees 40 % of 300 ids, room for 5 turns of 24: a window that slid would move 48 times.
    assert 5 <= moves <= 12


def test_the_room_kept_for_a_reply_is_never_less_than_the_least_reply() -> None:
    messages = [SYSTEM, *chat(16)]  # 400 ids and no room
    assert len(encode(messages)) + MIN_REPLY > N_CTX
    planned = plan(messages, encode, N_CTX, max_tokens=1)
    assert planned.left_out > 0


def test_one_long_question_drops_all_before_it() -> None:
    planned = plan([SYSTEM, *chat(4), {"role": "assistant", "content": "ok"}, user(370)], encode, N_CTX, 2048)
    assert [m["role"] for m in planned.messages] == ["system", "user"]
    assert len(planned.ids) == 2 + 370 + 4


def test_a_question_larger_than_the_context_is_refused_with_both_numbers() -> None:
    with pytest.raises(ChatError, match=r"has 1,506 tokens .* context is 400 ") as caught:
        plan([SYSTEM, *chat(3)[:-1], user(1500)], encode, N_CTX, 2048)
    assert str(MIN_REPLY) in str(caught.value)


def test_a_question_of_too_many_bytes_is_refused_before_it_is_tokenised() -> None:
    text = "é" * (N_CTX * BYTES_PER_TOKEN_LIMIT // 2 + 1)
    with pytest.raises(ChatError, match=r"This message has 25,602 bytes; .* 400 tokens holds 25,600 "):
        plan([SYSTEM, {"role": "user", "content": text}], never, N_CTX, 2048)


def test_a_system_message_of_too_many_bytes_is_named_as_such() -> None:
    text = "x" * (N_CTX * BYTES_PER_TOKEN_LIMIT + 1)
    with pytest.raises(ChatError, match="The system message has 25,601 bytes"):
        plan([{"role": "system", "content": text}, user(1)], never, N_CTX, 2048)


def test_old_messages_of_too_many_bytes_are_left_out_before_they_are_tokenised() -> None:
    old = {"role": "user", "content": "x" * (N_CTX * BYTES_PER_TOKEN_LIMIT)}

    def careful(messages: Messages) -> list[int]:
        assert old not in messages
        return encode(messages)

    answer = {"role": "assistant", "content": "no"}
    planned = plan([SYSTEM, old, answer, user(5)], careful, N_CTX, 2048)
    assert (planned.left_out, planned.messages) == (2, [SYSTEM, user(5)])


@pytest.mark.parametrize("left_out", [3, 9, 1000])
def test_a_start_that_is_no_question_of_this_chat_is_forgotten(left_out: int) -> None:
    assert plan([SYSTEM, *chat(4)], encode, N_CTX, 2048, left_out).left_out == 0


def test_turns_come_back_when_there_is_room_for_them_again() -> None:
    """Somebody undid a long question, or chose a model with a larger context."""
    long = [SYSTEM, *chat(14)]
    left_out = plan(long, encode, N_CTX, 2048).left_out
    assert plan(long, encode, 4 * N_CTX, 2048, left_out).left_out == 0
    shorter = [SYSTEM, *chat(10)]
    assert plan(shorter, encode, N_CTX, 2048, 20).left_out == 0


def test_the_reply_that_is_continued_stays() -> None:
    messages = [SYSTEM, *chat(14)[:-1]]
    planned = plan(messages, encode, N_CTX, 2048)
    assert planned.left_out > 0
    assert planned.messages[-2:] == messages[-2:]


@pytest.mark.parametrize("stop", ["[end]", "\nUser:", "ababc"])
@pytest.mark.parametrize("reply", ["", "Hello ", "a [en", "[[e", "aba", "two\n\nlines\nUse"])
def test_a_stop_text_never_shows_and_nothing_else_is_lost(reply: str, stop: str) -> None:
    for end in range(len(reply + stop)):
        shown, stopped = before_stop((reply + stop)[:end], [stop])
        assert not stopped
        assert reply.startswith(shown)
        assert end - len(shown) < len(stop), "only what may be its beginning waits"
    assert before_stop(reply + stop + " more", [stop]) == (reply, True)
    assert before_stop(reply, ()) == (reply, False)


def test_the_first_of_several_stop_texts_counts_and_what_was_there_before_does_not() -> None:
    assert before_stop("one. two! three.", ["!", "."]) == ("one", True)
    assert before_stop("one. two! three.", ["!", "."], start=5) == ("one. two", True)
    assert before_stop("one. two", ["."], start=4) == ("one. two", False)
    assert before_stop("one [e", ["[end]", "e]"]) == ("one ", False)
    assert before_stop("one [end]", ["[end]"], start=6) == ("one ", True)  # it is cut inside a stop text
