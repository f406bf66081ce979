"""The Hugging Face hub: its data sets, and whether it has what is asked for; else what was fetched before."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
    from huggingface_hub import HfApi, constants, errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2

    noun, local, pages, key = WORDS[kind]
    try:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT_S)
    except errors.GatedRepoError:
        page = f"{constants.ENDPOINT}/{pages}{name}"
        raise TrainError(f"first accept the terms at {page}, then sign in with 'hf auth login'") from None
    except errors.RepositoryNotFoundError:
        raise TrainError(
            f"there is neither a {local} nor a public {noun} {name!r}; check {key}, or sign in with "
            "'hf auth login' if it is private"
        ) from None
    except errors.RevisionNotFoundError:
        raise TrainError(f"the {noun} {name!r} has no revision {revision!r}") from None
    except errors.HFValidationError:
        raise TrainError(f"{name!r} is neither a {local} nor the name of a {noun}; check {key}") from None
    except (errors.OfflineModeIsEnabled, HTTPError, ConnectionError):
        return False
    return True


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
