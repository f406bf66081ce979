"""The small files of a checkpoint: tokenizer, chat template, stop tokens; carried over and checked.

transformers 5 doesn't save `tokenizer.model`, and reads no code here: `auto_map` entries, with which
a checkpoint asks for Python code of its own, are left out of everything that is written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from convert.errors import ConvertError
from convert.source import read_json

CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
SENTENCEPIECE = "tokenizer.model"
VOCABULARY = ("tokenizer.json", SENTENCEPIECE, "vocab.json", "merges.txt", "added_tokens.json")
SETTINGS = (CONFIG, "special_tokens_map.json", TEMPLATE)
# Tokens that end a turn. Where the template writes one, it stops generation, whatever the configs say.
ENDS_OF_TURN = ("<|end|>", "<|im_end|>", "<end_of_turn>", "<|eot_id|>", "</s>")
# Gemma 3's text models keep the token for pictures in their tokenizer and have no row for it.
WITHOUT_ROW = ("<image_soft_token>",)


class TokenizerFiles:
    """Which file comes from where: an adapter's own tokenizer wins, the rest is the base's."""

    def __init__(self, base: Path, adapter: Path) -> None:
        self._base, self._adapter = base, adapter
        self.paths: dict[str, Path] = {}
        own = (adapter / CONFIG).is_file()
        for name in (*VOCABULARY, *SETTINGS):
            # Settings belong together: the base's special tokens or template may be what training replaced.
            folders = [adapter] if own and name in SETTINGS else [adapter, base]
            if name == SENTENCEPIECE:
                folders = [base, adapter]
            if found := [folder / name for folder in folders if (folder / name).is_file()]:
                self.paths[name] = found[0]
        self.config = read_json(self.paths[CONFIG]) if CONFIG in self.paths else {}
        if own and "chat_template" not in self.config and (base / TEMPLATE).is_file():
            self.paths.setdefault(TEMPLATE, base / TEMPLATE)
        try:
            self.tokens = self._tokens()
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise ConvertError(
                f"the tokenizer of {self.paths.get(CONFIG, base)} is broken ({error}); get it again"
            ) from None

    def _tokens(self) -> dict[str, int]:
        """The id of each token, as far as the JSON files tell."""
        tokens: dict[str, int] = {}
        if "tokenizer.json" in self.paths:
            content = read_json(self.paths["tokenizer.json"])
            vocab = content.get("model", {}).get("vocab", {})
            tokens = dict(vocab) if isinstance(vocab, dict) else {row[0]: i for i, row in enumerate(vocab)}
            tokens |= {token["content"]: token["id"] for token in content.get("added_tokens", [])}
        if "added_tokens.json" in self.paths:
            tokens |= read_json(self.paths["added_tokens.json"])
        added = self.config.get("added_tokens_decoder", {})
        return tokens | {token["content"]: int(number) for number, token in added.items()}

    def template(self) -> str:
        """The chat template; empty if there is none."""
        if TEMPLATE in self.paths:
            return self.paths[TEMPLATE].read_text(encoding="utf-8")
        found = self.config.get("chat_template") or ""
        if isinstance(found, list):  # several templates by name
            found = next((entry["template"] for entry in found if entry.get("name") == "default"), "")
        return str(found)

    def check(self, model: dict[str, Any], rows: int, origin: str) -> None:
        """Check the tokenizer against a model's config and its embedding's rows. Raises ConvertError.

        More rows than tokens are fine: many models pad their embedding.
        """
        where = f"{self._adapter} and {self._base}"
        missing = not {"tokenizer.json", SENTENCEPIECE, "vocab.json"} & self.paths.keys()
        if SENTENCEPIECE not in self.paths and (missing or needs_sentencepiece(model, self._base)):
            raise ConvertError(
                f"a GGUF of a {model.get('model_type')} needs {SENTENCEPIECE}, which is neither in {where}; "
                "get it from where the base came from: "
                f"hf download {origin} {SENTENCEPIECE} --local-dir {self._base}"
            )
        longest = max(
            (token for token in self.tokens if token not in WITHOUT_ROW),
            key=self.tokens.__getitem__,
            default=None,
        )
        if longest is not None and self.tokens[longest] >= rows:
            raise ConvertError(
                f"the tokenizer of {where} has {self.tokens[longest] + 1} tokens (the last is {longest!r}), "
                f"the embedding {rows} rows; train again with embed_tokens and lm_head in modules_to_save"
            )

    def stop_ids(self, configs: Iterable[dict[str, Any]]) -> list[int]:
        """All token ids that end a reply: the configs', and those that the template ends a turn with."""
        ids: list[int] = []
        for config in configs:
            found = config.get("eos_token_id")
            ids += found if isinstance(found, list) else [] if found is None else [found]
        template = self.template()
        ends = [token for token in ENDS_OF_TURN if token in template]
        if "eos_token" in template:
            eos = self.config.get("eos_token")
            ends.append(eos["content"] if isinstance(eos, dict) else str(eos))
        ids += [self.tokens[token] for token in ends if token in self.tokens]
        return list(dict.fromkeys(ids))

    def copy(self, target: Path) -> None:
        """Write all files into `target`."""
        for name, path in self.paths.items():
            if name != CONFIG:
                shutil.copyfile(path, target / name)
        if self.config:
            config = {key: value for key, value in self.config.items() if key != "auto_map"}
            original = self._base / CONFIG
            if original.is_file() and "tokenizer_class" in (before := read_json(original)):
                # llama.cpp and older transformers know this name, not transformers 5's "TokenizersBackend"
                config["tokenizer_class"] = before["tokenizer_class"]
            if SENTENCEPIECE in self.paths and "tokenizer.json" in self.paths:
                # transformers 5 no longer writes it; llama.cpp finds a SentencePiece's added tokens only here
                added = read_json(self.paths["tokenizer.json"]).get("added_tokens", [])
                decoder = {str(token["id"]): {k: token[k] for k in token if k != "id"} for token in added}
                config["added_tokens_decoder"] = decoder | config.get("added_tokens_decoder", {})
            write_json(target / CONFIG, config)


def needs_sentencepiece(model: dict[str, Any], folder: Path) -> bool:
    """Whether llama.cpp's converter reads tokenizer.model for this architecture and nothing else.

    As in its conversion/gemma.py and conversion/phi.py; a Phi-4 calls itself a Phi-3, with another tokenizer.
    """
    kind = model.get("model_type")
    if kind == "phi3" and (folder / CONFIG).is_file():
        return read_json(folder / CONFIG).get("tokenizer_class") != "GPT2Tokenizer"
    return kind in ("phi3", "gemma", "gemma2")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as the libraries do, with two spaces."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
