"""models.json: good entries in order, bad ones left out with a reason, nothing lost when one is added."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.entry import parse_entry
from core.errors import ChatError
from core.gguf_reader import part_names
from core.registry import Registry, add, check_extensible, hub_source, load_registry, menu
from tests.unit.test_gguf_file import MODEL, U32, gguf

ROOT = Path(__file__).resolve().parents[2]
HUB = {"repo_id": "someone/Tiny-GGUF", "filename": "tiny-Q4_K_M.gguf"}


def write(folder: Path, content: Any) -> Path:
    path = folder / "models.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def reason(folder: Path, entry: Any) -> str:
    registry = load_registry(write(folder, {"good": {"sources": [HUB], "n_ctx": 512}, "bad": entry}))
    assert list(registry.entries) == ["good"]
    return registry.broken["bad"]


def test_the_models_that_the_app_ships_are_good() -> None:
    registry = load_registry(ROOT / "models.json")
    assert registry.broken == {}
    assert next(iter(registry.entries)) == "SmolLM2-135M-Instruct"
    for name, entry in registry.entries.items():
        source = hub_source(entry)
        assert source is not None, name
        assert entry.size_bytes, name
        assert entry.kv_bytes_per_token, name
        assert entry.quant, name
        assert entry.quant.lower() in str(source.filename).lower()


# Layers, heads of keys and values, and their width, by the base of an entry. From the config.json of a
# copy on the hub, or of a model tuned from it: Llama 3.2, SmolLM2-1.7B, Qwen3 from 1.7B on, Phi-4-mini,
# Ministral 3 (of baidu/ERNIE-Image's pe/) and Granite (3.0 to 3.2, whose shape 3.3 has). SmolLM3, Gemma
# 2, Phi-3.5 and Mistral 7B are the defaults of transformers' classes. Qwen3-0.6B and SmolLM2-135M are
# from descriptions. No config.json of Gemma 3 was at hand: its entries aren't here.
KEYS_AND_VALUES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": (30, 3, 64),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": (24, 32, 64),
    "HuggingFaceTB/SmolLM3-3B": (36, 4, 128),
    "Qwen/Qwen3-0.6B": (28, 8, 128),
    "Qwen/Qwen3-1.7B": (28, 8, 128),
    "Qwen/Qwen3-4B": (36, 8, 128),
    "Qwen/Qwen3-8B": (36, 8, 128),
    "google/gemma-2-2b-it": (26, 4, 256),
    "ibm-granite/granite-3.3-2b-instruct": (40, 8, 64),
    "meta-llama/Llama-3.2-1B-Instruct": (16, 8, 64),
    "meta-llama/Llama-3.2-3B-Instruct": (28, 8, 128),
    "microsoft/Phi-3.5-mini-instruct": (32, 32, 96),
    "microsoft/Phi-4-mini-instruct": (32, 8, 128),
    "mistralai/Ministral-3-3B-Instruct-2512-BF16": (26, 8, 128),
    "mistralai/Mistral-7B-Instruct-v0.3": (32, 8, 128),
}


def test_the_menu_knows_what_a_token_takes_in_memory() -> None:
    known = {
        str(entry.base): entry.kv_bytes_per_token
        for entry in load_registry(ROOT / "models.json").entries.values()
        if entry.base in KEYS_AND_VALUES
    }
    wanted = {
        base: 2 * 2 * layers * heads * width for base, (layers, heads, width) in KEYS_AND_VALUES.items()
    }
    assert known == wanted  # keys and values, 2 bytes each


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"sources": [HUB], "n_cttx": 512}, "unknown key 'n_cttx'; did you mean 'n_ctx'?"),
        ({"sources": [HUB]}, "'n_ctx' is missing"),
        ({"sources": [HUB], "n_ctx": "8192"}, "'n_ctx' is \"8192\": input should be a valid integer"),
        ({"sources": [HUB], "n_ctx": 100}, "'n_ctx' is 100: input should be greater than or equal to 256"),
        ({"sources": [], "n_ctx": 512}, "'sources' is []"),
        ({"sources": [{}], "n_ctx": 512}, "'sources.0': give exactly one of"),
        ({"sources": [HUB | {"path": "x.gguf"}], "n_ctx": 512}, "'sources.0': give exactly one of"),
        (
            {"sources": [HUB | {"file": "x"}], "n_ctx": 512},
            "unknown key 'sources.0.file'; did you mean 'filename'?",
        ),
        ({"sources": [HUB | {"filename": "../x.gguf"}], "n_ctx": 512}, "'../x.gguf' leads out of its folder"),
        ({"sources": [HUB | {"filename": "x.bin"}], "n_ctx": 512}, "'sources.0.filename' is \"x.bin\""),
        (
            {"sources": [HUB | {"repo_id": "a/../b"}], "n_ctx": 512},
            "'a/../b' is not a name that the hub knows",
        ),
        (
            {"sources": [HUB | {"revision": "../main"}], "n_ctx": 512},
            "'../main' is not a name that the hub knows",
        ),
        ({"sources": [HUB | {"sha256": "abc"}], "n_ctx": 512}, "'sources.0.sha256' is \"abc\""),
        ({"sources": [{"package": "os.path", "filename": "x.gguf"}], "n_ctx": 512}, "'sources.0.package'"),
        (
            {"sources": [HUB], "n_ctx": 512, "sampling": {"temprature": 1}},
            "unknown key 'sampling.temprature'; did you mean 'temperature'?",
        ),
        ({"sources": [HUB], "n_ctx": 512, "sampling": {"temperature": 3}}, "'sampling.temperature' is 3"),
        (
            {"sources": [{"path": "models/gone.gguf"}], "n_ctx": 512},
            "not on this disk: file 'models/gone.gguf'",
        ),
        ({"sources": [{"package": "no_such", "filename": "x.gguf"}], "n_ctx": 512}, "package 'no_such'"),
        (
            {"sources": [HUB], "n_ctx": 512, "adapters": ["x.gguf"]},
            "its adapter 'x.gguf' is not on this disk",
        ),
        ("text", "'entry' is \"text\""),
    ],
)
def test_a_bad_entry_is_left_out_with_a_reason(tmp_path: Path, entry: Any, message: str) -> None:
    assert message in reason(tmp_path, entry)


def test_all_mistakes_of_an_entry_are_named(tmp_path: Path) -> None:
    assert reason(tmp_path, {"sources": [HUB], "n_ctx": None, "bse": "x"}).count(";") == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": {}\n "b"}', "models.json, line 2, column 2: not JSON"),
        ("[1]", "must hold an object of models by name, not [1]"),
        ("[" * 100_000, "can't read"),
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
    ],
)
def test_a_bad_file_is_one_broken_item(tmp_path: Path, content: str, message: str) -> None:
    assert message in load_registry(write(tmp_path, content)).broken["models.json"]


def test_a_missing_file_is_one_broken_item(tmp_path: Path) -> None:
    registry = load_registry(tmp_path / "models.json")
    assert "No such file" in registry.broken["models.json"]
    assert registry.entries == {}


def test_the_first_source_on_this_disk_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "tiny_model_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('never imported')")
    (package / "inside.gguf").touch()
    monkeypatch.syspath_prepend(package.parent)
    sources = [{"path": "models/mine.gguf"}, {"package": package.name, "filename": "inside.gguf"}, HUB]
    entry = parse_entry({"sources": sources, "n_ctx": 512})
    registry = Registry(tmp_path / "models.json")
    assert registry.locate(entry) == package / "inside.gguf"
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.gguf").touch()
    assert registry.locate(entry) == tmp_path / "models" / "mine.gguf"


def test_only_given_sampling_counts_as_given() -> None:
    entry = parse_entry({"sources": [HUB], "n_ctx": 512, "sampling": {"temperature": 0}})
    assert entry.sampling.temperature == 0
    assert entry.sampling.model_fields_set == {"temperature"}
    assert entry.sampling.top_k == 40


def test_adding_keeps_order_and_broken_entries(tmp_path: Path) -> None:
    path = write(tmp_path, {"z": {"sources": [HUB], "n_ctx": 512}, "broken": {"x": 1}})
    entry = parse_entry({"sources": [HUB], "n_ctx": 1024, "quality": {"perplexity": 12.5}})
    add(path, "ä new one", entry)
    add(path, "z", entry)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert list(content) == ["z", "broken", "ä new one"]
    assert content["z"] == {"sources": [HUB], "n_ctx": 1024, "quality": {"perplexity": 12.5}}
    assert path.read_text(encoding="utf-8").startswith('{\n  "z": {\n')
    assert [file.name for file in tmp_path.iterdir()] == ["models.json"]


def test_adding_to_a_file_that_is_not_json_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "{")
    entry = parse_entry({"sources": [HUB], "n_ctx": 512})
    with pytest.raises(ChatError, match=r"line 1, column 2"):
        add(path, "x", entry)
    assert path.read_text() == "{"


def test_the_menu_says_size_and_verdict_before_a_download(tmp_path: Path) -> None:
    (tmp_path / "here.gguf").write_bytes(bytes(1_500_000))
    entries = {
        "Far": {"sources": [HUB], "n_ctx": 512, "size_bytes": 2_390_000_000_000},
        "Here": {"sources": [{"path": "here.gguf"}], "n_ctx": 512, "quality": {"perplexity": 12.5}},
    }
    assert menu(load_registry(write(tmp_path, entries))) == [
        ("Far · 2390.0 GB · too big · download", "Far"),
        ("Here · 1.5 MB · fits · on this disk · perplexity 12.5", "Here"),
    ]


def test_the_verdict_is_on_the_context_that_the_model_will_have(tmp_path: Path) -> None:
    path = tmp_path / "here.gguf"
    path.write_bytes(gguf(MODEL))  # trained on 2,048 tokens of 23,040 bytes
    entry = {"sources": [{"path": path.name}], "n_ctx": 2**24}
    assert menu(load_registry(write(tmp_path, {"Here": entry})))[0][0].endswith("fits · on this disk")
    path.write_bytes(gguf(MODEL | {"llama.context_length": (U32, 2**24)}))
    assert menu(load_registry(write(tmp_path, {"Here": entry})))[0][0].endswith("too big · on this disk")


@pytest.fixture(params=["path", "package", "hub"])
def split_source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A source that names the second of three parts, and the folder where they belong."""
    name = "Q4_K_M/big-00002-of-00003.gguf"
    if request.param == "path":
        return {"path": f"models/{name}"}, tmp_path / "models" / "Q4_K_M"
    if request.param == "package":
        package = tmp_path / "site" / "big_model_package"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        monkeypatch.syspath_prepend(package.parent)
        return {"package": package.name, "filename": name}, package / "Q4_K_M"
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "models--someone--Big-GGUF"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("c0ffee")
    return {"repo_id": "someone/Big-GGUF", "filename": name}, cached / "snapshots" / "c0ffee" / "Q4_K_M"


