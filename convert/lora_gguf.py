"""An adapter alone as a GGUF: judged by its tensors, loaded on the GGUF of its base, and its effect measured.

llama.cpp adds alpha / rank times B A to a matrix (llm_graph_context::build_lora_mm), and nothing else: no
biases, no DoRA, no replaced tensors. Scalings of other kinds (rsLoRA, alpha_pattern) go into B.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

if not __package__:  # run as a script, in a process of its own: llama.cpp ends the process on some adapters
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from safetensors.torch import save_file

from convert import llamacpp, preflight, quantise
from convert.adapter import EMBEDDINGS, HEADS, WEIGHTS, Adapter
from convert.merge import MergePlan, is_tied, surplus_head
from convert.pipeline import Pipeline
from convert.preflight import model_name, outtype
from convert.publish import models_folder, place, register_adapter
from convert.source import Source
from convert.stages import Settings
from convert.verify.adapted import Adapted, MergeInputs
from convert.verify.limits import worst
from convert.verify.loss import guesses, rows_to_score
from convert.verify.merged import Arrived, LoraFile, arrived_beside, check_merge
from convert.verify.report import lines_of
from convert.verify.run import chat_model
from convert.without_code import copy_without_code
from core.checkpoint import Checkpoint
from core.command import command_line
from core.errors import ConvertError
from core.files import ADAPTER_CONFIG
from core.gguf_model import read_gguf
from core.gptq import open_checkpoint
from core.log_probs import (
    Scores,
    compare,
    gguf_log_probs,
    idle_threads,
    read_reference,
    save_reference,
    targets,
)
from core.machine import human_size
from core.progress import bar
from core.rows import load_rows, plain_rows, save_rows

CURE = "merge it instead: leave out --lora"
REFERENCE = "base and adapter in PEFT"


def adapter_alone(source: Source, settings: Settings, root: Path) -> int:
    """Write and measure the adapter's GGUF, to be listed under `adapters` of its base's entry.

    Returns the exit code: 1 if its effect is another than PEFT gives it. Raises ConvertError.
    """
    if not source.adapter:
        raise ConvertError("--lora needs an adapter, and this is a whole checkpoint")
    models = models_folder(root)
    pipeline = Pipeline(source, settings)
    adapter, base = Adapter(source.adapter), open_checkpoint(pipeline.base)
    MergePlan(base, adapter)  # refuses an adapter of another base
    for line in adapter.notes():
        print(line, flush=True)
    _check(adapter, base)
    llamacpp.converter(llamacpp.LORA_CONVERTER)
    places = pipeline.work, models, preflight.is_written_twice(base.folder)
    print(preflight.check(base, True, [], False, *places), flush=True)
    work = pipeline.work / "lora"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    write_plain(adapter, work / "adapter")
    made, target = work / "lora.gguf", models / f"{source.name}-lora.gguf"
    copy_without_code(pipeline.base, work / "base", surplus_head(base))
    quantise.convert_adapter(work / "adapter", work / "base", made)
    scores, layers = _measure(pipeline, made, work)
    if not _judged(scores, layers, len(adapter.low_rank), read_gguf(work / "base.gguf").n_vocab):
        kept = place(made, target.with_suffix(".unverified"), move=True)
        print(f"FAILED: {kept}: its effect is not what PEFT makes of the adapter; {CURE}")
        return 1
    place(made, target, move=True)
    shutil.rmtree(work)
    print(f"{target} ({human_size(target.stat().st_size)})")
    if name := register_adapter(target, source.name, pipeline.origin, root):
        print(f"Next: {command_line('app.py', ['--model', name])}")
    else:
        listed = json.dumps([f"models/{target.name}"], ensure_ascii=False)
        print(f'Next: add "adapters": {listed} to the entry of its base in models.json')
    return 0


def _check(adapter: Adapter, base: Checkpoint) -> None:
    """Refuse what such a file can't hold, by the tensors that are there. Raises ConvertError."""
    why = ""
    if dora := [name for name, update in adapter.low_rank.items() if update.magnitude]:
        why = f"{dora[0]} has a magnitude (DoRA)"
    elif adapter.bias:
        why = f"{next(iter(adapter.bias))} is trained, and it has no place for biases"
    elif is_tied(base) and (both := [n for n in adapter.low_rank if n.endswith((*EMBEDDINGS, *HEADS))]):
        why = f"{both[0]} is changed, and embedding and head are one tensor in the GGUF of this base"
    else:
        embedding = next(name for name in base.names if name.endswith(EMBEDDINGS))
        for name, key in adapter.whole.items():
            kept = name if name in base.names else embedding  # a tied head
            if adapter.whole_shape(name) != base.shape(kept):
                rows = adapter.whole_shape(name)[0], base.shape(kept)[0]
                why = f"{name} has {rows[0]} rows in it, and {rows[1]} in the base"
            elif not torch.equal(adapter.read(key).float(), base.read(kept).float()):
                why = f"{name} is replaced as a whole (modules_to_save)"
    if why:
        raise ConvertError(f"{adapter.folder} can't be a GGUF of its own: {why}; {CURE}")


