"""The app with keys for its API, three models, and requests without a client's help."""

from __future__ import annotations

import http.client
import json
import signal
from pathlib import Path
from typing import Any

from tests.integration.running_app import App, copy_app

KEY, OTHER = "key-of-one", "key-of-another"
QUESTION: list[Any] = [{"role": "user", "content": "Write a long story about a dragon."}]
NAME = "SmolLM2-135M-Instruct"


def serve(folder: Path, engine: str) -> App:
    """Serve the small model, the same with a context of 256 tokens as Tiny, and one that isn't here."""
    models = json.loads((copy_app(folder) / "models.json").read_text())
    away = {
        "sources": [{"repo_id": "nobody/nothing", "filename": "x.gguf", "revision": "a" * 40}],
        "n_ctx": 512,
    }
    small = models[NAME] | {"n_ctx": 256, "system_prompt": "Be brief."}
    (folder / "models.json").write_text(json.dumps({NAME: models[NAME], "Elsewhere": away, "Tiny": small}))
    app = App(folder, "--engine", engine, TUNE2CHAT_API_KEYS=f"{KEY}, {OTHER}")
    app.wait_until_it_answers()
    return app


def end(app: App) -> None:
    """End the app; its log has no text of a message."""
    log = app.end(signal.SIGTERM)
    assert "Traceback" not in log
    assert "dragon" not in log


def raw(app: App, method: str, path: str, body: bytes | None = None, key: str = KEY) -> tuple[int, Any]:
    """Ask without a client's help; the answer has to be JSON, of OpenAI's shape where it is an error."""
    connection = http.client.HTTPConnection(app.url.removeprefix("http://"), timeout=60)
    headers = {"Authorization": f"Bearer {key}"} | ({"Content-Type": "application/json"} if body else {})
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    text, kind = response.read(), response.getheader("content-type") or ""
    connection.close()
    answer = json.loads(text) if "json" in kind else text.decode()
    if response.status >= 400:
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert "Traceback" not in answer["error"]["message"]
    return response.status, answer
