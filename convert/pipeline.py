"""The arrow from an adapter to verified GGUF files; each step is done once, and only when something needs it.

    base + adapter -> merged checkpoint -> 16-bit GGUF -> quantised GGUFs -> models/ and its models.json

The checkpoint's own answers are saved as a reference as soon as the 16-bit GGUF is there. Then the merged
checkpoint goes, before the disk has to hold the quantised files too.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from convert import llamacpp, quantise
from convert.adapter import Adapter
from convert.base import find_base
from convert.base_choice import choose_base
from convert.merge import MergePlan, is_tied, merge, surplus_head
from convert.preflight import SMALL_PARAMS, check_tokenizer, model_name, outtype
from convert.source import Source, folder_name
from convert.stages import Settings, Stages, key
from convert.verify.adapted import MergeInputs
from convert.verify.report import Report
from convert.verify.run import chat_model, reference, verify
from convert.without_code import copy_without_code
from core.checkpoint import Checkpoint
from core.errors import ConvertError
from core.files import ADAPTER_CONFIG, read_json, write_whole
from core.gguf_model import read_gguf
from core.gptq import open_checkpoint
from core.progress import bar
from core.rows import Row, load_rows, plain_rows, save_rows

REFERENCE = 3  # of the files in its folder: another number when they hold something else
IMATRIX_TOKENS = 2 * quantise.IMATRIX_CONTEXT  # fewer tell nothing


class Pipeline:
    """One source on its way; the files are made in `<run>/convert/`."""

    def __init__(self, source: Source, settings: Settings) -> None:
        self.source, self.settings = source, settings
        self.work = source.folder / "convert"
        self.work.mkdir(parents=True, exist_ok=True)
        self.checkpoint = self.work / ("merged" if source.adapter else "checkpoint")
        self.sixteen_bit = self.work / "16bit.gguf"
        self.references = self.work / "reference"
        self.stages = Stages(self.work / "stages.json")
        self._claim()
        self.costs: list[tuple[str, float, int]] = []  # step, seconds, bytes made

    def _claim(self) -> None:
        """Refuse to go on in the folder of another source of the same name."""
        path = (self.source.adapter or self.source.checkpoint or self.work).resolve()
        owner = self.work / "source"
        if owner.is_file() and owner.read_text(encoding="utf-8") != str(path):
            raise ConvertError(
                f"{self.work} belongs to {owner.read_text(encoding='utf-8')!r}, which has the same name; "
                "rename one of the two, or delete that folder"
            )
        write_whole(owner, str(path))

    def _stage(self, name: str, wanted: str, made: list[Path], work: Callable[[], Any]) -> Any:
        """Do `work` unless it was done with the same key; return what it returned then."""
        if not self.stages.done(name, wanted):
            started = time.perf_counter()
            note = work()
            self.costs.append((name, time.perf_counter() - started, sum(map(_size, made))))
            self.stages.finish(name, wanted, made, note)
        return self.stages.note(name)

    @cached_property
    def base(self) -> Path:
        """The checkpoint that the adapter was trained on."""
        assert self.source.adapter
        return find_base(self.source.adapter, self.settings.base_model, self.work)

    @cached_property
    def origin(self) -> str:
        """What the model is called that the run began with."""
        if self.source.checkpoint:
            return folder_name(self.source.checkpoint)
        assert self.source.adapter
        named = str(read_json(self.source.adapter / ADAPTER_CONFIG).get("base_model_name_or_path"))
        # A folder's name, not its path: this goes into files that are given to others.
        return folder_name(self.base) if Path(named).is_dir() or self.settings.base_model else named

    @cached_property
    def name(self) -> str:
        return model_name(self.source.checkpoint or self.base, self.source.name)

    @cached_property
    def _weights_key(self) -> str:
        if self.source.checkpoint:
            return key(self.source.checkpoint)
        return key(self.source.adapter, self.base, self.settings.base)

    @cached_property
    def _sixteen_key(self) -> str:
        return key(self._weights_key, self.name, version(llamacpp.BINDING), quantise.CONVERSION)

    def merge(self) -> None:
        """Have the checkpoint to convert: merged, if the source is an adapter; without code anyway."""
        if self.source.checkpoint:
            opened = open_checkpoint(self.source.checkpoint)
            copy = partial(copy_without_code, opened.folder, self.checkpoint, surplus_head(opened))
            self._stage("checkpoint", self._weights_key, [self.checkpoint], copy)
        else:
            self._stage("merge", self._weights_key, [self.checkpoint], self._merge)

    def _merge(self) -> dict[str, Any]:
        assert self.source.adapter
        kept, losses = self._chosen_base(self.source.adapter)
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        with bar("Merging") as progress:
            merge(self.base, self.source.adapter, self.checkpoint, progress, simulate_nf4=kept == "nf4")
        return {"base": kept, "losses": losses}

    def _chosen_base(self, adapter: Path) -> tuple[str, dict[str, float]]:
        """Say which form of the base to merge on; measured if asked for, or where measuring is cheap."""
        kept = self.settings.base
        if kept is None:
            n_params = open_checkpoint(self.base).n_params
            on_gpu = torch.cuda.is_available() and 3 * n_params < torch.cuda.mem_get_info()[0]
            tests = any(row.split == "test" for row in self._run_rows)
            kept = "auto" if tests and (on_gpu or n_params < SMALL_PARAMS) else "full"
        if kept != "auto":
            return kept, {}
        if not self.source.prompts:
            raise ConvertError("--base auto needs the run's prompts.jsonl; say --base full or --base nf4")
        with bar("Choosing the base") as progress:
            kept, losses = choose_base(self.base, adapter, self._run_rows, progress)
        said = ", ".join(f"{form} {loss:.4f}" for form, loss in losses.items())
        print("Held-out loss:", said or "not compared, for a GPTQ base was never NF4", flush=True)
        return kept, losses

    def convert(self) -> None:
        """Have the 16-bit GGUF that serves all types."""

        def work() -> str:
            self.merge()
            kind = outtype(Checkpoint(self.checkpoint))
            with bar("Converting to GGUF") as progress:
                quantise.convert_checkpoint(self.checkpoint, self.sixteen_bit, kind, self.name, progress)
            return kind

        self.sixteen_type = self._stage("convert", self._sixteen_key, [self.sixteen_bit], work)

    @cached_property
    def _run_rows(self) -> list[Row]:
        """The chats that the run recorded, none if it didn't."""
        return load_rows(self.source.prompts) if self.source.prompts else []

    @cached_property
    def rows(self) -> list[Row]:
        """The chats to test with: the run's, else the project's own, encoded by the chat engine."""
        if self._run_rows:
            size = read_gguf(self.sixteen_bit).n_vocab
            if (largest := max(max(row.ids) for row in self._run_rows)) >= size:
                raise ConvertError(f"{self.source.prompts}: id {largest} is beyond the model's {size} tokens")
            return self._run_rows
        path = self.work / "rows.jsonl"

        def work() -> None:
            now = time.strftime("%Y-%m-%dT%H:%M:%S")
            with chat_model(self.sixteen_bit, now) as model:
                save_rows(path, plain_rows(model.encoder, model.file.vocab.eog_ids, now))

        self._stage("rows", self._sixteen_key, [path], work)
        return load_rows(path)

    @cached_property
    def _data_key(self) -> str:
        return key(self._sixteen_key, self.source.prompts)

    @cached_property
    def _matrix_key(self) -> str:
        given = self.settings.imatrix
        return self._data_key if given == "auto" else key(given if given == "none" else Path(given))

    def refer(self) -> None:
        """Have the checkpoint's own answers on disk; afterwards it isn't needed any more."""

        def work() -> None:
            self.merge()
            with bar("Asking the checkpoint") as progress:
                files = (self.checkpoint, self.sixteen_bit)
                reference(*files, self.rows, self.references, progress, self._merge_inputs)

        self._stage("reference", key(self._data_key, REFERENCE), [self.references], work)
        if not self.settings.keep:
            shutil.rmtree(self.checkpoint, ignore_errors=True)

    @property
    def _merge_inputs(self) -> MergeInputs | None:
        """What the checkpoint was merged of; None where it came as it is."""
        if not self.source.adapter:
            return None
        return MergeInputs(self.base, self.source.adapter, self.stages.note("merge")["base"] == "nf4")

    def imatrix(self) -> Path | None:
        """Have the importance matrix; None where none is wanted, or the run has too little text for one."""
        if self.settings.imatrix == "none":
            return None
        if self._given_imatrix:
            return Path(self.settings.imatrix)
        rows = [row for row in self.rows if row.split == "train"]
        if not self.source.prompts or sum(len(row.ids) for row in rows) < IMATRIX_TOKENS:
            return None
        target, text = self.work / "imatrix.gguf", self.work / "imatrix.txt"

        def work() -> None:
            with chat_model(self.sixteen_bit) as model:
                rendered = [model.encoder.render(row.messages, False) for row in rows]
            text.write_text("\n".join(rendered), encoding="utf-8")
            with bar("Importance matrix") as progress:
                quantise.importance_matrix(self.sixteen_bit, text, target, progress)

        self._stage("imatrix", self._data_key, [target], work)
        return target

    def quantise(self, kind: str) -> Path:
        """Have the GGUF of type `kind`, not verified yet."""
        if kind == self.sixteen_type:
            return self.sixteen_bit
        target = self.work / f"{kind}.gguf"
        matrix = None if kind in quantise.SIXTEEN_BIT else self.imatrix()
        if matrix is None and kind in quantise.NEED_IMATRIX:
            raise ConvertError(f"{kind} can't do without an importance matrix; give one: --imatrix FILE")

        def work() -> dict[str, Any]:
            predicted = quantise.predicted_size(self.sixteen_bit, kind)
            with bar(f"Quantising to {kind}") as progress:
                quantise.quantise(self.sixteen_bit, target, kind, matrix, progress)
            return {"predicted_size": predicted}

        self._stage(kind, self.key_of(kind), [target], work)
        return target

    def key_of(self, kind: str) -> str:
        """The key of everything that the file of type `kind` depends on."""
        return key(self._data_key, kind, self._matrix_key)

    def is_made(self, kind: str) -> bool:
        """Whether the verified file of type `kind` is in models/, made of the same things."""
        return self.stages.done(f"verified {kind}", self.key_of(kind))

    def made(self, kind: str, final: Path, note: dict[str, Any]) -> None:
        """Record that it is."""
        self.stages.finish(f"verified {kind}", self.key_of(kind), [final], note)

    def note_of(self, kind: str) -> Any:
        """What `made` was told."""
        return self.stages.note(f"verified {kind}")

    def check_tools(self, types: list[str]) -> None:
        """Find out now what would fail after the merge. Raises ConvertError."""
        base = self.source.checkpoint or self.base
        for line in check_tokenizer(base, self.source.adapter, self.origin, self._run_rows):
            print(line, flush=True)
        llamacpp.tool("llama-quantize")
        llamacpp.converter()
        sparse = [kind for kind in types if kind in quantise.NEED_IMATRIX]
        if sparse and (self.settings.imatrix == "none" or not (self.source.prompts or self._given_imatrix)):
            raise ConvertError(f"{sparse[0]} can't do without an importance matrix; give one: --imatrix FILE")

    def check_source(self) -> None:
        """Find out now whether base and adapter, or the checkpoint, can be taken. Raises ConvertError."""
        if self.source.checkpoint:
            is_tied(open_checkpoint(self.source.checkpoint))
        elif self.source.adapter:
            MergePlan(open_checkpoint(self.base), Adapter(self.source.adapter))

    @property
    def _given_imatrix(self) -> bool:
        return self.settings.imatrix not in ("auto", "none")

    def verify(self, gguf: Path, kind: str) -> Report:
        """Run all checks on a file."""
        note = self.stages.note(kind) if gguf != self.sixteen_bit else {}
        predicted = note.get("predicted_size", gguf.stat().st_size)
        started = time.perf_counter()
        with bar(f"Verifying {kind}") as progress:
            report = verify(gguf, self.sixteen_bit, self.references, self.rows, predicted, progress)
        self.costs.append((f"verify {kind}", time.perf_counter() - started, 0))
        return report


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