def write_plain(adapter: Adapter, folder: Path) -> None:
    """Write the low-rank updates with PEFT's own names, and a config that says no more than they need."""
    folder.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    for name in adapter.low_rank:
        tensors |= _scaled(adapter, name)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    kept = {"peft_type": "LORA", "r": adapter.config.get("r"), "lora_alpha": _alpha(adapter)}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(kept) + "\n", encoding="utf-8")


def _alpha(adapter: Adapter) -> float:
    return float(adapter.config["lora_alpha"]) or 1.0  # 0 would mean to llama.cpp that there is no scaling


def _scaled(adapter: Adapter, name: str) -> dict[str, torch.Tensor]:
    """A and B of one update, where alpha / rank times B A is the whole update."""
    update = adapter.low_rank[name]
    left, right = adapter.read(update.b).float(), adapter.read(update.a).float()
    left *= update.scaling * len(right) / _alpha(adapter)
    module = f"base_model.model.{name.removesuffix('.weight')}"
    if name.endswith(EMBEDDINGS):
        return {f"{module}.lora_embedding_A": right, f"{module}.lora_embedding_B": left}
    return {f"{module}.lora_A.weight": right, f"{module}.lora_B.weight": left}


def _judged(scores: dict[str, Scores], layers: list[Arrived], adapted: int, n_vocab: int) -> bool:
    """Print what was measured; tell whether the file is good."""
    for name, score in scores.items():
        print(
            f"  {name:<28} loss {score.loss:.4f}  mean KL {score.kl_mean:.5f}  same top {score.same_top:.1%}"
        )
    guessing = guesses(scores[REFERENCE], n_vocab)
    checks = check_merge(scores["base GGUF with the adapter"], layers, guessing, "adapter")
    if len(layers) < adapted:
        print(f"  note: {adapted - len(layers)} of {adapted} layers have another form in a GGUF")
        checks = checks if layers else checks[:2]
    print(*(f"  {line}" for line in lines_of(checks)), sep="\n")
    return worst(check.verdict for check in checks) != "fail"


def _measure(pipeline: Pipeline, lora: Path, work: Path) -> tuple[dict[str, Scores], list[Arrived]]:
    """Score the base's GGUF with and without the adapter against base and adapter as PEFT runs them."""
    assert pipeline.source.adapter
    gguf, said = work / "base.gguf", work / "peft.npy"
    kind = outtype(Checkpoint(work / "base"))
    with bar("Converting the base") as progress:
        name = model_name(pipeline.base, pipeline.source.name)
        quantise.convert_checkpoint(work / "base", gguf, kind, name, progress)
    with chat_model(gguf) as model:
        own = plain_rows(model.encoder, model.file.vocab.eog_ids)
    rows = rows_to_score(load_rows(pipeline.source.prompts) if pipeline.source.prompts else own)
    save_rows(work / "rows.jsonl", rows)
    with (
        bar("Asking base and adapter") as progress,
        idle_threads(),
        closing(Adapted(MergeInputs(pipeline.base, pipeline.source.adapter))) as adapted,
    ):
        done = _counter(progress, len(rows))
        save_reference(said, adapted.log_probs(rows, done), len(targets(rows)))
        layers = arrived_beside(LoraFile(gguf, lora).outputs(adapted.layers()))
    found = {REFERENCE: said}
    for label, adapters in (("base GGUF", []), ("base GGUF with the adapter", [lora])):
        found[label] = work / f"{len(adapters)}.npy"
        llamacpp.run(
            [sys.executable, Path(__file__), gguf, work / "rows.jsonl", found[label], *adapters],
        )
    scores = {name: compare(said, read_reference(path), targets(rows)) for name, path in found.items()}
    return scores, layers


def _counter(progress: Callable[[int, int], None], total: int) -> Callable[[], None]:
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    return step


def main(gguf: str, rows: str, out: str, *adapters: str) -> None:
    """Save what a GGUF predicts with adapters on it; the program of the child process."""
    scored = load_rows(Path(rows))
    predicted = gguf_log_probs(Path(gguf), scored, lambda: None, list(adapters))
    save_reference(Path(out), predicted, len(targets(scored)))


if __name__ == "__main__":
    main(*sys.argv[1:])
