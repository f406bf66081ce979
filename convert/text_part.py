"""The text model of a checkpoint that has more parts, eyes or ears, as a checkpoint of its own.

Its tensors are found by the names of all layouts that transformers reads (core/families.py) and come out
under the text model's own, with a config of the text model's class: what llama.cpp's converter, transformers
and PEFT all take for a plain text model. Tensors of other parts stay out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from convert.checkpoint import Checkpoint
from convert.errors import ConvertError
from core.families import text_config, text_name


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
