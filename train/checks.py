"""What is refused before the first step, each with its reason; a recipe can waive a check by its name."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from core.errors import TrainError
from core.families import is_match
from core.tokenizer import ChatTokenizer
from train.examples import Encoded
from train.layers import Linears, adapted_layers, targets
from train.recipe import Recipe
from train.sections import Arguments, warmup_steps
from train.split import Prepared

LENGTH = "SFTConfig.max_length"  # what the key is called, if nobody says otherwise
MAX_LEFT_OUT = 0.5  # of the rows that were to be examples
# Of the loss on shuffled tokens. SmolLM2 has 0.30 to 0.61 on codes, one-letter labels, hashes, DNA, prose and
# languages that it doesn't know; with shuffled embeddings or another's token ids, 0.90 and more, but for
# text of which each letter is several tokens. Gemma 3 270M, never taught to chat, has 0.38 to 0.75.
MAX_FIRST_LOSS = 0.8
# Of the loss without a BOS, that with one. Gemma 3 270M has 0.51 to 0.65, and SmolLM2 over plain text 1.03.
MAX_BOS_LOSS = 0.8


class Checks:
    """Collects what is wrong, so that all of it is said at once."""

    def __init__(self, waive: Iterable[str], tell: Callable[[str], None]) -> None:
        self._waive, self._tell = set(waive), tell
        self._wrong: list[str] = []
        self.waived: dict[str, str] = {}  # check, reason

    def add(self, name: str, reason: str | None) -> None:
        """Note what check `name` found; None is nothing."""
        if reason is None:
            return
        if name in self._waive:
            self.waived[name] = reason
            self._tell(f"waived ({name}): {reason}")
        else:
            cure = f"--waive {name}, or in the recipe waive: [{name}]"
            self._wrong.append(f"{reason} (to train all the same: {cure})")

    def end(self) -> None:
        """Raise TrainError with everything that is wrong."""
        if self._wrong:
            wrong, self._wrong = self._wrong, []
            raise TrainError("not started:\n  " + "\n  ".join(wrong))


def check_settings(checks: Checks, recipe: Recipe, model_type: str, steps: int) -> None:
    """What the recipe alone tells."""
    if recipe.args.fp16 and model_type.startswith("gemma"):
        checks.add(
            "fp16_gemma",
            f"{recipe.args.title}.fp16: Gemma's activations overflow fp16 (NaN); leave it out for bf16",
        )
    checks.add("warmup", _warmup(recipe.args, steps))


def _warmup(sft: Arguments, steps: int) -> str | None:
    asked = warmup_steps(sft, steps)
    if asked and sft.lr_scheduler_type == "constant":
        return "lr_scheduler_type 'constant' ignores the warm-up; say constant_with_warmup, or no warm-up"
    if asked >= steps:
        return f"the warm-up of {asked} steps fills the run of {steps}; lower warmup_steps or warmup_ratio"
    return None


def check_targets(
    checks: Checks, recipe: Recipe, there: Sequence[Linears], beside: Mapping[str, int] | None = None
) -> None:
    """Every target module must match a layer; `beside`: the other modules with parameters."""
    _check_saved(recipe, there, beside or {})
    names, unmatched = targets(recipe.lora.target_modules, there)
    if unmatched:
        weights = sum(layer.elements for layer in there)
        reached = sum(layer.elements for layer in there if layer.name in names)
        checks.add(
            "unmatched_targets",
            f"LoraConfig.target_modules: {', '.join(unmatched)} match nothing in this model, so only "
            f"{reached / weights:.0%} of its linear weights would get an adapter; there are: "
            f"{', '.join(sorted({layer.name for layer in there}))}",
        )


def _check_saved(recipe: Recipe, there: Sequence[Linears], beside: Mapping[str, int]) -> None:
    """What else LoraConfig names must be there, and such as is trained here. Raises TrainError."""
    lora = recipe.lora
    try:
        layers = adapted_layers(lora, there)
    except ValueError as error:
        raise TrainError(f"LoraConfig: {error}") from None
    keys = [key for layer in layers for key in layer.keys]
    if not keys and not targets(lora.target_modules, there)[1]:
        raise TrainError("LoraConfig: exclude_modules and layers_to_transform leave no layer an adapter")
    for name, patterns in (("rank_pattern", lora.rank_pattern), ("alpha_pattern", lora.alpha_pattern)):
        for pattern in patterns:
            if not any(is_match(pattern, key) for key in keys):
                raise TrainError(
                    f"LoraConfig.{name}: {pattern!r} matches no layer with an adapter, like {keys[0]}"
                )
    linear = [key for layer in there for key in layer.keys]
    for name in lora.modules_to_save or []:
        if name.endswith("lm_head") or any(key.endswith(name) for key in linear):
            raise TrainError(
                f"LoraConfig.modules_to_save: {name} is a linear layer, which an adapter trains here: "
                "name it in target_modules (the head stays as it is); norms can be trained whole"
            )
        if not any(key.endswith(name) for key in beside):
            known = ", ".join(sorted({key.rpartition(".")[2] for key in beside} - {"lm_head"}))
            raise TrainError(
                f"LoraConfig.modules_to_save: {name} matches nothing in this model; "
                f"there are: {known} (the embedding only where the head has weights of its own)"
            )


def check_rows(
    checks: Checks, rows: Sequence[Encoded], tokenizer: ChatTokenizer, lost: int, prose: bool = False
) -> None:
    """What the tokenized rows tell; all of `rows` are looked at. `prose` has no turns that could end."""
    if lost:
        checks.add("rows_lost", f"{lost} rows of the data are neither used nor accounted for")
    if tokenizer.pad_id is None:
        checks.add("pad_is_stop", "the vocabulary has no token to pad with that isn't a stop token")
    checks.add("untrained_stop", None if prose else _stops(rows, tokenizer))
    checks.add("bos", _bos(rows, tokenizer))


def check_left_out(checks: Checks, data: Prepared, max_length: int, key: str = LENGTH) -> None:
    """Refuse data of which most isn't trained, for reasons that nobody asked for."""
    loaded = data.loaded
    reasons = Counter({r: n for r, n in loaded.left_out.items() if r not in loaded.on_purpose})
    meant = loaded.rows_in - (loaded.left_out.total() - reasons.total())
    told = {reason: f"{reason} ({loaded.first[reason]})" for reason in reasons if reason in loaded.first}
    if data.too_long:
        long = f"longer than {key} {max_length:,}"
        reasons[long], told[long] = data.too_long, f"{long} ({data.longest})"
    if meant and reasons.total() / meant > MAX_LEFT_OUT:
        named = "; ".join(f"{count:,} {told.get(reason, reason)}" for reason, count in reasons.most_common())
        checks.add("rows_left_out", f"{reasons.total():,} of {meant:,} rows are left out: {named}")


