"""Where the page is served: an address to bind, one that opens in a browser, and no proxy between them."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

LOOPBACK = "127.0.0.1"


def bare(host: str | None) -> str:
    """Return `host` as sockets take it: this machine only where none is given, IPv6 without brackets."""
    host = (host or "").strip() or LOOPBACK
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def bracketed(host: str) -> str:
    """Return `host` as an address has it, and Gradio wants it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def opens_at(host: str, port: int) -> str:
    """Return the page's address for a browser on this machine; "every interface" is no address."""
    with suppress(ValueError):
        ip = ipaddress.ip_address(host)
        if ip.is_unspecified:
            host = LOOPBACK if ip.version == 4 else "::1"
    return f"http://{bracketed(host)}:{port}/"


def why_not(host: str, port: int) -> str:
    """Return why the page can't be served there, "taken" when another program has the port; empty if it can.

    Gradio looks at the port of 127.0.0.1 wherever it is told to serve (gradio/http_server.py).
    """
    try:
        for place in dict.fromkeys([host, LOOPBACK]):
            family, _, _, _, address = socket.getaddrinfo(place, port, type=socket.SOCK_STREAM)[0]
            socket.create_server((address[0], port), family=family).close()
    except OSError as error:
        return "taken" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    except UnicodeError:
        return "this is no host's name"
    return ""


@contextmanager
def without_proxies() -> Iterator[None]:
    """Hide the proxies of the environment, whose names may be in any case.

    Gradio asks its own server whether it is up, through httpx, which asks the proxy, or gives up on one that
    it doesn't know (SOCKS) before it looks at `no_proxy`.
    """
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    for name in proxies:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(proxies)
