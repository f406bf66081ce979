"""Who may use the API: keys, and without any, programs of the machine itself."""

from __future__ import annotations

import pytest

from chat.openai_errors import ApiError
from chat.openai_keys import KEYS, Keys, is_loopback


def answer(keys: Keys, authorization: str = "", client: str = "127.0.0.1", **headers: str) -> str:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    given |= {"authorization": authorization} if authorization else {}
    try:
        return keys.user(given, client)
    except ApiError as error:
        return f"{error.status} {error.code} {error.headers}: {error.message}"


def test_without_keys_programs_of_this_machine_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS, raising=False)
    here = Keys("127.0.0.1", private=False)
    assert answer(here) == "api 127.0.0.1"
    assert answer(here, "Bearer whatever", "::1") == "api ::1"  # the official client always sends one
    others = [
        answer(here, client="192.168.1.7"),
        answer(here, client=""),
        answer(here, x_forwarded_for="8.8.8.8"),  # a proxy on this machine
        answer(here, forwarded="for=8.8.8.8"),
        answer(Keys("127.0.0.1", private=True)),  # --auth
        answer(Keys("0.0.0.0", private=False)),  # a Space, or a network
        answer(Keys("::", private=False)),
        answer(Keys("chat.example", private=False)),
    ]
    assert all(f"set the environment variable {KEYS}" in told for told in others)
    assert all(told.startswith("401 invalid_api_key {'WWW-Authenticate': 'Bearer'}") for told in others)


def test_with_keys_nobody_is_served_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS, " first-key ,second-key,, ")
    keys = Keys("127.0.0.1", private=False)
    first, second = answer(keys, "Bearer first-key"), answer(keys, "bearer  second-key")
    assert first.startswith("key ")
    assert second.startswith("key ")
    assert first != second  # two users
    assert "first" not in first
    assert "Send an API key" in answer(keys)
    assert "Send an API key" in answer(keys, "Bearer ")
    assert "Send an API key" in answer(keys, "Basic Zmlyc3Q6a2V5")
    for wrong in ("first-ke", "first-key2", "FIRST-KEY", "first-key,second-key", ",", "", "é"):
        assert "key" in answer(keys, f"Bearer {wrong}")
        assert not answer(keys, f"Bearer {wrong}").startswith("key ")


def test_an_empty_variable_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS, " , ,")
    assert answer(Keys("localhost", private=False)) == "api 127.0.0.1"
    assert "This server's API needs a key" in answer(Keys("0.0.0.0", private=False), "Bearer ,")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("LocalHost.", True)),
        *(("::ffff:127.0.0.1", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("", False)),
        *(("localhost.evil.example", False), ("127.0.0.1.evil.example", False), ("::ffff:8.8.8.8", False)),
    ],
)
def test_what_is_this_machine_only(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
