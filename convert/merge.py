"""Merge an adapter into its base, one tensor at a time: python convert/merge.py RUN [--base-model DIR]

A tensor keeps the type in which the base stores it, and is rounded to it once, from fp32: for a bf16 base the
result is the bf16 of PEFT's own merge in fp32. An f16 or f32 base isn't turned into bf16, for that would
round once more what the next step, the 16-bit GGUF, rounds anyway.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from chat.command import Parser, missing, run

try:
    import torch

    from chat.machine import human_size
    from convert.adapter import Adapter
    from convert.base import find_base
    from convert.checkpoint import Checkpoint, CheckpointWriter
    from convert.errors import ConvertError
    from convert.gptq import open_checkpoint
    from convert.merge_plan import MergePlan
    from convert.progress import bar
    from convert.source import command_for, find_source, read_json
    from convert.tokenizer_files import TokenizerFiles, to_convert, write_json
except KeyboardInterrupt:  # torch takes seconds to import
    sys.exit(130)
except ModuleNotFoundError as error:
    sys.exit(missing(error))

ROOT = Path(__file__).resolve().parents[1]
GENERATION = "generation_config.json"

Progress = Callable[[int, int], None]


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
