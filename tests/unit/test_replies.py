"""The store of reply ids: by text, bounded, and never holding ids that nobody knows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from core import model
from core.model import Replies


def test_a_reply_is_found_by_its_text() -> None:
    store = Replies()
    store.remember("Hello.", [1, 2])
    assert store.get("Hello.") == [1, 2]
    assert store.get("hello.") is None


def test_the_same_text_said_anew_has_its_newest_ids() -> None:
    store = Replies()
    store.remember("Hello.", [1, 2])
    store.remember("Hello.", [3])
    assert (store.get("Hello."), len(store)) == ([3], 1)


@pytest.mark.parametrize(("text", "ids"), [("", []), ("", [1]), ("Smile 😀", [5, -1, 6])])
def test_nothing_is_kept_of_empty_replies_or_unknown_ids(text: str, ids: list[int]) -> None:
    store = Replies()
    store.remember(text, ids)
    assert not store


def test_the_oldest_replies_are_forgotten_when_there_are_too_many_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model, "MAX_TOKENS", 100)
    store = Replies()
    for number in range(50):
        store.remember(f"reply {number}", [number] * 10)
    assert list(store) == [f"reply {number}" for number in range(40, 50)]
    store.remember("reply 40", [0] * 10)
    store.remember("new", [0] * 10)
    assert "reply 40" in store, "said again just now, so not the oldest"
    assert "reply 41" not in store


def test_many_threads_may_remember_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "MAX_TOKENS", 1000)
    store = Replies()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.remember(f"reply {n % 300}", [n] * (n % 7 + 1)), range(5000)))
    assert sum(map(len, store.values())) == store._tokens <= 1000
