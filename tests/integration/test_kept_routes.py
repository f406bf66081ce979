"""The routes of kept chats behind the guard: who is answered what, and what hostile requests get."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.testclient import TestClient

from chat.guard import LARGEST, Guard
from chat.kept import Kept
from chat.kept_routes import KeptRoutes
from tests.unit.kept_chats import chat_of, ids, put

JSON = {"content-type": "application/json"}
SECRET = "the secret of ada"


def user_of(request: Request) -> str:
    """Who asks, as a cookie says; Gradio's is a random name that the app looks up."""
    return request.cookies.get("user", "")


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path / "chats.sqlite", limit=2**20)
    yield made
    made.close()


def client(kept: Kept | None, user: str = "ada") -> TestClient:
    guard = Middleware(Guard, frozenset({"localhost"}))
    app = Starlette(routes=KeptRoutes(kept, user_of).routes(), middleware=[guard])
    cookies = {"user": user} if user else None
    return TestClient(app, "http://localhost", cookies=cookies, raise_server_exceptions=False)


def test_a_chat_is_listed_found_renamed_pinned_deleted_and_had_back(kept: Kept) -> None:
    tree, page = put(kept, "ada", chat_of("a dragon", "b")), client(kept)
    path = f"/chats/{tree.chat.id}"
    listed = page.get("/chats")
    assert listed.headers["cache-control"] == "no-store"
    assert listed.headers["content-type"] == "application/json"
    assert listed.json()["user"] == "ada"
    assert listed.json()["bytes"] == kept.bytes_of("ada")
    assert [chat["messages"] for chat in listed.json()["chats"]] == [2]
    assert page.get("/chats", params={"search": "DRAGON"}).json()["chats"][0]["found"] == "a dragon"
    assert page.get("/chats?search=unicorn").json()["chats"] == []
    assert page.get("/chats?search=%20").json()["chats"] == listed.json()["chats"]
    assert page.get(path).json() == tree.rows()

    assert page.patch(path, json={"title": "new", "pinned": True}).status_code == 200
    assert page.patch(path, json={}).status_code == 200
    [chat] = page.get("/chats").json()["chats"]
    assert (chat["title"], chat["pinned"]) == ("new", True)

    assert page.delete(path).status_code == 200
    assert page.get("/chats").json()["chats"] == []
    assert page.get(path).status_code == page.delete(path).status_code == 404
    assert page.post(f"{path}/restore").status_code == 200
    assert page.get(path).json()["chat"]["title"] == "new"
    assert page.delete("/chats").status_code == 200
    assert page.post(f"{path}/restore").status_code == 404
    assert page.get("/chats").json() == {"user": "ada", "chats": [], "bytes": 0}


def test_a_visitors_chats_are_taken_in_all_of_them_or_none(kept: Kept) -> None:
    trees, page = [chat_of("a", "b"), chat_of("c")], client(kept)
    body = {"chats": [tree.rows() for tree in trees]}
    assert page.post("/chats", json=body).json() == {"taken": 2}
    assert page.post("/chats", json=body).json() == {"taken": 2}
    assert len(ids(kept)) == 2
    too_much = {"chats": [chat_of("small").rows(), chat_of("x" * 2**20).rows()]}
    refused = page.post("/chats", json=too_much)
    assert refused.status_code == 507
    assert "Export old ones" in refused.json()["detail"]
    assert len(ids(kept)) == 2


@pytest.mark.parametrize("store", [True, False])
def test_a_visitor_has_nothing_here_and_is_told_to_sign_in(store: bool, kept: Kept) -> None:
    path, page = f"/chats/{put(kept, 'ada', chat_of('a')).chat.id}", client(kept if store else None, "")
    for search in ("", "?search=a"):
        assert page.get(f"/chats{search}").json() == {"user": "", "chats": [], "bytes": 0}
    for method, where in (
        *(("GET", path), ("PATCH", path), ("DELETE", path), ("POST", f"{path}/restore")),
        ("POST", "/chats"),
    ):
        answer = page.request(method, where, content=b"{}", headers=JSON)
        assert answer.status_code == 401
        assert "Sign in" in answer.json()["detail"]
    cleared = page.request("DELETE", "/chats", content=b"{}", headers=JSON)
    assert (cleared.status_code, cleared.headers["Clear-Site-Data"]) == (
        200,
        '"storage"',
    )
    assert len(ids(kept)) == 1


def test_another_user_finds_nothing_and_changes_nothing(kept: Kept) -> None:
    tree, page = put(kept, "ada", chat_of(SECRET, title="hers")), client(kept, "eve")
    path = f"/chats/{tree.chat.id}"
    for method, where in (("GET", path), ("PATCH", path), ("DELETE", path), ("POST", f"{path}/restore")):
        answer = page.request(method, where, content=b'{"title": "x"}', headers=JSON)
        assert answer.status_code == 404
        assert SECRET not in answer.text
    assert page.get(f"/chats?search={SECRET}").json()["chats"] == []
    page.post("/chats", json={"chats": [tree.rows() | {"messages": []}]})
    page.delete("/chats")
    assert kept.read("ada", tree.chat.id).rows() == tree.rows()


