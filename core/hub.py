"""The Hugging Face hub: what it has, what was fetched before, and its errors, each as one sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from core.errors import TrainError

TIMEOUT_S = 10.0  # until the hub counts as unreachable; the libraries' own retries take up to 50 s

Kind = Literal["dataset", "model"]
# what it is called, what else it could be, the start of its page's address, the recipe's key
WORDS = {
    "dataset": ("data set", "file", "datasets/", "data.path"),
    "model": ("base", "folder", "", "model.base_model"),
}


def look_up(kind: Kind, name: str, revision: str | None) -> bool:
    """Ask the hub for a data set or a model; False if there is no way to it. Raises TrainError."""
    from huggingface_hub import HfApi, errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2

    noun, local, pages, key = WORDS[kind]
    missing = f"there is neither a {local} nor a public {noun} {name!r}; check {key}"
    try:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT_S)
    except errors.HFValidationError:
        raise TrainError(f"{name!r} is neither a {local} nor the name of a {noun}; check {key}") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise TrainError(hub_error(error, name, revision, missing, pages)) from None
    except (HTTPError, ConnectionError):
        return False
    return True


def files_of(base: str, revision: str | None) -> list[str]:
    """The names of the files of a folder or of a model's repository; none if the hub can't be asked."""
    if (folder := Path(base)).is_dir():
        return [path.name for path in folder.iterdir()]
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2

    try:
        found = HfApi().model_info(base, revision=revision, timeout=TIMEOUT_S).siblings or []
    except (HTTPError, ConnectionError):
        return []
    return [file.rfilename for file in found]


def card_folder(base: str, revision: str | None) -> Path | None:
    """A folder with the README.md of a model, which is fetched from the hub; None if it can't be had."""
    if (folder := Path(base)).is_dir():
        return folder
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2

    try:
        return Path(hf_hub_download(base, "README.md", revision=revision)).parent
    except (HTTPError, OSError):
        return None


def hub_error(
    error: BaseException | None,
    name: str = "",
    revision: str | None = None,
    missing: str = "",
    pages: str = "",
) -> str:
    """Why the hub doesn't give `name`, and what to do; empty if that is not what `error` is about.

    The libraries put the hub's errors into their own: its causes are looked at, too. `missing`: what to say
    of a repository that isn't there. `pages`: the start of its page's address.
    """
    from huggingface_hub import constants, errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2

    site, sign_in = constants.ENDPOINT, "sign in with 'hf auth login'"
    match error:
        case None | errors.RemoteEntryNotFoundError():  # a file that isn't there: the hub is well
            return ""
        case errors.GatedRepoError():
            return f"first accept the terms at {site}/{pages}{name}, then {sign_in}"
        case errors.RepositoryNotFoundError():
            return f"{missing}, or {sign_in} if it is private"
        case errors.RevisionNotFoundError():
            return f"{name} has no revision {revision!r}; check its name"
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set; unset it and try again"
        case errors.HfHubHTTPError():
            status = error.response.status_code
            return f"{site} answered {status}; {sign_in if status in (401, 403) else 'try again later'}"
        case HTTPError() | ConnectionError() | errors.LocalEntryNotFoundError():
            said = " ".join(str(error).split())[:200] or type(error).__name__
            return f"can't reach {site} ({said}); check the network and try again"
    return hub_error(error.__cause__ or error.__context__, name, revision, missing, pages)


@contextmanager
def offline(switch: bool) -> Iterator[None]:
    """Keep the libraries off the network, if `switch`: they answer from their cache, or not at all.

    Left alone they try again and again, for a minute.
    """
    from huggingface_hub import constants

    settings: list[Any] = [constants]
    if "datasets" in sys.modules:
        settings.append(sys.modules["datasets"].config)
    before = [module.HF_HUB_OFFLINE for module in settings]
    for module in settings:
        module.HF_HUB_OFFLINE = module.HF_HUB_OFFLINE or switch
    try:
        yield
    finally:
        for module, value in zip(settings, before, strict=True):
            module.HF_HUB_OFFLINE = value
