"""The closed schema of one entry of `models.json`, with an error text for each way to get it wrong.

The file is its owner's, so a `path` may lead anywhere. File names inside packages and hub repositories
come from elsewhere and may not leave their folder.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)

from core.engine import Sampling
from core.gguf_reader import part_names
from core.lora import Adapter

_KINDS = '"path"; "package" and "filename"; "repo_id" and "filename"'
# huggingface_hub.utils.validate_repo_id has the same rule; importing it takes half a second.
_WORD = r"(?!\S*(--|\.\.))[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_HUB_NAMES = {"repo_id": re.compile(f"{_WORD}/{_WORD}"), "revision": re.compile(f"{_WORD}(/{_WORD})*")}


def _hashes(value: Any) -> Any:
    for text in value if isinstance(value, list) else [value]:
        if value is not None and not (isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text)):
            raise ValueError("should be 64 hexadecimal digits, or a list, one for each part")
    return value


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Closed):
    """Where a GGUF may be: `path`, or `package` + `filename`, or `repo_id` + `filename` (+ `revision`).

    A split model is named by any of its parts; the others are in the same folder.
    """

    path: str | None = Field(None, min_length=1, description="absolute, or from the folder of models.json")
    package: str | None = Field(
        None, pattern=r"^[A-Za-z_]\w*$", description="import name of a Python package"
    )
    repo_id: str | None = Field(None, max_length=96)
    filename: str | None = Field(None, pattern=r"\.gguf$")  # so nothing else, a pickle say, is ever fetched
    revision: str = "main"
    sha256: Annotated[str | list[str] | None, PlainValidator(_hashes)] = Field(
        None, description="checked after a download: of the file named, or a list, one for each part"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Source:
        given = self.model_fields_set - {"sha256"}
        hub = given - {"revision"} == {"repo_id", "filename"}
        if not hub and given not in ({"path"}, {"package", "filename"}):
            raise ValueError(f"give exactly one of: {_KINDS}")
        for key, text in (("repo_id", self.repo_id), ("revision", self.revision)):
            if text is not None and not _HUB_NAMES[key].fullmatch(text):
                raise ValueError(f"{key!r} {text!r} is not a name that the hub knows")
        name = PurePosixPath(self.filename or "")
        if name.is_absolute() or ".." in name.parts or "\\" in str(name) or ":" in str(name):
            raise ValueError(f'"filename" {self.filename!r} leads out of its folder')
        names = part_names(self.path or self.filename or "")
        if isinstance(self.sha256, list) and len(self.sha256) != len(names):
            raise ValueError(f'"sha256" has {len(self.sha256)} hashes, and files of the model: {len(names)}')
        return self

    def files(self) -> list[tuple[str, str | None]]:
        """Return the name of each file in its package or repository, with its sha256 where that is known."""
        named = self.filename or ""
        names = part_names(named)
        if isinstance(self.sha256, list):
            return list(zip(names, self.sha256, strict=True))
        return [(name, self.sha256 if name == named else None) for name in names]

    def __str__(self) -> str:
        if self.path:
            return f"file {self.path!r}"
        return f"package {self.package!r}" if self.package else f"{self.repo_id}/{self.filename}"


class Entry(_Closed):
    """One model of the menu. Keys are llama-cpp-python's and huggingface_hub's own names."""

    sources: list[Source] = Field(min_length=1, description="tried in order")
    n_ctx: int = Field(ge=256, le=2**24)
    system_prompt: str | None = None
    sampling: Sampling = Sampling()
    adapters: list[Adapter] = []
    base: str | None = None
    run: str | None = None
    quant: str | None = None
    quality: dict[str, float | int | str | bool | None] = {}
    size_bytes: int | None = Field(None, gt=0, lt=2**50)
    kv_bytes_per_token: int | None = Field(None, ge=0, lt=2**40)

    @field_validator("adapters")
    @classmethod
    def _named_apart(cls, adapters: list[Adapter]) -> list[Adapter]:
        names = [adapter.name for adapter in adapters]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f'two adapters are called {twice[0]!r}; give one of them another "name"')
        return adapters


def parse_entry(content: Any) -> Entry:
    """Check one entry. Raises ValueError with a sentence that names every mistake."""
    try:
        return Entry.model_validate(content, strict=True)
    except ValidationError as error:
        raise ValueError("; ".join(map(_sentence, error.errors()))) from None


def hub_source(entry: Entry) -> Source | None:
    """Return where `entry` can be downloaded from."""
    return next((source for source in entry.sources if source.repo_id), None)


_KNOWN: dict[str, type[BaseModel]] = {"sources": Source, "sampling": Sampling, "adapters": Adapter}


def _sentence(error: Any) -> str:
    """Turn one of pydantic's errors into ours: which key, the value quoted, what is wanted."""
    *parents, key = error["loc"] or ("entry",)
    where = ".".join(map(str, error["loc"])) or "entry"
    if error["type"] == "extra_forbidden":
        known = _KNOWN.get(str(parents[0]) if parents else "", Entry).model_fields
        close = difflib.get_close_matches(str(key), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    if error["type"] == "missing":
        return f"{where!r} is missing"
    if error["type"] == "value_error" and parents and parents[-1] != "sources":
        return f"{where!r} is {shown(error['input'])}: {error['ctx']['error']}"
    if error["type"] == "value_error":
        return f"{where!r}: {error['ctx']['error']}"
    return f"{where!r} is {shown(error['input'])}: {error['msg'][0].lower()}{error['msg'][1:]}"


def shown(value: Any) -> str:
    """Quote a JSON value, shortened."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