def check_context(checks: Checks, rows: Sequence[Encoded], config: Any, key: str = LENGTH) -> None:
    """Rows must fit into what the base was made for: beyond it, positions mean nothing to it."""
    limit = context_of(config)
    lengths = [len(row.ids) for row in rows]
    beyond = sum(length > limit for length in lengths) if limit else 0
    if limit and beyond:
        checks.add(
            "context",
            f"{beyond:,} of {len(lengths):,} rows are longer than the base's context of {limit:,} tokens, "
            f"the longest {max(lengths):,}; say {key}: {limit}",
        )


def context_of(config: Any) -> int | None:
    """The most tokens that a base is made for; None if its config doesn't say.

    Where RoPE is scaled, by the rule of vLLM's `_get_and_verify_max_len` (vllm/config/model.py): the factor
    counts, but for kinds whose max_position_embeddings is that of the scaled model.
    """
    config = config.get_text_config()
    limit: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if limit is None or kind in ("default", "su", "longrope", "llama3") or "gemma3" in config.model_type:
        return limit
    if kind == "yarn":
        limit = rope.get("original_max_position_embeddings") or limit
    return int(limit * (rope.get("factor") or 1))


def _stops(rows: Sequence[Encoded], tokenizer: ChatTokenizer) -> str | None:
    for number, row in enumerate(rows, 1):
        replies = sum(message["role"] == "assistant" for message in row.messages)
        turns = replies - row.untrained if replies else 1
        trained = sum(i in tokenizer.stop_ids and m for i, m in zip(row.ids, row.mask, strict=True))
        if trained < turns:
            text = tokenizer.decode(row.ids[-20:])
            return (
                f"row {number} trains {trained} stop tokens in {turns} turns of the assistant, so the model "
                f"would not learn to end (it ends with {text!r}); data.format: chat puts them in"
            )
    return None


