"""Signing in with Hugging Face on a Space: whose chats are whose, by the cookie that Gradio signs."""

from __future__ import annotations

import hashlib
import importlib
import json
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest

from chat.cli import CHATS
from chat.page import OWN
from chat.page_html import note_html
from chat.space import KEEPS
from tests.integration.running_app import App, copy_app, free_port, wait_for
from tests.unit.kept_chats import chat_of

SECRET = "the secret of this Space"
SETTINGS = [4, 0, 0.95, 40, 0.05, 1.1, None, OWN, 1, ""]  # the drawer: a short greedy reply
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


class Person:
    """A browser with the cookie that Gradio sets at the end of a sign-in; without `sub`, a visitor's."""

    def __init__(
        self, app: App, signer: Any, sub: str = "", name: str = "someone", lasts: float = 3600
    ) -> None:
        self.url, self.cookie = app.url, ""
        if sub:
            user = {"sub": sub, "preferred_username": name, "name": name, "picture": "", "profile": ""}
            about = {"access_token": "x", "expires_at": time.time() + lasts, "userinfo": user}
            session = b64encode(json.dumps({"oauth_info": about}).encode())
            self.cookie = f"session={signer.sign(session).decode()}"

    def ask(self, path: str, body: Any = None, method: str = "") -> tuple[int, Any]:
        headers = {"Cookie": self.cookie, "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method or None)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def chats(self) -> list[dict[str, Any]]:
        status, told = self.ask("/chats")
        assert status == 200
        return list(told["chats"])

    def send(self, text: str) -> None:
        """Press Send as the page does, and wait until the reply is kept."""
        _, config = self.ask("/config")
        events = config["dependencies"]
        number = next(event["id"] for event in events if event["targets"][0][1] == "submit")
        shown = {part["props"].get("elem_id"): part["props"].get("value") for part in config["components"]}
        data = [text, False, None, False, "", shown["model"], "", *SETTINGS]
        tab = secrets.token_hex(8)
        asked = {"data": data, "fn_index": number, "session_hash": tab}
        status, told = self.ask("/gradio_api/queue/join", asked)
        assert status == 200, told
        stream = f"{self.url}/gradio_api/queue/data?session_hash={tab}"
        with urllib.request.urlopen(urllib.request.Request(stream, headers={"Cookie": self.cookie})) as told:
            ended = next(line for line in told if b"process_completed" in line)
        assert b'"success":true' in ended, ended
        wait_for(lambda: [chat for chat in self.chats() if chat["messages"] == 2])


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What signs the cookie. `signer.path` has the packages of Gradio's extra `oauth`, as a Space does."""
    target = tmp_path_factory.mktemp("site")
    extra = "; extra == 'oauth'"
    wanted = [each.removesuffix(extra) for each in requires("gradio") or [] if each.endswith(extra)]
    assert wanted
    install = ["install", "--quiet", "--retries", "0", "--target", str(target), *wanted]
    if subprocess.run([*PIP, *install], capture_output=True).returncode:
        pytest.skip(f"no package index that has {' and '.join(wanted)}; set PIP_INDEX_URL to one")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(target)
        made = importlib.import_module("itsdangerous").TimestampSigner(
            hashlib.sha256(f"{SECRET}-v4".encode()).hexdigest()
        )
        made.path = target
        yield made


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory, signer: Any, embedded_model: Path) -> Iterator[App]:
    folder = copy_app(tmp_path_factory.mktemp("space"))
    variables = {
        "SYSTEM": "spaces",
        "SPACE_ID": "someone/chat",
        "OAUTH_CLIENT_ID": "id",
        "OAUTH_CLIENT_SECRET": SECRET,
        "OAUTH_SCOPES": "openid profile",
        "OPENID_PROVIDER_URL": f"http://127.0.0.1:{free_port()}",  # asked by the button only
        "TUNE2CHAT_ENGINE": "in-process",
        "PYTHONPATH": str(signer.path),
    }
    options = ("--host", "127.0.0.1", "--model", str(embedded_model))
    app = App(folder, *options, **variables)
    app.wait_until_it_answers()
    yield app
    app.end(signal.SIGTERM)


def owners(app: App) -> set[str]:
    with closing(sqlite3.connect(app.log.parent / CHATS)) as file:
        return {user for (user,) in file.execute("SELECT user FROM chats")}


def test_each_person_has_chats_of_their_own_by_what_never_changes(space: App, signer: Any) -> None:
    anna, ben = (Person(space, signer, sub, "same name") for sub in ("1001", "1002"))
    _, config = anna.ask("/config")
    said = [part["props"].get("value") for part in config["components"]]
    assert "Sign in with Hugging Face" in said
    assert note_html(KEEPS) in said
    anna.send("My secret is blue.")
    assert {"hf:1001"} == owners(space)
    assert [chat["title"] for chat in anna.chats()] == ["My secret is blue."]
    assert ben.chats() == []
    path = f"/chats/{anna.chats()[0]['id']}"
    for method in ("GET", "DELETE"):
        assert ben.ask(path, {} if method == "DELETE" else None, method)[0] == 404
    assert ben.ask("/chats?search=blue")[1]["chats"] == []
    ben.send("And mine is red.")
    assert len(anna.chats()) == len(ben.chats()) == 1
    renamed = Person(space, signer, "1001", "another name")
    assert [chat["title"] for chat in renamed.chats()] == ["My secret is blue."]
    assert renamed.ask(path)[1]["messages"][0]["message"]["content"] == "My secret is blue."


def test_a_visitors_chats_come_along(space: App, signer: Any) -> None:
    visitor, signed_in = Person(space, signer), Person(space, signer, "1003")
    rows = chat_of("asked before", "answered before").rows()
    assert visitor.ask("/chats", {"chats": [rows]})[0] == 401
    assert visitor.ask("/chats")[1] == {"user": "", "chats": [], "bytes": 0}
    assert signed_in.ask("/chats", {"chats": [rows]}) == (200, {"taken": 1})
    assert signed_in.ask(f"/chats/{rows['chat']['id']}")[1] == rows
    assert visitor.ask(f"/chats/{rows['chat']['id']}")[0] == 401


def test_a_session_that_is_over_or_forged_is_a_visitors(space: App, signer: Any) -> None:
    owner = Person(space, signer, "1004")
    owner.ask("/chats", {"chats": [chat_of("kept").rows()]})
    assert len(owner.chats()) == 1
    over = Person(space, signer, "1004", lasts=-1)
    forged = Person(space, signer)
    forged.cookie = owner.cookie[:-2] + ("xx" if owner.cookie[-2:] != "xx" else "yy")
    for person in (over, forged):
        assert person.ask("/chats")[1] == {"user": "", "chats": [], "bytes": 0}