def test_foreign_pages_and_other_kinds_of_bodies_are_refused(kept: Kept) -> None:
    tree, page = put(kept, "ada", chat_of("a")), client(kept)
    evil = {"origin": "https://evil.example"}
    path = f"/chats/{tree.chat.id}"
    for method, where in (("DELETE", path), ("DELETE", "/chats"), ("POST", f"{path}/restore"), ("GET", path)):
        assert page.request(method, where, headers=evil).status_code == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = page.post("/chats", content=b'{"chats": []}', headers={"content-type": kind})
        assert answer.status_code == 415
    assert ids(kept) == [tree.chat.id]


BAD: list[tuple[str, str, Any, int]] = [
    ("POST", "/chats", b"", 400),
    ("POST", "/chats", b"{", 400),
    ("POST", "/chats", b"\xff\xfe", 400),
    ("POST", "/chats", b"[" * 100_000, 400),
    ("POST", "/chats", b'{"chats":' + b'{"a":' * 100_000, 400),
    ("POST", "/chats", [], 400),
    ("POST", "/chats", {}, 400),
    ("POST", "/chats", {"chats": {}}, 400),
    ("POST", "/chats", {"chats": [3]}, 400),
    ("POST", "/chats", {"chats": [{"chat": {}, "messages": [], "user": "bob"}]}, 400),
    ("POST", "/chats", {"chats": [{"chat": {}, "messages": []}], "user": "bob"}, 400),
    ("POST", "/chats", {"chats": [{"chat": {"id": "../../x"}, "messages": []}]}, 400),
    ("POST", "/chats", b'{"chats": [{"chat": {"made": NaN}, "messages": []}]}', 400),
    ("POST", "/chats", b'{"chats": [{"chat": {"made": 1e999}, "messages": []}]}', 400),
    ("POST", "/chats", b'{"chats": [{"chat": {"sampling": {"temperature": NaN}}, "messages": []}]}', 400),
    ("POST", "/chats", b"1" * 5_000, 400),
    ("POST", "/chats", {"chats": [{"chat": {}, "messages": []}] * 5_001}, 400),
    ("POST", "/chats", b'{"chats": "' + b"x" * LARGEST + b'"}', 413),
    ("PATCH", "/chats/ID", {"title": 3}, 400),
    ("PATCH", "/chats/ID", {"title": "x" * 201}, 400),
    ("PATCH", "/chats/ID", {"title": " \n"}, 400),
    ("PATCH", "/chats/ID", {"pinned": "yes"}, 400),
    ("PATCH", "/chats/ID", {"id": "x"}, 400),
    ("PATCH", "/chats/ID", b"null", 400),
    ("PATCH", "/chats/" + "x" * 65, {}, 404),
    ("GET", "/chats/%ED%A0%80", None, 404),
    ("GET", "/chats/..%2F..%2Fetc", None, 404),
    ("DELETE", "/chats/' OR 1=1 --", None, 404),
    ("GET", "/chats?search=" + "%C3%A9" * 5_000, None, 200),
    ("GET", "/chats?search=(%5B%ED%A0%80*", None, 200),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), BAD)
def test_bad_requests_get_a_sentence(method: str, path: str, body: Any, status: int, kept: Kept) -> None:
    tree = put(kept, "ada", chat_of("a"))
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    where = path.replace("ID", tree.chat.id)
    answer = client(kept).request(method, where, content=content, headers=JSON if content else None)
    assert answer.status_code == status
    if status != 200 and "%2F" not in path:
        assert 10 < len(answer.json()["detail"]) < 300
    assert kept.read("ada", tree.chat.id).rows() == tree.rows()


def test_halves_of_characters_are_kept_as_what_can_be_sent(kept: Kept) -> None:
    rows = chat_of("a").rows()
    rows["chat"]["title"] = rows["messages"][0]["message"]["content"] = "\ud800 half"
    page = client(kept)
    assert page.post("/chats", content=json.dumps({"chats": [rows]}), headers=JSON).json() == {"taken": 1}
    assert page.patch(
        f"/chats/{rows['chat']['id']}", content=b'{"title": "\\ud800"}', headers=JSON
    ).is_success
    assert page.get("/chats?search=half").json()["chats"][0]["title"] == "\ufffd"


def test_a_bug_is_told_in_the_log_without_any_text(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: Request) -> str:
        raise ValueError(SECRET)

    app = Starlette(routes=KeptRoutes(kept, broken).routes())
    with caplog.at_level(logging.DEBUG):
        answer = TestClient(app).get("/chats")
    assert answer.status_code == 500
    assert "log of the app" in answer.json()["detail"]
    assert "ValueError at" in caplog.text
    assert SECRET not in caplog.text + answer.text


def test_what_is_read_and_refused_leaves_no_text_in_the_log(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    page = client(kept)
    with caplog.at_level(logging.DEBUG, logger="chat"):
        page.post("/chats", json={"chats": [chat_of(SECRET).rows()]})
        page.get(f"/chats?search={SECRET}")
        page.post("/chats", json={"chats": [{"chat": {SECRET: 1}, "messages": [SECRET]}]})
    assert SECRET not in caplog.text
