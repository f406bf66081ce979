"""What the page /runs shows of the files in models/."""

from __future__ import annotations

from pathlib import Path

from chat.made_files import read_files
from chat.runs import read_runs
from chat.runs_page import page_html
from core.registry import load_registry
from tests.run_folders import register, write_model, write_run


def test_files_say_what_was_measured_and_where_to_chat(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_run(tmp_path / "outputs")
    write_model(models, "quotes-Q6_K", "warn")
    write_model(models, "new-Q6_K")
    write_model(models, "bad-Q4_0", "fail")
    (models / "mine.gguf").write_bytes(b"GGUF")
    (models / "half.gguf.partial").write_bytes(b"GGUF")
    for part in (1, 2):
        (models / f"split-0000{part}-of-00002.gguf").write_bytes(b"GGUF" * part)
    (models / "quotes-lora.gguf").write_bytes(b"GGUF")
    register(tmp_path, "quotes-Q6_K.gguf", "quotes Q6_K")
    menu = load_registry(tmp_path / "models.json")
    register(tmp_path, "new-Q6_K.gguf", "new Q6_K")
    found = {file.file: file for file in read_files(menu)[0]}
    assert set(found) == {
        *("quotes-Q6_K.gguf", "new-Q6_K.gguf", "bad-Q4_0.unverified", "mine.gguf", "half.gguf.partial"),
        *("split-00001-of-00002.gguf", "quotes-lora.gguf"),
    }
    assert found["split-00001-of-00002.gguf"].size == 12
    assert found["quotes-lora.gguf"].kind == "adapter"
    shown = page_html(read_runs(tmp_path / "outputs"), menu, None)
    cards = {
        card.split("</h3>")[0].split(">")[-2].split("<")[0]: card for card in shown.split("<section")[1:]
    }
    assert 'href="./?model=quotes%20Q6_K"' in cards["quotes-Q6_K.gguf"]
    assert "warning: quantised: KL" in cards["quotes-Q6_K.gguf"]
    assert "95.9%" in cards["quotes-Q6_K.gguf"]
    assert 'href="runs?run=quotes"' in cards["quotes-Q6_K.gguf"]
    assert "start it again" in cards["new-Q6_K.gguf"]
    assert "python app.py --model models/mine.gguf" in cards["mine.gguf"]
    assert "failed a check" in cards["bad-Q4_0.unverified"]
    assert "above 0.0323" in cards["bad-Q4_0.unverified"]
    assert "?model=" not in cards["bad-Q4_0.unverified"]
    run = shown.split("<h2>Files")[0]
    assert 'href="runs#file-' in run
    assert 'href="./?model=quotes%20Q6_K"' in run
