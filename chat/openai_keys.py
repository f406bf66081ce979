"""Who may use the API: whoever has a key of TUNE2CHAT_API_KEYS; without keys, programs on this machine."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Mapping
from contextlib import suppress

from chat.openai_errors import AUTHENTICATION, ApiError

KEYS = "TUNE2CHAT_API_KEYS"  # with commas between
# A proxy on this machine says with one of these for whom it asks: the client is not the one that it seems.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


class Keys:
    """Checks requests, when the app is served on `host`; `private` says that its page asks for a password."""

    def __init__(self, host: str, private: bool) -> None:
        given = (key.strip() for key in os.environ.get(KEYS, "").split(","))
        self._digests = [_digest(key) for key in given if key]
        self._open = not self._digests and not private and is_loopback(host)

    def user(self, headers: Mapping[str, str], client: str) -> str:
        """Name the caller, without telling the key. Raises ApiError (401)."""
        if not self._digests:
            if self._open and is_loopback(client) and not any(name in headers for name in _FORWARDED):
                return f"api {client}"
            raise _refused(
                "This server's API needs a key, and it has none: set the environment variable "
                f"{KEYS} (on a Space: a secret of that name), start the app again, and send the key as "
                "'Authorization: Bearer KEY'. Without keys, the API answers programs of its own machine only."
            )
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _refused("Send an API key as 'Authorization: Bearer KEY'.")
        digest = _digest(key.strip())
        # All of them are compared, each in constant time: how long it takes tells nothing.
        if not sum([hmac.compare_digest(digest, known) for known in self._digests]):
            raise _refused("This API key isn't one of this server's.")
        return f"key {digest.hex()[:16]}"


def is_loopback(host: str) -> bool:
    """Whether `host`, an address or a name, is this machine only."""
    with suppress(ValueError):
        ip = ipaddress.ip_address(host.partition("%")[0])
        mapped = getattr(ip, "ipv4_mapped", None)
        return (mapped or ip).is_loopback
    return host.lower().rstrip(".") == "localhost"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _refused(message: str) -> ApiError:
    return ApiError(401, message, AUTHENTICATION, None, "invalid_api_key", {"WWW-Authenticate": "Bearer"})
