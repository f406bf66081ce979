"""Where the page is served: names and numbers, with and without brackets, and a proxy that isn't asked."""

from __future__ import annotations

import os
import socket

import pytest

from chat.address import bare, bracketed, opens_at, why_not, without_proxies


@pytest.mark.parametrize(
    ("given", "bound", "address"),
    [
        (None, "127.0.0.1", "http://127.0.0.1:80/"),
        ("", "127.0.0.1", "http://127.0.0.1:80/"),
        ("0.0.0.0", "0.0.0.0", "http://127.0.0.1:80/"),
        ("::", "::", "http://[::1]:80/"),
        ("[::]", "::", "http://[::1]:80/"),
        ("[::1]", "::1", "http://[::1]:80/"),
        ("::1", "::1", "http://[::1]:80/"),
        ("localhost", "localhost", "http://localhost:80/"),
    ],
)
def test_every_way_to_write_a_host_is_bound_and_opens(given: str | None, bound: str, address: str) -> None:
    assert bare(given) == bound
    assert bracketed(bound) == (f"[{bound}]" if ":" in bound else bound)
    assert opens_at(bound, 80) == address


def test_a_place_where_the_page_can_not_be_served_is_known_before() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert why_not("127.0.0.1", port) == why_not("localhost", port) == "taken"
    assert why_not("127.0.0.1", port) == ""
    assert why_not("192.0.2.1", port) not in ("", "taken")
    assert why_not("no-such-host.invalid", port) not in ("", "taken")
    assert why_not("a" * 70 + ".b", port) == "this is no host's name"


def test_no_proxy_is_seen_while_the_page_starts_and_all_are_there_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "ALL_PROXY", "Https_Proxy"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    before = dict(os.environ)
    with without_proxies():
        assert not [name for name in os.environ if name.lower().endswith("_proxy")]
    assert dict(os.environ) == before
