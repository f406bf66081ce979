"""A hub on loopback: what huggingface_hub asks of one to make a repository, upload files and commit."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKENS = {
    "hf_write": {"role": "write", "displayName": "laptop"},
    "hf_read": {"role": "read", "displayName": "looking"},
}


@dataclass
class Repo:
    """One repository: its contents by name, how large files are stored, and its commits."""

    kind: str
    sdk: str | None = None
    private: bool = False
    hardware: str | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    large: dict[str, str] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    def tags(self) -> list[str]:
        matter = self.files.get("README.md", b"").decode().partition("\n---\n")[0]
        return re.findall(r"^- ([\w-]+)$", matter, re.MULTILINE)


class HubServer(ThreadingHTTPServer):
    """`repos` has keys `space/USER/NAME`. A file may have `largest` bytes; a `free` account gets ZeroGPU."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.largest, self.free, self.drop_uploads = 10**9, False, 0
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer("GET")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{method} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if path.startswith("/store/"):
            return self.store(path.rsplit("/", 1)[1], body)
        if token not in TOKENS:
            return self.send(401, {"error": "Invalid user token."})
        for pattern, act in ROUTES.items():
            if found := re.fullmatch(pattern, f"{method} {path}"):
                return act(
                    self, json.loads(body) if "commit" not in path and body else body, **found.groupdict()
                )
        return self.send(404, {"error": f"no {path}"})

    def send(self, status: int, content: Any, **headers: str) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def whoami(self, _: Any) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        access = {"type": "access_token", "accessToken": TOKENS[token]}
        self.send(200, {"type": "user", "name": "me", "orgs": [{"name": "us"}], "auth": access})

    def info(self, _: Any, kind: str, name: str) -> None:
        repo = self.server.repos.get(f"{kind}/{name}")
        if repo is None:
            return self.send(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        siblings = [{"rfilename": each} for each in repo.files]
        sha = repo.commits[-1] if repo.commits else None
        more = {"sha": sha, "siblings": siblings, "tags": repo.tags(), "sdk": repo.sdk}
        return self.send(200, {"id": name, "_id": "1", "private": repo.private, **more})

    def create(self, body: Any) -> None:
        kind = body.get("type", "model")
        key = f"{kind}/{body['organization']}/{body['name']}"
        if self.server.free and kind == "space" and body.get("hardware") != "zero-a10g":
            return self.send(402, {"error": "Subscribe to PRO to run this Space on cpu-basic."})
        if key in self.server.repos:
            return self.send(409, {"error": "You already created this repo"})
        private = body.get("visibility") == "private"
        self.server.repos[key] = Repo(kind, body.get("sdk"), private, body.get("hardware"))
        self.server.repos[key].files[".gitattributes"] = b""
        return self.send(
            200, {"url": f"{self.server.url}/{key.replace('space/', 'spaces/').removeprefix('model/')}"}
        )

    def validate(self, body: Any) -> None:
        good = body["content"].startswith("---\n")
        self.send(200 if good else 400, {} if good else {"errors": [{"message": "no metadata"}]})

    def preupload(self, body: Any, kind: str, name: str) -> None:
        repo = self.server.repos[f"{kind}/{name}"]
        answers = []
        for file in body["files"]:
            path = file["path"]
            content = repo.files.get(path)
            large = path.endswith(".gguf")
            oid = None if content is None else repo.large.get(path) or git_oid(content)
            mode = "lfs" if large else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send(200, {"files": answers})

    def batch(self, body: Any, kind: str = "", name: str = "") -> None:
        answers = []
        for each in body["objects"]:
            answer: dict[str, Any] = {"oid": each["oid"], "size": each["size"]}
            if each["size"] > self.server.largest:
                said = f"Your file is too large: the limit is {self.server.largest} bytes"
                answer["error"] = {"code": 413, "message": said}
            elif each["oid"] not in self.server.stored:
                answer["actions"] = {"upload": {"href": f"{self.server.url}/store/{each['oid']}"}}
            answers.append(answer)
        self.send(200, {"transfer": "basic", "objects": answers})

    def store(self, oid: str, body: bytes) -> None:
        if self.server.drop_uploads:
            self.server.drop_uploads -= 1
            return self.send(400, {"error": "the connection was cut"})
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.stored[oid] = body
        return self.send(200, {})

    def commit(self, body: bytes, kind: str, name: str) -> None:
        repo = self.server.repos[f"{kind}/{name}"]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo.files[value["path"]] = self.server.stored[value["oid"]]
                repo.large[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                del repo.files[value["path"]]
        oid = hashlib.sha1(body).hexdigest()
        repo.commits.append(oid)
        self.send(
            200, {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid, "success": True}
        )

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


def git_oid(content: bytes) -> str:
    """The name that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


KIND, NAME = r"(?P<kind>space|model)s", r"(?P<name>[\w.-]+/[\w.-]+)"
ROUTES: dict[str, Any] = {
    r"GET /api/whoami-v2": Handler.whoami,
    rf"GET /api/{KIND}/{NAME}(/revision/main)?": Handler.info,
    r"POST /api/repos/create": Handler.create,
    r"POST /api/validate-yaml": Handler.validate,
    rf"POST /api/{KIND}/{NAME}/preupload/main": Handler.preupload,
    rf"POST /{NAME}\.git/info/lfs/objects/batch": Handler.batch,
    rf"POST /api/{KIND}/{NAME}/commit/main": Handler.commit,
}
