"""Who owns what is written on the page: a user of `--auth`, or of Hugging Face; others are visitors."""

from __future__ import annotations

import os
import time
from typing import Any

from chat import space


def signs_in() -> bool:
    """Whether people can sign in with Hugging Face: elsewhere Gradio's button ends the start of the app."""
    return space.is_one() and bool(os.environ.get("OAUTH_CLIENT_ID"))


def visitor(secret: str) -> str:
    """Who a visitor is for the turns that run: ids of chats are in files that people pass on, this isn't."""
    return f"visitor:{secret[:64]}"


def is_visitor(owner: str) -> bool:
    return not owner or owner.startswith("visitor:")


def owner_of(request: Any) -> str:
    """Whose chats a request is about: of Gradio's events (`gr.Request`) or of a route of ours (Starlette's).

    Empty: a visitor, whose browser keeps them. Hugging Face's users are named by `sub`, as names change.
    """
    request = getattr(request, "request", None) or request
    if sub := _signed_in(request):
        return f"hf:{sub}"
    app = getattr(request, "app", None)
    if app is None or getattr(app, "auth", None) is None:
        return ""
    cookie = request.cookies.get(f"access-token-{app.cookie_id}") or request.cookies.get(
        f"access-token-unsecure-{app.cookie_id}"
    )
    name = app.tokens.get(cookie) if cookie else None
    return f"user:{name}" if name else ""


def _signed_in(request: Any) -> str:
    """The user of Hugging Face whose session is valid still."""
    if not signs_in() or "session" not in getattr(request, "scope", {}):
        return ""
    info = request.session.get("oauth_info") or {}
    if info.get("expires_at", 0) <= time.time():
        return ""
    return str((info.get("userinfo") or {}).get("sub") or "")
