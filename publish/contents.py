"""What goes to the hub: the files of the Space and of the model's repository, by their names there."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.entry import Entry, Source, hub_source
from core.errors import ChatError
from core.gguf_model import GgufFile, read_gguf
from core.gguf_reader import model_name
from core.machine import human_size
from core.registry import Registry, load_registry

FILE_CONTEXT = 4096  # tokens, as the conversion gives a new model
APP = ("app.py", "requirements.txt", "LICENSE")
PACKAGES = ("chat", "core")
SUFFIXES = (".py", ".css", ".js", ".jsonl")
MARK = "tune2chat"  # the tag by which a repository of ours is known
UNKNOWN_REVISION = "0" * 40  # until the model is there: as long as a real one
LONGEST_NAME = 90  # characters of a repository's name; the hub allows 96 with its owner


@dataclass(frozen=True)
class Repository:
    """Files by their names in the repository: paths of files on this disk, or what is written for it."""

    repo_id: str
    kind: str  # "space" or "model", as huggingface_hub calls them
    files: dict[str, Path | bytes]

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {
            name: len(each) if isinstance(each, bytes) else each.stat().st_size
            for name, each in self.files.items()
        }


@dataclass(frozen=True)
class Chosen:
    """The model that the Space begins with: its name in the menu, its entry, and its file to be brought."""

    name: str
    entry: Entry
    file: GgufFile | None = None


def choose(root: Path, model: str | None) -> Chosen:
    """Return the model of `--model`, or the first of the project's models.json. Raises ChatError."""
    registry = load_registry(root / "models.json")
    if model is None:
        found = next(((name, entry) for name, entry in registry.entries.items() if hub_source(entry)), None)
        if found is None:
            raise ChatError("models.json has no model of the hub; give a file: --model models/FILE.gguf")
        return Chosen(*found)
    path = Path(model).expanduser()
    if not path.is_file():
        raise ChatError(f"there is no file {model!r}; give a GGUF file: --model models/FILE.gguf")
    file = read_gguf(path)
    if not file.n_params:
        raise ChatError(f"{path.name} holds a vocabulary and no weights; choose the model's other file")
    name, entry = _entry_of(registry, file)
    if entry.adapters:
        raise ChatError(
            f"{name!r} has adapters, which are not brought to a Space; merge them first: "
            "make convert ARGS=ADAPTER-FOLDER"
        )
    return Chosen(name, entry, file)


def _entry_of(registry: Registry, file: GgufFile) -> tuple[str, Entry]:
    """The entry of models.json for this file, else one made of its header."""
    for name, entry in registry.entries.items():
        located = registry.locate(entry)
        if located and located.resolve() in {part.resolve() for part in file.parts}:
            return name, entry
    context = min(file.n_ctx_train or FILE_CONTEXT, FILE_CONTEXT)
    made = {"n_ctx": context, "kv_bytes_per_token": file.kv_bytes_per_token, "size_bytes": file.file_size}
    source = Source(path=str(file.path.resolve()))
    return model_name(file.path.name), Entry.model_validate({"sources": [source], **made})


def slug(name: str) -> str:
    """The name as the hub takes it for a repository, and its builder for a file in `preload_from_hub`."""
    kept = re.sub(r"[^A-Za-z0-9._]+", "-", name)
    return re.sub(r"([-.])[-.]+", r"\1", kept).strip("-.")[:LONGEST_NAME].strip("-.") or "model"


