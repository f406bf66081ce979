"""Hugging Face checkpoints on disk, one tensor at a time: read memory-mapped, written in shards.

Only safetensors, a format that can't run code; the library of that name parses and writes it. It refuses a
file whose header and length disagree, so a download that was cut short is noticed when it is opened.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from core.errors import ConvertError
from core.families import text_config, text_name
from core.files import read_json, whole_folder, write_json
from core.other_formats import other_format

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_FILE = re.compile(r"[\w.-]+\.safetensors")
SHARD_BYTES = 250_000_000  # the writer holds two of these in memory, unless one tensor alone is larger

# As safetensors spells them; 8-bit floats need scales that only their own library knows.
DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorFile:
    """The tensors of one safetensors file, in the order in which they lie on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        with self._open() as file:
            for name in file.offset_keys():
                about = file.get_slice(name)
                kind = about.get_dtype()
                if kind not in DTYPES:
                    raise ConvertError(
                        f"{path}: {name} is stored as {kind}, not as 16-bit floats; use the 16-bit model"
                    )
                self.shapes[name], self.dtypes[name] = tuple(about.get_shape()), DTYPES[kind]

    def read(self, name: str) -> torch.Tensor:
        """Map one tensor. Not kept open: its pages count as this process's memory until it is dropped."""
        with self._open() as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor

    def _open(self) -> Any:
        try:
            return safe_open(self.path, "pt")
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ConvertError(
                f"{self.path} is not a whole safetensors file ({error}); get it again"
            ) from None


class Checkpoint:
    """A folder with config.json and safetensors, in one file or in shards with an index.

    Of several saves in one folder, the files that transformers would read, and no others: `paths`.
    """

    def __init__(self, folder: Path) -> None:
        """Read the config and all headers. Raises ConvertError."""
        self.folder = folder
        self.config = read_json(folder / "config.json")
        self.paths, wanted = _paths(folder, self.config.get("transformers_weights"))
        self._files: dict[str, TensorFile] = {}
        for path in self.paths:  # a tensor that two shards hold is the later one's, as in transformers
            file = TensorFile(path)
            self._files |= dict.fromkeys(file.shapes, file)
        for name, file_name in wanted.items():
            if name not in self._files:
                raise ConvertError(f"{folder / INDEX} looks for {name} in {file_name}, where it isn't")
        if not self._files:
            raise ConvertError(f"{folder} holds no tensors")

    @property
    def weight_map(self) -> dict[str, Path]:
        """The file of each tensor."""
        return {name: file.path for name, file in self._files.items()}

    @property
    def names(self) -> list[str]:
        """All tensors, in the order that reads the disk from front to back."""
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._files[name].shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """The type of a tensor's values, without reading it."""
        return self._files[name].dtypes[name]

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor, which may be a view of the file: don't change it."""
        return self._files[name].read(name)

    @property
    def n_params(self) -> int:
        """The number of values in all tensors."""
        return sum(prod(self.shape(name)) for name in self.names)

    @property
    def size_bytes(self) -> int:
        """The size of all tensors."""
        return sum(prod(self.shape(name)) * self.dtype(name).itemsize for name in self.names)


def _paths(folder: Path, named: object) -> tuple[list[Path], dict[str, str]]:
    """The files in transformers' order of preference, and the file of each tensor that an index names.

    `named`: config.json's `transformers_weights`, which goes before all (_get_resolved_checkpoint_files).
    """
    if named is not None:
        if not isinstance(named, str) or not _FILE.fullmatch(named.removesuffix(".index.json")):
            raise ConvertError(
                f"{folder / 'config.json'}: transformers_weights {named!r} is no file beside it"
            )
        if not (folder / named).is_file():
            raise ConvertError(f"{folder} lacks {named}, which its config.json names; get that file too")
    single, index = folder / str(named or SINGLE), folder / str(named or INDEX)
    if single.is_file() and not single.name.endswith(".json"):
        return [single], {}
    if not index.is_file():
        raise ConvertError(_no_weights(folder))
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConvertError(f"{index} has no weight_map; get it again")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _FILE.fullmatch(file):
            raise ConvertError(f"{index} puts {name} into {file!r}, which is no file of that folder")
        if not (folder / file).is_file():
            raise ConvertError(f"{folder} lacks {file}, where {INDEX} puts {name}; get that file too")
    return [folder / file for file in sorted(set(weight_map.values()))], weight_map


