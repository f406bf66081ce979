"""Puts a chat into the browser's storage as gr.BrowserState would, for what a small model won't say."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from tests.e2e.person import Person

# CryptoJS takes a pass phrase, and derives key and IV from it as OpenSSL's EVP_BytesToKey with MD5 does.
ENCRYPT = """async ([key, iv, salt, text]) => {
  const bytes = (encoded) => Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0));
  const aes = await crypto.subtle.importKey('raw', bytes(key), 'AES-CBC', false, ['encrypt']);
  const secret = await crypto.subtle.encrypt({ name: 'AES-CBC', iv: bytes(iv) }, aes, bytes(text));
  const all = [...bytes(salt), ...new Uint8Array(secret)];
  const letters = Array.from(all, (byte) => String.fromCharCode(byte));
  localStorage.setItem('tune2chat', iv + ':' + btoa(letters.join('')));
}"""


def put_chat(person: Person, messages: list[dict[str, str]], **more: Any) -> None:
    """Store a chat and reload the page."""
    phrase, salt = hashlib.sha256(b"tune2chat").hexdigest().encode(), b"tune2cha"
    derived = block = b""
    while len(derived) < 48:
        block = hashlib.md5(block + phrase + salt, usedforsecurity=False).digest()
        derived += block
    chat = json.dumps({"messages": messages, **more}).encode()
    parts = (derived[:32], derived[32:48], b"Salted__" + salt, chat)
    person.page.evaluate(ENCRYPT, [base64.b64encode(part).decode() for part in parts])
    person.reload()