def model_repository(owner: str, chosen: Chosen) -> Repository:
    """The repository of the chosen file: its parts, its card, and what was measured of it."""
    assert chosen.file is not None
    file = chosen.file
    stem = model_name(file.path.name)
    name = slug(stem)
    count = len(file.parts)
    names = [f"{name}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]
    files: dict[str, Path | bytes] = dict(
        zip(names if count > 1 else [f"{name}.gguf"], file.parts, strict=True)
    )
    beside = file.path.parent
    card = beside / f"{stem}.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else _plain_card(chosen, file)
    text = text.replace(f"{beside.absolute()}/", "")  # as the card of a model outside the repository has it
    files["README.md"] = _tagged(text).encode()
    if (quality := beside / f"{stem}.quality.json").is_file():
        files["quality.json"] = quality
    if (ollama := beside / f"{stem}.Modelfile").is_file():
        written = ollama.read_text(encoding="utf-8")
        files[ollama.name] = written.replace(
            f"FROM ./{file.path.name}", f"FROM ./{next(iter(files))}"
        ).encode()
    return Repository(f"{owner}/{name}-GGUF"[:96], "model", files)


def _plain_card(chosen: Chosen, file: GgufFile) -> str:
    base = chosen.entry.base or ""
    based = f"base_model: {json.dumps(base)}\n" if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else ""
    return (
        f"---\n{based}library_name: gguf\npipeline_tag: text-generation\n---\n\n# {chosen.name}\n\n"
        f"A GGUF of type {file.file_type} ({human_size(file.file_size)}).\n"
    )


def _tagged(card: str) -> str:
    """The card with the tag by which it is known again."""
    from huggingface_hub import RepoCard

    # A front matter that isn't YAML is left out: the hub would refuse it.
    parsed: Any = RepoCard(card, ignore_metadata_errors=True)
    tags = parsed.data.get("tags") or []
    parsed.data["tags"] = [*tags, *(tag for tag in ("gguf", MARK) if tag not in tags)]
    return str(parsed)


def placed(chosen: Chosen, repository: Repository, revision: str) -> Chosen:
    """The chosen model as an entry for its repository at a commit."""
    first = next(name for name in repository.files if name.endswith(".gguf"))
    source = Source(repo_id=repository.repo_id, filename=first, revision=revision)
    return Chosen(chosen.name, chosen.entry.model_copy(update={"sources": [source]}))


def space_repository(root: Path, repo_id: str, chosen: Chosen, preload: bool) -> Repository:
    """The app's own files, and a README and a models.json for the chosen model."""
    files: dict[str, Path | bytes] = {name: root / name for name in APP}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                files[path.relative_to(root).as_posix()] = path
    files["models.json"] = _menu(root, chosen)
    files["README.md"] = _readme(root, repo_id, chosen, preload)
    return Repository(repo_id, "space", dict(sorted(files.items())))


def _menu(root: Path, chosen: Chosen) -> bytes:
    """The chosen model first, then what of the project's menu is on the hub: nothing else is there."""
    entries = {chosen.name: chosen.entry}
    for name, entry in load_registry(root / "models.json").entries.items():
        if hub_source(entry) and not entry.adapters:
            entries.setdefault(name, entry)
    menu: dict[str, Any] = {}
    for name, entry in entries.items():
        sources = [source for source in entry.sources if source.repo_id]
        only = entry.model_copy(update={"sources": sources})
        menu[name] = only.model_dump(mode="json", exclude_unset=True)
    return (json.dumps(menu, indent=2, ensure_ascii=False) + "\n").encode()


def _readme(root: Path, repo_id: str, chosen: Chosen, preload: bool) -> bytes:
    from huggingface_hub import SpaceCardData, metadata_load

    matter: dict[str, Any] = metadata_load(root / "README.md") or {}
    matter["title"] = repo_id.split("/")[1]
    matter["tags"] = [MARK]
    matter.pop("preload_from_hub", None)
    source = hub_source(chosen.entry)
    assert source is not None
    if preload:
        names = ",".join(name for name, _ in source.files())
        revision = "" if source.revision == "main" else f" {source.revision}"
        matter["preload_from_hub"] = [f"{source.repo_id} {names}{revision}"]
    return (
        f"---\n{SpaceCardData(**matter).to_yaml()}\n---\n\n# {matter['title']}\n\n"
        f"A chat with {chosen.name} (`{source.repo_id}`), served by tune2chat on the processor.\n"
    ).encode()
