"""What verification needs of the checkpoint, computed by torch and transformers before it is deleted.

Arithmetic is fp32 on the stored 16-bit weights (arithmetic.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from convert.verify.answers import GREEDY, PROMPTS, Answer, prompts
from convert.verify.tokens import NASTY, Facts, Tokenized
from core.errors import ConvertError
from core.gguf_vocab import form_of
from core.log_probs import LogProbs, float32_arithmetic, loading_dtype, log_probs
from core.prompt import FALLBACK_TEMPLATE
from core.rows import Row
from core.templates import TemplateRenderer
from core.tokenizer import adds_bos, flat_numbers

MAX_PROMPT = 512  # tokens; a longer one says nothing more, and takes minutes
MAX_ADDED = 32  # of thousands that a Gemma has
# What a rule of an added token changes: spaces beside it, and letters.
BESIDE = ("er {} gehen", "a{}b", "x  {}\ny", "{} und {}")
TOGETHER = 4  # answers: a Phi keeps 0.8 MB for each token of them, in fp32


class ReferenceModel:
    """A Hugging Face checkpoint and its tokenizer, loaded without running any code of its own."""

    def __init__(self, folder: Path, now: str = "") -> None:
        """Load it; `now` is the time that its template is told. Raises ConvertError."""
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self.folder, self.now = folder, now
        stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        disable_progress_bar()  # type: ignore[no-untyped-call]  # there is one of ours
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
            self.model: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=loading_dtype(stored),
                attn_implementation="eager",
                use_safetensors=True,
                **options,
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConvertError(f"transformers can't load the checkpoint {str(folder)!r}: {reason}") from None
        self.model.eval()  # type: ignore[no-untyped-call]
        float32_arithmetic(self.model)
        self._renderer = TemplateRenderer()

    def close(self) -> None:
        self._renderer.close()
        del self.model

    @property
    def chat_template(self) -> str | None:
        """As transformers chooses it: the file before the tokenizer's configuration."""
        template = self.tokenizer.chat_template
        return template.get("default") if isinstance(template, dict) else template

    def render(self, messages: list[dict[str, str]], generate: bool) -> str:
        """Fill the template; raises TemplateError."""
        template = self.chat_template or FALLBACK_TEMPLATE
        bos, eos = self.tokenizer.bos_token or "", self.tokenizer.eos_token or ""
        return self._renderer.render(template, messages, generate, bos, eos, self.now)

    def ids(self, text: str) -> list[int]:
        """Ids of a text, no BOS added."""
        found: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of a prompt, with one BOS if the tokenizer adds one."""
        ids, bos = self.ids(self.render(messages, True)), self.tokenizer.bos_token_id
        while ids[:2] == [bos, bos]:
            del ids[0]
        return ids if not self.adds_bos or ids[:1] == [bos] else [bos, *ids]

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts a BOS before any text."""
        return adds_bos(self.tokenizer)

    def facts(self) -> Facts:
        """What its files say, for `check_metadata`."""
        config = _json(self.folder / "config.json")
        text = config.get("text_config") or config
        generation = _json(self.folder / "generation_config.json")
        sources = (text, config, generation)
        return Facts(
            architecture=next(iter(config.get("architectures") or []), None),
            n_ctx=text.get("max_position_embeddings"),
            vocab_sizes=flat_numbers([text.get("vocab_size"), len(self.tokenizer)]),
            bos_ids=flat_numbers([self.tokenizer.bos_token_id, *(s.get("bos_token_id") for s in sources)]),
            eos_ids=flat_numbers([self.tokenizer.eos_token_id, *(s.get("eos_token_id") for s in sources)]),
            end_of_turn_id=self._end_of_turn(),
            chat_template=self.chat_template,
            adds_bos=self.adds_bos,
            unicode_form=form_of(self.tokenizer),
        )

    def _end_of_turn(self) -> int | None:
        """The first special token that the template writes after a reply."""
        mark = "zreplyz"
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}]
        special = set(self.tokenizer.added_tokens_decoder) | set(self.tokenizer.all_special_ids)
        after = self.render(turns, False).partition(mark)[2]
        return next((i for i in self.ids(after) if i in special), None)

    def tokenized(self, rows: Sequence[Row]) -> list[Tokenized]:
        """The texts of the rows' messages and the odd ones, each once."""
        plain = dict.fromkeys(message["content"] for row in rows for message in row.messages)
        texts = [(text, False) for text in plain] + [(text, True) for text in NASTY]
        found = [Tokenized(text, self.ids(text), nasty) for text, nasty in texts]
        return [*found, *self._added()]

    def _added(self) -> Iterator[Tokenized]:
        """The added tokens inside of text: all that ask for a rule of their own, and some of the others."""
        added = self.tokenizer.added_tokens_decoder.values()
        ruled = [token for token in added if token.lstrip or token.rstrip or token.single_word]
        plain = [token for token in added if token not in ruled]
        typed = [token for token in plain if not token.special]
        chosen = [
            *ruled,
            *typed[:: max(1, len(typed) // MAX_ADDED)],
            *plain[:: max(1, len(plain) // MAX_ADDED)],
        ]
        for token in dict.fromkeys(map(str, chosen)):
            special = next(one.special for one in added if str(one) == token)
            for text in (beside.replace("{}", token) for beside in BESIDE):
                yield Tokenized(text, self.ids(text), False, token, special)

    def stop_ids(self) -> list[int]:
        """All tokens that end a reply."""
        facts = self.facts()
        return flat_numbers([*facts.eos_ids, facts.end_of_turn_id])

    @torch.inference_mode()
    def answers(self, rows: Sequence[Row]) -> list[Answer]:
        """Greedy answers to the first of the rows' prompts that are short enough, a few at a time."""
        chats = [(chat, ids) for chat in prompts(rows) if len(ids := self.prompt_ids(chat)) <= MAX_PROMPT]
        answers: list[Answer] = []
        for start in range(0, min(PROMPTS, len(chats)), TOGETHER):
            answers += self._answers(chats[:PROMPTS][start : start + TOGETHER])
        return answers

    def _answers(self, chats: Sequence[tuple[list[dict[str, str]], list[int]]]) -> list[Answer]:
        """Answers to messages with their prompts' ids, in one batch padded on the left."""
        asked = [ids for _, ids in chats]
        width, stops = max(map(len, asked)), self.stop_ids()
        # In the place of the checkpoint's own, which may sample or penalise.
        self.model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            max_new_tokens=GREEDY.max_tokens,
            eos_token_id=stops or None,
            pad_token_id=(stops or [0])[0],
            return_dict_in_generate=True,
            output_logits=True,
        )
        found = self.model.generate(
            input_ids=torch.tensor([[0] * (width - len(ids)) + ids for ids in asked]),
            attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in asked]),
        )
        best = torch.stack([logits.float().topk(2).values for logits in found.logits], dim=1)
        answers = []
        for i, (chat, ids) in enumerate(chats):
            reply = found.sequences[i, width:].tolist()
            end = next((at for at, token in enumerate(reply) if token in stops), None)
            margins = (best[i, :, 0] - best[i, :, 1])[:end].tolist()
            text = self.tokenizer.decode(reply[:end], skip_special_tokens=True)
            answers.append(Answer(chat, ids, reply[:end], margins, end is not None, not text.strip()))
        return answers

    def log_probs(self, rows: Sequence[Row], on_row: Callable[[], None]) -> Iterator[LogProbs]:
        """Yield the distribution before each trained token, in the rows' order."""
        return log_probs(self.model, rows, on_row)


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
