"""The command that brings the app to a Space, against a hub on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from core.registry import load_registry
from tests.integration.upload_hub import HubServer, Repo

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Publish:
    """The command as it is typed, and the hub that it talks to."""

    hub: HubServer
    folder: Path

    def __call__(
        self, *arguments: str | Path, token: str = "hf_write", endpoint: str = ""
    ) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        home = {"HF_HOME": str(self.folder / "home"), "HF_ENDPOINT": endpoint or self.hub.url}
        command = [sys.executable, "publish/space.py", *map(str, arguments)]
        return subprocess.run(
            command,
            cwd=ROOT,
            env=clean | home | {"HF_TOKEN": token},
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture
def publish(tmp_path: Path) -> Iterator[Publish]:
    hub = HubServer()
    yield Publish(hub, tmp_path)
    hub.shutdown()
    hub.server_close()


@pytest.fixture
def model(tmp_path: Path, embedded_model: Path) -> Path:
    """A converted model as the conversion leaves it, with a name that the hub wouldn't take."""
    folder = tmp_path / "models"
    folder.mkdir()
    path = folder / "my quotes, Q4_1.gguf"
    shutil.copy(embedded_model, path)
    (folder / "my quotes, Q4_1.quality.json").write_text('{"verdict": "pass"}\n')
    (folder / "my quotes, Q4_1.md").write_text("---\nlibrary_name: gguf\n---\n\n# my quotes\n")
    return path


def failed(ran: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a command that failed; a bar of an upload may stand beside it."""
    assert ran.returncode == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    lines = [line for line in ran.stderr.splitlines() if line.strip() and "%|" not in line]
    (line,) = lines
    assert line.startswith("error: ")
    return line


def test_a_model_and_its_space_come_up_and_a_second_time_nothing_is_sent(
    publish: Publish, model: Path, tmp_path: Path
) -> None:
    publish.hub.drop_uploads = 1  # the connection is cut once: the same command goes on
    assert "the same command goes on" in failed(publish("me/chat", "--model", model))
    ran = publish("me/chat", "--model", model)
    assert ran.returncode == 0, ran.stderr
    there, space = publish.hub.repos["model/me/my-quotes-Q4_1-GGUF"], publish.hub.repos["space/me/chat"]
    assert there.files["my-quotes-Q4_1.gguf"] == model.read_bytes()
    assert there.files["quality.json"] == b'{"verdict": "pass"}\n'
    assert {"tune2chat", "gguf"} <= set(there.tags())
    assert "# my quotes" in there.files["README.md"].decode()

    (tmp_path / "models.json").write_bytes(space.files["models.json"])
    registry = load_registry(tmp_path / "models.json")
    assert registry.broken == {}
    name, entry = next(iter(registry.entries.items()))
    (source,) = entry.sources
    assert name == "my quotes, Q4_1"
    assert (source.repo_id, source.revision) == ("me/my-quotes-Q4_1-GGUF", there.commits[-1])
    preload = f"- me/my-quotes-Q4_1-GGUF my-quotes-Q4_1.gguf {there.commits[-1]}\n"
    readme = space.files["README.md"].decode()
    assert f"preload_from_hub:\n{preload}" in readme
    assert "title: chat\n" in readme
    assert space.sdk == "gradio"
    tracked = subprocess.run(
        ["git", "ls-files", "app.py", "requirements.txt", "LICENSE", "chat", "core"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert set(tracked) <= set(space.files)
    for each in tracked:
        assert space.files[each] == (ROOT / each).read_bytes()

    before = (len(there.commits), len(space.commits))
    publish.hub.requests.clear()
    space.files["chat/gone.py"] = b"of an older version"
    assert publish("me/chat", "--model", model).returncode == 0
    assert "chat/gone.py" not in space.files
    assert (len(there.commits), len(space.commits)) == (before[0], before[1] + 1)
    assert not [each for each in publish.hub.requests if each.startswith("PUT")]
    assert publish("me/chat", "--model", model).returncode == 0
    assert len(space.commits) == before[1] + 1


def test_a_dry_run_lists_every_file_and_asks_nobody(publish: Publish, model: Path) -> None:
    ran = publish("me/chat", "--model", model, "--dry-run", token="")
    assert ran.returncode == 0, ran.stderr
    assert f"{model.stat().st_size:,}  my-quotes-Q4_1.gguf" in ran.stdout
    assert f"{(ROOT / 'app.py').stat().st_size:,}  app.py" in ran.stdout
    for name in ("models.json", "README.md", "quality.json", "core/errors.py", "requirements.txt"):
        assert f"  {name}\n" in ran.stdout
    assert publish.hub.requests == []


def test_without_a_model_the_menu_of_the_project_is_brought(publish: Publish) -> None:
    publish.hub.free = True  # an account that has no processors, only ZeroGPU
    ran = publish("us/chat", "--private")
    assert ran.returncode == 0, ran.stderr
    space = publish.hub.repos["space/us/chat"]
    assert (space.private, space.hardware) == (True, "zero-a10g")
    assert list(publish.hub.repos) == ["space/us/chat"]
    menu = json.loads(space.files["models.json"])
    assert list(menu) == list(json.loads((ROOT / "models.json").read_text()))
    assert {key for entry in menu.values() for source in entry["sources"] for key in source} <= {
        *("repo_id", "filename", "revision", "sha256")
    }
    preloaded = (ROOT / "README.md").read_text().split("preload_from_hub:\n")[1].splitlines()[0]
    assert preloaded in space.files["README.md"].decode()


def test_what_the_hub_refuses_is_one_sentence(publish: Publish, model: Path) -> None:
    hub = publish.hub
    assert "no token for the hub; make one that may write" in failed(publish("me/chat", token=""))
    assert "'looking' may only read; make one that may write" in failed(publish("me/chat", token="hf_read"))
    assert "doesn't know this token" in failed(publish("me/chat", token="hf_old"))
    said = failed(publish("you/chat"))
    assert "signed in as 'me', who can't write to 'you'" in said
    assert "me/ or us/" in said
    hub.repos["space/me/docker"] = Repo("space", "docker")
    assert "'me/docker' is taken by a Space of kind 'docker'" in failed(publish("me/docker"))
    hub.repos["space/me/other"] = Repo("space", "gradio", files={"app.py": b"", "README.md": b""})
    assert "'me/other' is taken by another space; choose another name" in failed(publish("me/other"))
    hub.largest = 1000
    said = failed(publish("me/chat", "--model", model))
    assert "too large" in said
    assert "my-quotes-Q4_1.gguf" in said
    assert "can't reach http://127.0.0.1:9" in failed(publish("me/chat", endpoint="http://127.0.0.1:9"))
    assert "there is no file 'gone.gguf'" in failed(publish("me/chat", "--model", "gone.gguf"))


@pytest.mark.parametrize("name", ["chat", "a/b/c", "me/", "me/-chat", "me/a--b"])
def test_a_wrong_name_is_one_line_and_exit_2(publish: Publish, name: str) -> None:
    ran = publish(name)
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert publish.hub.requests == []
