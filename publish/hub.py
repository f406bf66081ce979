"""The hub as publishing sees it: who we are, what is there, commits; each error is one sentence."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.errors import ChatError
from core.hub import hub_error
from core.machine import human_size
from publish.contents import MARK, PACKAGES, Repository

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TIMEOUT_S = 20.0
HUB = "https://huggingface.co"
NEW_TOKEN = "make one that may write at https://huggingface.co/settings/tokens, then: hf auth login"
MADE_BY_THE_HUB = {".gitattributes", "README.md"}  # in a repository that nobody wrote to yet


@dataclass(frozen=True)
class Hub:
    """The API and who its token belongs to."""

    api: HfApi
    user: str
    owners: tuple[str, ...]  # where this user may write: the user and the organisations

    def check_owner(self, owner: str) -> None:
        """Refuse a name of others before anything is uploaded. Raises ChatError."""
        if owner not in self.owners:
            raise ChatError(
                f"you are signed in as {self.user!r}, who can't write to {owner!r}; choose a name that "
                f"begins with {' or '.join(f'{name}/' for name in self.owners)}"
            )

    def look(self, repository: Repository) -> list[str] | None:
        """The files that are there, if it is ours; None if nothing is there. Raises ChatError."""
        from huggingface_hub import errors

        repo_id, kind = repository.repo_id, repository.kind
        with spoken(f"look at {repo_id}"):
            try:
                found: Any = self.api.repo_info(repo_id, repo_type=kind, timeout=TIMEOUT_S)
            except errors.RepositoryNotFoundError:
                return None
        names = [each.rfilename for each in found.siblings or []]
        sdk = getattr(found, "sdk", None)
        if kind == "space" and sdk != "gradio":
            raise ChatError(f"{repo_id!r} is taken by a Space of kind {sdk!r}; choose another name")
        if MARK not in (found.tags or []) and not set(names) <= MADE_BY_THE_HUB:
            raise ChatError(f"{repo_id!r} is taken by another {kind}; choose another name")
        return names

    def create(self, repository: Repository, private: bool) -> None:
        """Make the repository; a Space on a processor, or on ZeroGPU where the account has no other."""
        from huggingface_hub import SpaceHardware, errors

        make: dict[str, Any] = {"repo_type": repository.kind, "private": private, "exist_ok": True}
        with spoken(f"create {repository.repo_id}"):
            if repository.kind != "space":
                self.api.create_repo(repository.repo_id, **make)
                return
            try:
                self.api.create_repo(repository.repo_id, space_sdk="gradio", **make)
            except errors.HfHubHTTPError as error:
                if error.response.status_code != 402:
                    raise
                zero = SpaceHardware.ZERO_A10G
                self.api.create_repo(repository.repo_id, space_sdk="gradio", space_hardware=zero, **make)

    def commit(self, repository: Repository, there: list[str], message: str) -> str:
        """Upload what differs in one commit and return the commit; nothing is done where nothing differs."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        gone = [
            name
            for name in there
            if name.split("/")[0] in PACKAGES and repository.kind == "space" and name not in repository.files
        ]
        operations: list[Any] = [
            *(CommitOperationAdd(name, content) for name, content in repository.files.items()),
            *(CommitOperationDelete(name) for name in gone),
        ]
        with spoken(f"upload to {repository.repo_id}", repository):
            done = self.api.create_commit(
                repository.repo_id, operations, commit_message=message, repo_type=repository.kind
            )
        return str(done.oid)


def sign_in() -> Hub:
    """Find the token and who it belongs to. Raises ChatError for a missing, wrong or read-only one."""
    from huggingface_hub import HfApi, constants, errors, get_token, utils

    if constants.ENDPOINT != HUB and "HF_HUB_DISABLE_XET" not in os.environ:
        constants.HF_HUB_DISABLE_XET = True  # the hub's own storage, which another HF_ENDPOINT may not have
    utils.logging.set_verbosity(logging.ERROR)  # "no files have been modified": said here, in the last line
    token = get_token()
    if not token:
        raise ChatError(f"no token for the hub; {NEW_TOKEN}")
    api = HfApi(token=token)
    with spoken("sign in"):
        try:
            me = api.whoami()
        except errors.HfHubHTTPError as error:
            if error.response.status_code == 401:
                raise ChatError(f"the hub doesn't know this token; {NEW_TOKEN}") from None
            raise
    access = (me.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise ChatError(f"the token {access.get('displayName', '')!r} may only read; {NEW_TOKEN}")
    owners = (me["name"], *(each["name"] for each in me.get("orgs") or []))
    return Hub(api, me["name"], owners)


@contextmanager
def spoken(what: str, repository: Repository | None = None) -> Iterator[None]:
    """Say in one sentence why the hub wouldn't `what`. Raises ChatError."""
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2

    try:
        yield
    except errors.HfHubHTTPError as error:
        raise _refused(what, error, repository) from None
    except (HTTPError, ConnectionError) as error:
        raise ChatError(f"can't {what}: {hub_error(error)}") from None
    except RuntimeError as error:  # an upload of a large file, whose reason is its cause
        print(file=sys.stderr)  # the bar of the upload stands in the line
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise _refused(what, error.__cause__, repository) from None
        reason = " ".join(str(error.__cause__ or error).split())
        raise ChatError(f"can't {what}: {reason}; the same command goes on") from None
    except ValueError as error:  # what the storage of large files says of a file, and of a bad front matter
        raise ChatError(f"can't {what}: {_short(str(error))}{_cure(str(error), repository)}") from None


def _refused(what: str, error: Any, repository: Repository | None) -> ChatError:
    status = error.response.status_code
    said = _short(error.server_message or str(error))
    if status == 402:
        return ChatError(
            f"can't {what}: {said}; this account has no hardware for such a Space, see {HUB}/pricing"
        )
    if status in (401, 403):
        return ChatError(f"can't {what}: {said}; the token may not do that, {NEW_TOKEN}")
    if status == 413 or _over_limits(said):
        return ChatError(f"can't {what}: {said}{_cure('too large', repository)}")
    return ChatError(f"can't {what}: the hub answered {status}: {said}; the same command goes on")


def _over_limits(said: str) -> bool:
    return bool(re.search(r"too (large|big)|exceeds?|limit|quota|storage", said, re.IGNORECASE))


def _cure(said: str, repository: Repository | None) -> str:
    if repository is None or not _over_limits(said):
        return ""
    name, size = max(repository.sizes().items(), key=lambda each: each[1])
    largest = f"the largest file is {name} with {human_size(size)}"
    return f"; {largest}: take a smaller type, --quant q4 of make convert"


def _short(text: str) -> str:
    return " ".join(text.split()).rstrip(".;")[:300]