def _no_weights(folder: Path) -> str:
    """Say what is there instead."""
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if other := other_format([path.name for path in folder.iterdir()], str(folder)):
        return other
    if found:
        return (
            f"{folder} holds {found[0]}, and neither {SINGLE} nor {INDEX}, from which transformers would "
            "know what to read; get the missing file too"
        )
    instead = "pickled weights (.bin), which could run code" if any(folder.glob("*.bin")) else "no weights"
    return (
        f"{folder} holds {instead}, instead of {SINGLE} or {INDEX}; "
        "save it again with model.save_pretrained, which writes safetensors"
    )


class CheckpointWriter:
    """Writes a checkpoint into `<folder>.partial`, which becomes `folder` at the end.

    One shard is written while the next one is filled.

    In a `with` statement an exception removes what was written; other files of the checkpoint (config,
    tokenizer) belong into `partial` too.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists():
            raise ConvertError(f"{folder} is there already; delete it, or choose another folder")
        self._files = ExitStack()
        self.partial = self._files.enter_context(whole_folder(folder))
        self._shard: dict[str, torch.Tensor] = {}
        self._shards: list[list[str]] = []
        self._held = self._total = 0
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take a tensor, which is not to be changed any more; write all that wait when they fill a shard."""
        if self._shard and self._held + tensor.nbytes > SHARD_BYTES:
            self._write()
        self._shard[name] = tensor.contiguous()
        self._held += tensor.nbytes

    def _write(self) -> None:
        self._wait()
        self._shards.append(list(self._shard))
        path = self.partial / f"{len(self._shards)}.safetensors"
        self._writing = self._thread.submit(save_file, self._shard, path, {"format": "pt"})
        self._total += self._held
        self._shard, self._held = {}, 0

    def _wait(self) -> None:
        """Wait for the shard that is being written. Raises ConvertError, say for a full disk."""
        try:
            if self._writing:
                self._writing.result()
        except (SafetensorError, OSError) as error:
            raise ConvertError(f"{self.partial} could not be written ({error}); is the disk full?") from None

    def finish(self) -> None:
        """Write the last shard and the index; from now on `partial` can be read."""
        self._write()
        self._wait()
        count = len(self._shards)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards, 1):
            file = SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            (self.partial / f"{number}.safetensors").rename(self.partial / file)
            weight_map |= dict.fromkeys(names, file)
        if count > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
            write_json(self.partial / INDEX, index)

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._files, self._thread:
            if error:
                raise error
            if self._shard:
                self.finish()


class TextCheckpoint(Checkpoint):
    """Looks like the text model's own checkpoint; `left_out` are the stored names of other parts' tensors."""

    def __init__(self, folder: Path) -> None:
        """Read headers and config. Raises ConvertError."""
        super().__init__(folder)
        if self.config.get("quantization_config"):
            raise ConvertError(
                f"{folder} is quantised and has a vision part, which together can't be converted; give the "
                "16-bit model that it was made from: --base-model DIR"
            )
        self._stored = {text: name for name in super().names if (text := text_name(name))}
        self.left_out = [name for name in super().names if text_name(name) is None]
        self.whole_type = str(self.config.get("model_type"))
        self.config = _text_config(folder)

    @property
    def names(self) -> list[str]:
        """All tensors of the text model, in the order that reads the disk from front to back."""
        return list(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return super().shape(self._stored[name])

    def dtype(self, name: str) -> torch.dtype:
        """The type of a tensor's values, without reading it."""
        return super().dtype(self._stored[name])

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor, which may be a view of the file: don't change it."""
        return super().read(self._stored[name])


def _text_config(folder: Path) -> dict[str, Any]:
    """The text model's config.json. Raises ConvertError."""
    from transformers import AutoConfig  # seconds to import
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    try:
        config = text_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConvertError(f"transformers can't read {folder / 'config.json'}: {reason}") from None
    content: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    content = {key: value for key, value in content.items() if key not in ("part_of", "_name_or_path")}
    return content | {"architectures": [CLASSES[config.model_type]]}
