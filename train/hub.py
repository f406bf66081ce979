"""Data sets of the Hugging Face hub; without a network, those that were fetched before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from train.errors import TrainError
from train.recipe import Data

TIMEOUT_S = 10.0  # until the hub counts as unreachable; the libraries' own retries take 24 s


def load(data: Data) -> list[dict[str, Any]]:
    """All rows of `data.split`. No code of the data set is run. Raises TrainError."""
    import datasets

    reachable = _look_up(data)
    try:
        with _offline(not reachable):
            found = datasets.load_dataset(data.path, data.name, split=data.split, revision=data.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if not reachable:
            raise TrainError(
                f"can't reach the hub for the data set {data.path!r}, and it wasn't fetched before; connect "
                "and try again, or download its file elsewhere and give it as data.path"
            ) from None
        reason = " ".join(str(error).split())
        raise TrainError(f"can't load the data set {data.path!r}: {reason}") from None
    rows: list[dict[str, Any]] = found.to_list()
    return rows


def _look_up(data: Data) -> bool:
    """Ask the hub for the data set; False if there is no way to it. Raises TrainError."""
    from huggingface_hub import HfApi, constants, errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2

    try:
        HfApi().dataset_info(data.path, revision=data.revision, timeout=TIMEOUT_S)
    except errors.GatedRepoError:
        page = f"{constants.ENDPOINT}/datasets/{data.path}"
        raise TrainError(f"first accept the terms at {page}, then sign in with 'hf auth login'") from None
    except errors.RepositoryNotFoundError:
        raise TrainError(
            f"there is neither a file nor a public data set {data.path!r}; check data.path, or sign in with "
            "'hf auth login' if it is private"
        ) from None
    except errors.RevisionNotFoundError:
        raise TrainError(f"the data set {data.path!r} has no revision {data.revision!r}") from None
    except errors.HFValidationError:
        raise TrainError(f"{data.path!r} is neither a file nor the name of a data set") from None
    except (errors.OfflineModeIsEnabled, HTTPError, ConnectionError):
        return False
    return True


@contextmanager
def _offline(switch: bool) -> Iterator[None]:
    """Keep the libraries off the network, if `switch`: they answer from their cache, or not at all."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if switch:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
