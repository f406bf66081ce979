"""Merge an adapter into its base, one tensor at a time: python convert/merge.py RUN [--base-model DIR]

A tensor keeps the type in which the base stores it, and is rounded to it once, from fp32: for a bf16 base the
result is the bf16 of PEFT's own merge in fp32. An f16 or f32 base isn't turned into bf16, for that would
round once more what the next step, the 16-bit GGUF, rounds anyway.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from core.command import ROOT, Parser, missing, run

try:
    from collections.abc import Iterable, Iterator
    from math import prod
    from typing import Any

    import torch

    from convert.adapter import EMBEDDINGS, HEADS, Adapter
    from convert.base import find_base
    from convert.loading import has_own_head, ties_head
    from convert.source import command_for, find_source
    from convert.tokenizer_files import TokenizerFiles, to_convert
    from core.checkpoint import Checkpoint, CheckpointWriter
    from core.errors import ConvertError
    from core.files import read_json, write_json
    from core.gptq import open_checkpoint
    from core.machine import human_size
    from core.progress import Progress, bar
except KeyboardInterrupt:  # torch takes seconds to import
    sys.exit(130)
except ModuleNotFoundError as error:
    sys.exit(missing(error))

GENERATION = "generation_config.json"


def merge(base: Path, adapter: Path, out: Path, progress: Progress, simulate_nf4: bool = False) -> list[str]:
    """Write the merged checkpoint to `out`, which must not be there yet; return lines on what was left out.

    `progress` gets bytes done, in all.
    `simulate_nf4`: add the update to the values that QLoRA trained on, instead of the base's own.
    Memory: two shards, one filled and one written, and a few tensors. Raises ConvertError and leaves nothing.
    """
    model, update = open_checkpoint(base), Adapter(adapter)
    plan = MergePlan(model, update)
    files = TokenizerFiles(base, adapter)
    files.check(plan.config, plan.rows, str(update.config.get("base_model_name_or_path")))
    done = 0
    with CheckpointWriter(out) as writer, _one_thread():
        for name, tensor in plan.tensors(simulate_nf4):
            writer.add(name, tensor)
            done += tensor.nbytes
            progress(min(done, plan.size_bytes), plan.size_bytes)
        files.copy(writer.partial, plan.config)
        write_json(writer.partial / "config.json", to_convert(plan.config, plan.rows))
        generation = read_json(base / GENERATION) if (base / GENERATION).is_file() else {}
        stop_ids = files.stop_ids([generation, plan.config, plan.config.get("text_config", {})])
        if stop_ids:
            generation["eos_token_id"] = stop_ids
        write_json(writer.partial / GENERATION, to_convert(generation, plan.rows))
    return update.notes()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch's work on one core. The other one writes; and where others use the cores, too, threads that
    wait for each other after every small block took ten times as long as one that never waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(argv: list[str]) -> int:
    """Merge a run's adapter, and print what was made; return the exit code."""
    parser = Parser(prog="python convert/merge.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="a run in outputs/, or an adapter's folder")
    parser.add_argument(
        "--base-model", metavar="DIR", help="where the base is, if not where the adapter says"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="the folder to make (outputs/RUN/merged)")
    given = parser.parse_args(argv)

    def work() -> int:
        source = find_source(given.run, ROOT / "outputs")
        if source.adapter is None:
            raise ConvertError(f"{given.run!r} is a whole checkpoint already; next: {command_for(given.run)}")
        out = given.out or source.folder / "merged"
        Adapter(source.adapter)  # what can't be merged anyway needs no base, which may be a download
        base = find_base(source.adapter, given.base_model, source.folder / "convert")
        with bar("Merging", "B") as progress:
            notes = merge(base, source.adapter, out, progress)
        for line in notes:
            print(line)
        made = Checkpoint(out)
        print(f"{out}: {len(made.names)} tensors, {human_size(made.size_bytes)}, merged on {base}")
        based = f" --base-model {shlex.quote(given.base_model)}" if given.base_model else ""
        print(f"Next: {command_for(given.run)}{based} --quant q5")
        return 0

    return run(work, "Stopped; nothing was kept.")


DROPPED = ("auto_map", "torch_dtype", "quantization_config", "transformers_weights")


class MergePlan:
    """A base and an adapter that fit each other.

    Tied embeddings: a head that is the embedding is never written, even if the base stored it twice; one that
    has other values is no tied one, whatever config.json says (transformers, tie_weights). An adapter that
    trains only one of the two, or both apart, unties them: PEFT leaves the other as it was.
    """

    def __init__(self, base: Checkpoint, adapter: Adapter) -> None:
        """Match the two. Raises ConvertError."""
        self._base, self._adapter = base, adapter
        self._sources = {name: name for name in base.names}  # of each tensor that is written
        embedding, head = _ending(EMBEDDINGS, base.names), _ending(HEADS, base.names)
        if embedding is None:
            raise no_embedding(base)
        self._embedding = embedding
        self._tied = is_tied(base)
        self._head = head or _ending(HEADS, [*adapter.low_rank, *adapter.whole]) or HEADS[0]
        shapes = {name: base.shape(name) for name in base.names}
        if self._tied:
            shapes[self._head] = base.shape(embedding)
            self._sources.pop(self._head, None)
        adapter.check(base, shapes)
        if self._tied and self._unties():
            self._sources[self._head] = embedding
            self._tied = False
        self.rows = self._rows(embedding)
        self._check_rows()

    @property
    def size_bytes(self) -> int:
        """The size of all tensors together."""
        return sum(
            prod(self._base.shape(source)) * self._base.dtype(source).itemsize
            for source in self._sources.values()
        )

    @property
    def config(self) -> dict[str, Any]:
        """The base's config.json, true for the merged checkpoint; it asks for no code and no quantisation."""
        config = {key: value for key, value in self._base.config.items() if key not in DROPPED}
        config["dtype"] = str(self._base.dtype(self._embedding)).removeprefix("torch.")
        config["tie_word_embeddings"] = self._tied
        if isinstance(inner := config.get("text_config"), dict):  # a model that reads pictures too
            keys = {key: config[key] for key in ("dtype", "tie_word_embeddings")}
            config["text_config"] = {**inner, **keys, "vocab_size": self.rows}
        else:
            config["vocab_size"] = self.rows
        return config

    def tensors(self, simulate_nf4: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the name and the values of each tensor. Raises ConvertError if one isn't finite."""
        for name, source in self._sources.items():
            weight = self._base.read(source)
            if simulate_nf4:
                from convert import nf4  # bitsandbytes takes seconds to import

                weight = nf4.simulate(weight) if nf4.is_quantised(name, weight) else weight
            tensor = self._adapter.merged(name, weight, self._base.dtype(source))
            if not _is_finite(tensor):
                raise self._not_finite(name, weight, tensor)
            yield name, tensor

    def _not_finite(self, name: str, weight: torch.Tensor, tensor: torch.Tensor) -> ConvertError:
        if not _is_finite(weight):
            return ConvertError(f"{self._base.folder}: {name} holds NaN or infinity; get the base again")
        return ConvertError(
            f"{name} with the update of {self._adapter.folder} is beyond the range of {tensor.dtype}; "
            "the training run broke down, train again with a lower learning rate"
        )

    def _unties(self) -> bool:
        """Whether the head can't stay the embedding. Raises ConvertError where a GGUF can't have that."""
        adapter, embedding, head = self._adapter, self._embedding, self._head
        if adapter.config.get("ensure_weight_tying") or not (
            adapter.touches(embedding) or adapter.touches(head)
        ):
            return False
        if not adapter.touches(head) and self._rows(embedding) != self._base.shape(embedding)[0]:
            if embedding not in adapter.low_rank:
                return False  # resized, and resizing keeps them tied
            adapter.whole[head] = adapter.whole[embedding]  # both resized, and only one trained
        if {embedding, head} <= adapter.whole.keys() and not {embedding, head} & adapter.low_rank.keys():
            both = [adapter.read(adapter.whole[name]) for name in (embedding, head)]
            if torch.equal(*both):
                return False
        refuse_own_head(
            self._base.config,
            f"{adapter.folder} trains embedding and head apart",
            "train again with ensure_weight_tying, or without embed_tokens and lm_head",
        )
        return True

    def _rows(self, name: str) -> int:
        adapter = self._adapter
        shape = adapter.whole_shape(name) if name in adapter.whole else self._base.shape(self._sources[name])
        return shape[0]

    def _check_rows(self) -> None:
        """Embedding and head have to agree on the size of the vocabulary."""
        if self._head in self._sources and self._rows(self._head) != self.rows:
            raise ConvertError(
                f"{self._adapter.folder} makes an embedding of {self.rows} rows and a head of "
                f"{self._rows(self._head)}; train again with both embed_tokens and lm_head in modules_to_save"
            )


def rows_of(checkpoint: Checkpoint) -> int:
    """The rows of a checkpoint's embedding. Raises ConvertError where it has none."""
    embedding = _ending(EMBEDDINGS, checkpoint.names)
    if embedding is None:
        raise no_embedding(checkpoint)
    return checkpoint.shape(embedding)[0]


def no_embedding(checkpoint: Checkpoint) -> ConvertError:
    """What to say of a checkpoint that is no language model."""
    return ConvertError(
        f"{checkpoint.folder} has no embedding ({', '.join(EMBEDDINGS)}): it is no language model"
    )


def _ending(endings: tuple[str, ...], names: Iterable[str]) -> str | None:
    return next((name for name in names if name.endswith(endings)), None)


def is_tied(checkpoint: Checkpoint) -> bool:
    """Whether embedding and head are one tensor: as transformers would load them, or because a GGUF of this
    kind has no other place for them. Raises ConvertError where config.json, files and GGUF can't agree."""
    says_tied = ties_head(checkpoint)
    embedding, head = (_ending(endings, checkpoint.names) for endings in (EMBEDDINGS, HEADS))
    if embedding is None or head is None:
        return True
    apart = checkpoint.shape(embedding) != checkpoint.shape(head) or not torch.equal(
        checkpoint.read(embedding), checkpoint.read(head).to(checkpoint.dtype(embedding))
    )
    if apart:
        refuse_own_head(checkpoint.config, f"{checkpoint.folder} holds a {head} that isn't its {embedding}")
    return not apart and (says_tied or not has_own_head(str(checkpoint.config.get("model_type"))))


def surplus_head(checkpoint: Checkpoint) -> list[str]:
    """A stored copy of the embedding as head that llama.cpp's converter has no name for (Cohere's)."""
    head = _ending(HEADS, checkpoint.names)
    kind = str(checkpoint.config.get("model_type"))
    return [head] if head and is_tied(checkpoint) and not has_own_head(kind) else []


def refuse_own_head(config: dict[str, Any], reason: str, cure: str = "get the base again") -> None:
    """Raises ConvertError where a GGUF of this kind takes its embedding for the head."""
    if not has_own_head(kind := str(config.get("model_type"))):
        raise ConvertError(f"{reason}, and a GGUF of {kind} has one place for both; {cure}")


def _is_finite(tensor: torch.Tensor) -> bool:
    """NaN and infinity both survive a sum, which is quick; a sum that overflowed is looked at closely."""
    return bool(torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