def test_a_split_model_is_one_entry_wherever_it_lies(tmp_path: Path, split_source: Any) -> None:
    source, folder = split_source
    entry = parse_entry({"sources": [source], "n_ctx": 512})
    path = write(tmp_path, {"Big": {"sources": [source], "n_ctx": 512}})
    folder.mkdir(parents=True)
    for number, name in enumerate(part_names("big-00002-of-00003.gguf"), 1):
        registry = load_registry(path)
        assert registry.locate(entry) is None
        if "repo_id" not in source:  # that one can be downloaded
            assert ("part 3 of 3, 'big-00003-of-00003.gguf'" in registry.broken["Big"]) == (number == 3)
        (folder / name).write_bytes(bytes(500_000 * number))
    registry = load_registry(path)
    assert registry.locate(entry) == folder / "big-00001-of-00003.gguf"
    assert menu(registry) == [("Big · 3.0 MB · fits · on this disk", "Big")]


def test_a_split_model_has_a_hash_for_each_part_or_none(tmp_path: Path) -> None:
    source = HUB | {"filename": "big-00001-of-00002.gguf"}
    hashes = ["a" * 64, "b" * 64]
    entry = parse_entry({"sources": [source | {"sha256": hashes}], "n_ctx": 512})
    assert entry.sources[0].files() == list(zip(part_names(source["filename"]), hashes, strict=True))
    entry = parse_entry({"sources": [source | {"sha256": hashes[0]}], "n_ctx": 512})
    assert [sha256 for _, sha256 in entry.sources[0].files()] == [hashes[0], None]
    wrong = {"sources": [HUB | {"sha256": hashes}], "n_ctx": 512}
    assert "has 2 hashes, and files of the model: 1" in reason(tmp_path, wrong)
    assert "'sources.0.sha256' is [\"a\"]" in reason(
        tmp_path, {"sources": [HUB | {"sha256": ["a"]}], "n_ctx": 512}
    )


def test_programs_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, {})
    code = (
        "import sys; from pathlib import Path\n"
        "from core.registry import add; from core.entry import parse_entry\n"
        f"for i in range(20): add(Path({str(path)!r}), f'{{sys.argv[1]}} {{i}}', "
        f"parse_entry({{'sources': [{HUB!r}], 'n_ctx': 512}}))"
    )
    programs = [subprocess.Popen([sys.executable, "-c", code, name], cwd=ROOT) for name in ("a", "b", "c")]
    assert [program.wait() for program in programs] == [0, 0, 0]
    assert len(json.loads(path.read_text())) == 60


@pytest.mark.parametrize("content", ["[1", '{"a": {}, "a": {}}', "[]"])
def test_a_menu_that_could_not_be_extended_is_noticed_before(content: str, tmp_path: Path) -> None:
    with pytest.raises(ChatError, match=r"models\.json"):
        check_extensible(write(tmp_path, content))
