"""Downloads a GGUF from the hub into huggingface_hub's own cache, with progress, and resumes what was cut.

huggingface_hub (1.33, 2.4) deletes what it has when a download stops. So the bytes are fetched here, into the
cache's documented place for them (blobs/<etag>); huggingface_hub finds them there and does the rest. Plain
HTTP, also for repositories with Xet storage. Nothing that is downloaded is unpacked or executed.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.entry import Source
from core.errors import ChatError
from core.files import file_hash, write_whole
from core.hub import TIMEOUT_S, hub_error
from core.machine import human_size

CHUNK_BYTES = 2**20  # how often progress is told and `cancelled` asked
ATTEMPTS = 5  # in a row without a single new byte
SPARE_BYTES = 100_000_000  # of disk that stay free

OnBytes = Callable[[int, int | None], None]


class _Cancelled(Exception):
    pass


def download(source: Source, on_progress: OnBytes, cancelled: Callable[[], bool]) -> Path:
    """Fetch the hub file of `source` unless it is in the cache, and return its path.

    Of a split model, it fetches all parts and returns the path of the first. `on_progress(done, total)` gets
    bytes, of all parts. Raises ChatError; what was fetched so far stays for the next try.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2

    # Else making a request header asks the hub for a list of programs to report. Read at each request.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    where = f"{source.repo_id}/{source.filename}"

    def step(done: int, total: int | None) -> None:
        on_progress(done, total)
        if cancelled():
            raise _Cancelled

    try:
        return _download(source, step)
    except (HTTPError, OSError) as error:
        assert source.repo_id
        missing = f"no repository {source.repo_id!r}, or a private one; check models.json"
        if said := hub_error(error, source.repo_id, source.revision, missing):
            raise ChatError(f"can't download {where}: {said}") from None
        reason = getattr(error, "strerror", None) or error
        raise ChatError(f"can't store {where}: {reason}; start it again to go on") from None


@dataclass(frozen=True)
class _Part:
    """One file of the model as the hub has it now."""

    name: str
    sha256: str | None  # what models.json wants
    etag: str
    commit: str
    size: int | None
    blob: Path


def _download(source: Source, step: OnBytes) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.file_download import repo_folder_name

    assert source.repo_id
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=source.repo_id, repo_type="model"))
    parts: list[_Part] = []
    for name, sha256 in source.files():
        # The others are those of the first one's commit: `main` may move while a long download is under way.
        revision = parts[0].commit if parts else source.revision
        parts.append(_asked(source, name, sha256, revision, folder / "blobs"))
    _check_space(parts)
    sizes = [part.size for part in parts]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    before = 0
    for part in parts:
        _bring(source, part, _shifted(step, before, total), before)
        before += part.size or 0
    if len(parts) == 1:
        return Path(hf_hub_download(source.repo_id, parts[0].name, revision=source.revision))
    paths = [Path(hf_hub_download(source.repo_id, part.name, revision=part.commit)) for part in parts]
    if source.revision != parts[0].commit:
        # What the library writes where it is asked for a branch: the cache's name for this commit.
        reference = folder / "refs" / source.revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        write_whole(reference, parts[0].commit)
    return paths[0]


def _shifted(step: OnBytes, before: int, total: int | None) -> OnBytes:
    return lambda done, _: step(before + done, total)


def _bring(source: Source, part: _Part, step: OnBytes, before: int) -> None:
    """Fetch one file into the cache unless it is there; `before` bytes of others are."""
    from filelock import FileLock, Timeout
    from huggingface_hub import hf_hub_url

    assert source.repo_id
    folder = part.blob.parents[1]
    lock = folder.parent / ".locks" / folder.name / f"{part.etag}.lock"  # the one that the library takes
    for parent in (part.blob.parent, lock.parent):
        parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            if not part.blob.exists():
                pinned = hf_hub_url(source.repo_id, part.name, revision=part.commit)
                _fetch(pinned, part.size, part.blob, step)
                _verify(source, part)
    except Timeout:
        raise ChatError(f"{part.name} is being downloaded already; wait until that is done") from None
    except _Cancelled:
        done = human_size(before + _incomplete(part.blob).stat().st_size)
        raise ChatError(
            f"the download of {source.filename} was stopped at {done}; starting it again goes on"
        ) from None


