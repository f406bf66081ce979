"""An HTTP server that answers as a test says, for engines elsewhere that aren't on this machine."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Answer = tuple[int, str, Iterable[bytes]]  # status, content type, and what is sent piece by piece
EVENTS, JSON = "text/event-stream", "application/json"


class Stranger:
    """Answers each path by a function of the request's body; other paths by 404."""

    def __init__(
        self, port: int = 0, certificate: Path | None = None, **paths: Callable[[Any], Answer]
    ) -> None:
        self.asked: list[tuple[str, Any, dict[str, str]]] = []  # path, body, headers
        self.hung_up = threading.Event()
        self.paths = paths
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size)) if size else None
                outer.asked.append((self.path, body, dict(self.headers)))
                answer = paths.get(self.path.strip("/").replace("/", "_"))
                status, kind, pieces = answer(body) if answer else (404, JSON, [b"{}"])
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.end_headers()
                try:
                    for piece in pieces:
                        self.wfile.write(piece)
                except OSError:
                    outer.hung_up.set()

            do_POST = do_GET

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self.url = self.url.replace("http://", "https://")
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def said(value: Any, status: int = 200) -> Callable[[Any], Answer]:
    """Always the same JSON."""
    return lambda body: (status, JSON, [json.dumps(value).encode()])


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def models(*names: str, owned_by: str = "somebody", **more: Any) -> Callable[[Any], Answer]:
    """The answer of /v1/models."""
    return said({"object": "list", "data": [{"id": n, "owned_by": owned_by} | more for n in names]})
