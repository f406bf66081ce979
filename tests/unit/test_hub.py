"""The hub's errors as sentences, also where a library has put one into its own."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from huggingface_hub import constants, errors

from core.hub import hub_error

ENTRY = errors.RemoteEntryNotFoundError
GATED = f"first accept the terms at {constants.ENDPOINT}/some/model, then sign in with 'hf auth login'"
CASES = [
    (errors.GatedRepoError, 403, GATED),
    (errors.RepositoryNotFoundError, 401, "nothing there, or sign in with 'hf auth login' if it is private"),
    (errors.RevisionNotFoundError, 404, "some/model has no revision 'v9'; check its name"),
    (errors.HfHubHTTPError, 503, f"{constants.ENDPOINT} answered 503; try again later"),
    (errors.HfHubHTTPError, 401, f"{constants.ENDPOINT} answered 401; sign in with 'hf auth login'"),
    (ENTRY, 404, ""),  # one file isn't there: that is the library's to say
]


@pytest.mark.parametrize(("kind", "status", "said"), CASES)
def test_an_error_is_known_by_its_type_and_by_its_causes(kind: Any, status: int, said: str) -> None:
    asked = httpx.Request("GET", constants.ENDPOINT)
    error = kind("no", response=httpx.Response(status, request=asked))
    wrapped = OSError("You are trying to read what isn't yours")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        assert hub_error(each, "some/model", "v9", "nothing there") == said


def test_what_is_not_the_hubs_has_no_sentence() -> None:
    assert hub_error(OSError("no space left on device")) == ""
    assert "unset it" in hub_error(errors.OfflineModeIsEnabled("offline"))
    assert hub_error(ConnectionError("refused")).startswith(f"can't reach {constants.ENDPOINT} (refused);")