def _asked(source: Source, name: str, sha256: str | None, revision: str, blobs: Path) -> _Part:
    """Ask the hub about one file; its etag is its name in the cache, and its sha256 if it is a large one."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    assert source.repo_id
    try:
        meta = get_hf_file_metadata(hf_hub_url(source.repo_id, name, revision=revision), timeout=TIMEOUT_S)
    except errors.RemoteEntryNotFoundError:
        raise ChatError(f"{source.repo_id} has no file {name!r}; check models.json") from None
    if not meta.etag or not meta.commit_hash or not re.fullmatch(r"[\w-]+", meta.etag):
        raise ChatError("that server doesn't answer like the hub; check HF_ENDPOINT")
    part = _Part(name, sha256, meta.etag, meta.commit_hash, meta.size, blobs / meta.etag)
    if sha256 and _is_sha256(meta.etag) and meta.etag != sha256:
        raise _wrong_hash(source, part, meta.etag)
    return part


def _fetch(url: str, size: int | None, blob: Path, step: OnBytes) -> None:
    """Fill the partial file beside `blob`, going on where it ends, over dropped connections too."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    partial = _incomplete(blob)
    partial.touch()
    if size is not None and partial.stat().st_size > size:
        partial.write_bytes(b"")
    attempts = 0
    while size is None or partial.stat().st_size < size:
        before = partial.stat().st_size
        try:
            _stream(url, size, partial, step)
            if size is None:
                return
        except HfHubHTTPError:
            raise
        except HTTPError:
            attempts = 1 if partial.stat().st_size > before else attempts + 1
            if attempts >= ATTEMPTS:
                raise
            time.sleep(1)


def _stream(url: str, size: int | None, partial: Path, step: OnBytes) -> None:
    from huggingface_hub import get_session, get_token, hf_raise_for_status

    done = partial.stat().st_size
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={done}-"}
    if token := get_token():
        headers["Authorization"] = f"Bearer {token}"  # the client drops it on the way to another host
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:  # the server doesn't resume
            done = 0
        with partial.open("r+b") as file:
            file.truncate(done)
            file.seek(done)
            step(done, size)
            for chunk in response.iter_bytes(CHUNK_BYTES):
                done += file.write(chunk)
                step(done, size)


def _check_space(parts: list[_Part]) -> None:
    """Refuse before anything is downloaded what the disk has no room for."""
    missing = 0
    for part in parts:
        if not part.blob.exists():
            partial = _incomplete(part.blob)
            missing += (part.size or 0) - (partial.stat().st_size if partial.exists() else 0)
    folder = next(parent for parent in parts[0].blob.parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if missing > 0 and missing + SPARE_BYTES > free:
        raise ChatError(
            f"the download needs {human_size(missing + SPARE_BYTES)} of disk and {human_size(free)} are free "
            f"in {str(parts[0].blob.parents[2])!r}; make room, or set HF_HOME to a folder on a larger disk"
        )


def _verify(source: Source, part: _Part) -> None:
    """Check the finished file against the hash in models.json, else the hub's; then give it its name."""
    partial = _incomplete(part.blob)
    expected = part.sha256 or (part.etag if _is_sha256(part.etag) else None)
    if expected:
        found = file_hash(partial)
        if found != expected:
            partial.unlink()
            raise _wrong_hash(source, part, found)
    partial.replace(part.blob)


def _wrong_hash(source: Source, part: _Part, found: str) -> ChatError:
    return ChatError(
        f"{source.repo_id}/{part.name} is not the expected file (sha256 {found[:12]}..., expected "
        f"{(part.sha256 or 'the hub')[:12]}...); it was not kept, try again or check models.json"
    )


def _incomplete(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")  # the ending that huggingface_hub uses too


def _is_sha256(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None