def _bos(rows: Sequence[Encoded], tokenizer: ChatTokenizer) -> str | None:
    if tokenizer.bos_id is None or tokenizer.bos_id in tokenizer.stop_ids:
        return None
    for number, row in enumerate(rows, 1):
        count = row.ids[:3].count(tokenizer.bos_id)
        if tokenizer.adds_bos and count != 1:
            return f"row {number} begins with {count} BOS tokens and not with one: {row.ids[:3]}"
        if count > 1:
            return f"row {number} begins with {count} BOS tokens: {row.ids[:3]}"
    return None


def check_first_loss(checks: Checks, ordered: float, shuffled: float) -> None:
    """A base that reads knows more of a text than of its words in no order, however hard the answers are.

    `ordered` and `shuffled` are its losses on the same tokens, prompts included, in nats a token.
    """
    if not (math.isfinite(ordered) and ordered <= MAX_FIRST_LOSS * shuffled):
        checks.add(
            "first_loss",
            f"the loss before the first step is {ordered:.2f} nats a token over whole rows, and "
            f"{shuffled:.2f} with their tokens in no order; a base that reads them stays below "
            f"{MAX_FIRST_LOSS:.0%} of it: a wrong base, tokenizer or template, or a missing BOS",
        )


def check_bos_loss(checks: Checks, without: float, with_one: float) -> None:
    """A base that was taught with a BOS reads rows without one far worse, and its shuffled rows too."""
    if with_one <= MAX_BOS_LOSS * without:
        checks.add(
            "bos",
            f"the loss before the first step is {without:.2f} nats a token, and {with_one:.2f} with a BOS "
            "token in front, which neither the base's tokenizer nor its template writes: a base that wants "
            'one needs "add_bos_token": true in its tokenizer_config.json',
        )


ROWS, TOKENS = 16, 256  # that are looked at; the second of each row

Loss = Callable[[list[Encoded]], float]  # mean, in nats a token


def check_reading(checks: Checks, rows: Sequence[Encoded], bos_id: int | None, loss: Loss) -> None:
    """Compare the loss on rows with that of their tokens in no order, and after a BOS where they lack one.

    `bos_id` is None where the base has none, or ends replies with it.
    """
    some = [row.ids[:TOKENS] for row in rows[:ROWS]]
    first = loss([_whole(ids) for ids in some])
    chance = random.Random(0)
    check_first_loss(checks, first, loss([_whole(_shuffled(ids, chance)) for ids in some]))
    if bos_id is not None and all(ids[0] != bos_id for ids in some):
        check_bos_loss(checks, first, loss([_begun(ids, bos_id) for ids in some]))


def _whole(ids: list[int]) -> Encoded:
    return Encoded(ids, [1] * len(ids), [])


def _shuffled(ids: list[int], chance: random.Random) -> list[int]:
    """The ids in no order, but for the first, which may be a BOS."""
    rest = ids[1:]
    chance.shuffle(rest)
    return [*ids[:1], *rest]


def _begun(ids: list[int], bos_id: int) -> Encoded:
    """The ids after a BOS, as many as before, since that fits a block; the first isn't compared."""
    return Encoded([bos_id, *ids[:-1]], [0, 0, *[1] * len(ids)][: len(ids)], [])
