"""The small files of a checkpoint: tokenizer, chat template, stop tokens; carried over and checked.

transformers 5 doesn't save `tokenizer.model` (sentencepiece_file.py rebuilds it), and reads no code here:
`auto_map` entries, with which a checkpoint asks for Python code of its own, are left out of everything that
is written.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Collection, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from convert.sentencepiece_file import adds_space, is_byte_level, is_sentencepiece, rebuild
from core.errors import ConvertError
from core.files import read_json, write_json
from core.other_formats import other_format
from core.template import find_template, write_template

CONFIG = "tokenizer_config.json"
SENTENCEPIECE, TOKENIZER, ADDED = "tokenizer.model", "tokenizer.json", "added_tokens.json"
VOCABULARY = (TOKENIZER, SENTENCEPIECE, "vocab.json", "merges.txt", ADDED)
SETTINGS = (CONFIG, "special_tokens_map.json")
# Tokens that end a turn. Where the template writes one, it stops generation, whatever the configs say.
ENDS_OF_TURN = ("<|end|>", "<|im_end|>", "<end_of_turn>", "<|eot_id|>", "</s>")
# Gemma 3's text models keep the token for pictures in their tokenizer and have no row for it.
WITHOUT_ROW = ("<image_soft_token>",)
# As in the converter's conversion/gemma.py and conversion/phi.py: there is no other way to their vocabulary.
READ_MODEL_FILE = ("phi3", "gemma", "gemma2")

LEFT_OUT = {"cohere2": {"rotary_pct": 1.0}}  # conversion/command_r.py


class TokenizerFiles:
    """Which file comes from where: an adapter's own tokenizer wins, the rest is the base's.

    The chat template is the adapter's, else the base's, wherever in its folder it stands, and is written to
    one place. `dropped` are added tokens without a row in the embedding, which `check` found to be unused.
    """

    def __init__(self, base: Path, adapter: Path) -> None:
        self._base, self._adapter = base, adapter
        self.paths: dict[str, Path] = {}
        self.dropped: set[str] = set()
        self._rebuilds = False  # tokenizer.model, out of tokenizer.json
        own = (adapter / CONFIG).is_file()
        for name in (*VOCABULARY, *SETTINGS):
            # Settings belong together: the base's special tokens may be what training replaced.
            folders = [adapter] if own and name in SETTINGS else [adapter, base]
            if name == SENTENCEPIECE:
                folders = [base, adapter]
            if found := [folder / name for folder in folders if (folder / name).is_file()]:
                self.paths[name] = found[0]
        self.config = read_json(self.paths[CONFIG]) if CONFIG in self.paths else {}
        self._content = read_json(self.paths[TOKENIZER]) if TOKENIZER in self.paths else {}
        try:
            self.chat_template = find_template([adapter, base])
            self.tokens = self._tokens()
        except (AttributeError, KeyError, OSError, TypeError, ValueError, IndexError) as error:
            raise ConvertError(
                f"the tokenizer of {self.paths.get(CONFIG, base)} is broken ({error}); get it again"
            ) from None

    def _tokens(self) -> dict[str, int]:
        """The id of each token, as far as the JSON files tell."""
        model = self._content.get("model", {})
        model.pop("merges", None)  # a quarter of a gigabyte in a Gemma's
        vocab = model.pop("vocab", {})
        tokens = vocab if isinstance(vocab, dict) else {row[0]: i for i, row in enumerate(vocab)}
        tokens |= {token["content"]: token["id"] for token in self._content.get("added_tokens", [])}
        if ADDED in self.paths:
            tokens |= read_json(self.paths[ADDED])
        added = self.config.get("added_tokens_decoder", {})
        return tokens | {token["content"]: int(number) for number, token in added.items()}

    def template(self) -> str:
        """The chat template; empty if there is none."""
        return self.chat_template.text

    def check(self, model: dict[str, Any], rows: int, origin: str, seen: Collection[int] = ()) -> list[str]:
        """Check the tokenizer against a model's config and its embedding's rows; return what was mended.

        `seen`: ids that training saw. More rows than tokens are fine: many models pad their embedding.
        Raises ConvertError.
        """
        self._check_vocabulary(model, origin)
        notes = self._check_other_tokens(rows)
        ends = [token for name in ("bos_token", "eos_token") if (token := self._named(name))]
        beyond = {token: i for token, i in self.tokens.items() if i >= rows and token not in WITHOUT_ROW}
        for token, i in sorted(beyond.items(), key=lambda pair: pair[1]):
            use = "training used it" if i in seen else None
            use = "the chat template writes it" if token in self.template() else use
            use = "it begins or ends a text" if token in ends else use
            if use is None and token != self._named("pad_token") and token not in self._of_the_base:
                use = "it was added for the adapter"
            if use or token not in self._added:
                raise ConvertError(self._no_row(token, i, rows, use))
            self.dropped.add(token)
            notes.append(
                f"Left out the token {token!r} ({i}), which nothing uses: the model has {rows} rows."
            )
        if self._rebuilds:
            notes.append(f"Writing {SENTENCEPIECE} out of {self.paths[TOKENIZER]}: the checkpoint lacks it.")
        return notes

    def _no_row(self, token: str, i: int, rows: int, use: str | None) -> str:
        last = max(self.tokens, key=self.tokens.__getitem__)
        said = (
            f"the tokenizer has {self.tokens[last] + 1} tokens (the last is {last!r}), and the embedding has "
            f"{rows} rows: {token!r} ({i}) has none"
        )
        if use is None:
            return f"{said}; {self.paths.get(TOKENIZER, self._base)} is of another model; get the right one"
        if self._adapter != self._base:
            return (
                f"{said}, though {use}: {self._adapter} was saved without the rows that were added for it; "
                "save it again with model.save_pretrained(folder, save_embedding_layers=True), or train with "
                "embed_tokens and lm_head in modules_to_save"
            )
        return (
            f"{said}, though {use}: {self._base} was saved before its embedding was resized; save it again "
            "after model.resize_token_embeddings(len(tokenizer)), or give it the tokenizer that it came with"
        )

    def _check_vocabulary(self, model: dict[str, Any], origin: str) -> None:
        """See to it that the converter finds the vocabulary as it wants it. Raises ConvertError."""
        kind = str(model.get("model_type"))
        content = self._content
        needed = kind in READ_MODEL_FILE or not {TOKENIZER, "vocab.json"} & self.paths.keys()
        if SENTENCEPIECE in self.paths or not (needed or is_sentencepiece(content)):
            return
        there = [path.name for folder in (self._base, self._adapter) for path in folder.iterdir()]
        if other := other_format(there, str(self._base)):
            raise ConvertError(other)
        cure = (
            "get it from where the base came from: "
            f"hf download {shlex.quote(origin)} {SENTENCEPIECE} --local-dir {shlex.quote(str(self._base))}"
        )
        where = " nor in ".join(dict.fromkeys([str(self._adapter), str(self._base)]))
        if not is_sentencepiece(content):
            if kind == "phi3" and is_byte_level(content):
                return  # a Phi-4
            raise ConvertError(f"a GGUF of a {kind} needs {SENTENCEPIECE}, which is not in {where}; {cure}")
        if kind.startswith("gemma4"):
            return  # llama.cpp reads its merges
        try:
            self._sentencepiece = rebuild(self.paths[TOKENIZER])
        except ConvertError as error:
            raise ConvertError(f"{SENTENCEPIECE} is not in {where}, and {error}; {cure}") from None
        self._rebuilds = True

    def stop_ids(self, configs: Iterable[dict[str, Any]]) -> list[int]:
        """All token ids that end a reply: the configs', and those that the template ends a turn with."""
        ids: list[int] = []
        for config in configs:
            found = config.get("eos_token_id")
            ids += found if isinstance(found, list) else [] if found is None else [found]
        template = self.template()
        ends = [token for token in ENDS_OF_TURN if token in template]
        if "eos_token" in template:
            ends.append(self._named("eos_token"))
        ids += [self.tokens[token] for token in ends if token in self.tokens]
        return list(dict.fromkeys(ids))

    @cached_property
    def _added(self) -> set[str]:
        """The tokens that were added to the vocabulary, which can be taken away again."""
        found = {token["content"] for token in self._content.get("added_tokens", [])}
        found |= set(read_json(self.paths[ADDED])) if ADDED in self.paths else set()
        return found | {token["content"] for token in self.config.get("added_tokens_decoder", {}).values()}

    @cached_property
    def _of_the_base(self) -> dict[str, int]:
        """The base's own tokens: those without a row there were never seen in training."""
        return self.tokens if self._adapter == self._base else TokenizerFiles(self._base, self._base).tokens

    def _check_other_tokens(self, rows: int) -> list[str]:
        """Compare the adapter's tokens with the base's; return a line where added ones differ.

        `rows`: of the merged model. A token that was added has a row that the adapter brings, or one that the
        base has to spare. Raises ConvertError where words have other ids: that is another model's tokenizer.
        """
        base = self._of_the_base
        if base is self.tokens or not (self._base / TOKENIZER).is_file():
            return []
        moved = [token for token, i in self.tokens.items() if base.get(token, i) != i]
        if words := [token for token in moved if token not in self._added]:
            ids = f"{words[0]!r} is {self.tokens[words[0]]} there and {base[words[0]]} here"
            raise ConvertError(
                f"{self._adapter} has the tokenizer of another model than {self._base}: {len(words):,} of "
                f"its tokens have other ids, {ids}; give the right base: --base-model DIR"
            )
        new = [token for token in self._added if token not in base and self.tokens[token] < rows]
        if not (other := sorted(new + moved, key=self.tokens.__getitem__)):
            return []
        return [
            f"note: {len(other):,} added tokens of the adapter's tokenizer are not the base's, the first is "
            f"{other[0]!r} ({self.tokens[other[0]]}); the adapter's are taken"
        ]

    def _named(self, name: str) -> str:
        """A special token of the config, say its eos_token."""
        token = self.config.get(name)
        return str(token["content"] if isinstance(token, dict) else token or "")

    def copy(self, target: Path, model: dict[str, Any]) -> None:
        """Write all files into `target`, in the form that transformers and llama.cpp's converter read.

        `model` is the model's config.json.
        """
        for name, path in self.paths.items():
            if name == CONFIG:
                continue
            if self.dropped and name in (TOKENIZER, ADDED, "special_tokens_map.json"):
                write_json(target / name, self._without(read_json(path)))
            else:
                shutil.copyfile(path, target / name)
        if self._rebuilds:
            (target / SENTENCEPIECE).write_bytes(self._sentencepiece)
        if (config := self._written_config(model)) or self.chat_template.text:
            write_json(target / CONFIG, self._without(config))
        write_template(self.chat_template, target)

    def _written_config(self, model: dict[str, Any]) -> dict[str, Any]:
        left_out = ("auto_map", "chat_template")  # code, and what has its own file
        config = {key: value for key, value in self.config.items() if key not in left_out}
        original = self._base / CONFIG
        if original.is_file() and "tokenizer_class" in (before := read_json(original)):
            # llama.cpp and older transformers know this name, not transformers 5's "TokenizersBackend"
            config["tokenizer_class"] = before["tokenizer_class"]
        content = self._content
        if model.get("model_type") == "phi3":  # the converter asks for this key, and knows a Phi-4 by it
            own = config.get("tokenizer_class", "PreTrainedTokenizerFast")
            config["tokenizer_class"] = "GPT2Tokenizer" if is_byte_level(content) else own
        if self._rebuilds and not adds_space(content):
            config.setdefault("add_prefix_space", False)  # or llama.cpp puts one before a Llama's texts
        if TOKENIZER in self.paths and (SENTENCEPIECE in self.paths or self._rebuilds):
            # transformers 5 no longer writes it; llama.cpp finds a SentencePiece's added tokens only here
            added = content.get("added_tokens", [])
            decoder = {str(token["id"]): {k: token[k] for k in token if k != "id"} for token in added}
            config["added_tokens_decoder"] = decoder | config.get("added_tokens_decoder", {})
        return config

    def _without(self, content: dict[str, Any]) -> dict[str, Any]:
        """A tokenizer's file without the tokens that were dropped."""

        def keeps(key: str, value: Any) -> bool:
            text = value.get("content") if isinstance(value, dict) else value
            return key not in self.dropped and not (isinstance(text, str) and text in self.dropped)

        kept = {key: value for key, value in content.items() if keeps(key, value)}
        for key in ("additional_special_tokens", "extra_special_tokens"):
            if isinstance(listed := kept.get(key), list):
                kept[key] = [token for token in listed if keeps("", token)]
        if isinstance(added := kept.get("added_tokens"), list):
            kept["added_tokens"] = [token for token in added if token["content"] not in self.dropped]
        if isinstance(decoder := kept.get("added_tokens_decoder"), dict):
            kept["added_tokens_decoder"] = {i: token for i, token in decoder.items() if keeps(i, token)}
        return kept


def to_convert(config: dict[str, Any], rows: int) -> dict[str, Any]:
    """A model's config as transformers and the converter take it.

    transformers would refuse to load a padding token that has no row; the converter asks for keys that
    transformers leaves out where they have its one value.
    """
    pad = config.get("pad_token_id")
    config = LEFT_OUT.get(str(config.get("model_type")), {}) | config
    return config if not isinstance(pad, int) or pad < rows else {**config, "pad_token_id": None}


def needs_sentencepiece(model: dict[str, Any], folder: Path) -> bool:
    """Whether llama.cpp's converter reads tokenizer.model for this architecture, and nothing can stand in.

    A Phi-4 calls itself a Phi-3, with another tokenizer.
    """
    if model.get("model_type") not in READ_MODEL_FILE:
        return False
    content = read_json(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else {}
    byte_level = model.get("model_type") == "phi3" and is_byte_level(content)
    return not is_sentencepiece(content) and not byte_level
