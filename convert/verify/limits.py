"""The one table of limits that a GGUF is judged by, each with where it comes from.

Above `warn` the file is kept and the table says so; above `fail`, or where a figure is no number, the file
is not called done. A limit on a share counts what is wrong: 0 is perfect.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.machine import human_size


@dataclass(frozen=True)
class Limit:
    """The largest value that passes without a word, and the largest that passes."""

    warn: float
    fail: float
    source: str

    def judge(self, value: float) -> Verdict:
        """Return the verdict on `value`; what is not finite fails."""
        if not math.isfinite(value) or value > self.fail:
            return "fail"
        return "warn" if value > self.warn else "ok"

    def reason(self, verdict: Verdict) -> str:
        """Say what was exceeded; nothing for a good verdict."""
        if verdict in ("ok", "n/a"):
            return ""
        return f"above {self.fail if verdict == 'fail' else self.warn:.3g} ({self.source})"


# --- Loss: KL divergence and same top token -------------------------------------------------------------

_README = "llama.cpp's tools/perplexity/README.md, Llama-3-8B on wikitext-2"
# Mean KL divergence from F16, nats a token, without an importance matrix where both are listed. Types without
# a figure of their own have that of the next worse one.
_KL = {
    "F32": 2.5e-5, "F16": 2.5e-5, "BF16": 2.5e-5, "Q8_0": 0.001355, "Q6_K": 0.005452, "Q5_K_M": 0.010762,
    "Q5_K_S": 0.016595, "Q5_1": 0.018045, "Q5_0": 0.022239, "Q4_K_M": 0.031273, "Q4_K_S": 0.043136,
    "IQ4_NL": 0.043136, "IQ4_XS": 0.043136, "Q4_1": 0.071683, "Q4_0": 0.071940, "Q3_K_L": 0.087176,
    "Q3_K_M": 0.101913, "IQ3_M": 0.102534, "IQ3_S": 0.111278, "IQ3_XS": 0.138693, "IQ3_XXS": 0.183625,
    "Q3_K_S": 0.228217, "IQ2_M": 0.325989, "Q2_K": 0.445132, "Q2_K_S": 0.445132, "IQ2_S": 0.445132,
    "IQ2_XS": 0.546290, "IQ2_XXS": 0.812022, "IQ1_M": 1.393084, "IQ1_S": 2.211278,
}  # fmt: skip
_LARGE = (2, 5)  # times the figure: warn, fail
# Small models have less to spare. On the project's own chats SmolLM2-135M had 1.0 to 5.4 times the figure:
# Q8_0 0.0050, Q6_K 0.012, Q5_K_M 0.090 (mostly Q5_1, to which it falls back), Q4_K_S 0.076, IQ4_XS 0.23,
# Q4_0 0.31, Q3_K_M 0.16, Q2_K 0.47.
_SMALL, _SMALL_PARAMS = (6, 12), 1e9

# --- The merge: base and adapter as PEFT runs them, in fp32, against the merged checkpoint ------------------

# The merged weights are rounded once to the base's type and nothing else differs, so what BF16 costs is the
# measure: SmolLM2 with a random adapter has 0.0000017.
MERGE_KL = Limit(1e-3, 1e-2, f"BF16 against F16 is 0.000025: {_README}")
# By how much the share of an adapter's update that one merged layer has may differ from 1, where rounding to
# the weights' type doesn't hide it. Left out it is 0, at twice the scale 2, transposed about 0.
UPDATE_SHARE = Limit(0.05, 0.2, "rounding alone moved no measured layer's by more than 0.01")
# Relative error of an adapted layer's output. Rounding to bf16 moves each weight by up to 1/512 of itself, a
# standard deviation of 0.0013 at the worst.
LAYER_ERROR = Limit(0.003, 0.01, "rounding to bf16 makes 0.0013 to 0.0017")

# A 16-bit GGUF against its checkpoint, both of them rounded once on their way.
CHECKPOINT_KL = Limit(1e-3, 1e-2, f"BF16 against F16 is 0.000025: {_README}")


def kl_limit(file_type: str, fallbacks: Iterable[str], n_params: int) -> Limit:
    """Limit of the mean KL divergence from the 16-bit file, for a file of llama.cpp's type and `n_params`.

    `fallbacks` are the types of tensors whose rows K-quants don't fit: the file can be no better than the
    worst type in it.
    """
    expected = max(_KL.get(name, _KL["IQ1_S"]) for name in (file_type, *fallbacks))
    warn, fail = _SMALL if n_params < _SMALL_PARAMS else _LARGE
    return Limit(warn * expected, fail * expected, f"{warn} and {fail} times {expected:.3g}: {_README}")


def same_top_limit(kl: Limit) -> Limit:
    """Limit of the share of tokens whose likeliest token changes, from the limit of the divergence.

    The README's four figures (Q8_0 2.3 %, Q6_K 4.0 %, Q4_K_M 8.1 %, Q2_K 28.9 %) are 0.43 to 0.63 times the
    square root of the divergence.
    """
    return Limit(0.63 * math.sqrt(kl.warn), 0.63 * math.sqrt(kl.fail), kl.source)


CROSS_CHECK = Limit(0.005, 0.02, "share of the perplexity; 0.0005 were measured")

# --- Tensors --------------------------------------------------------------------------------------------

# Relative RMSE of Gaussian weights, measured: the 16-bit SmolLM2 with its ffn_down filled with Gaussian
# numbers, `llama-quantize --tensor-type ...`, `relative_rmse`. F16 and BF16 are bounds of their rounding.
_RMSE = {
    "F32": 5e-4, "F16": 5e-4, "BF16": 0.0017, "Q8_0": 0.0054, "Q6_K": 0.0177, "Q5_K": 0.0361, "Q5_1": 0.0379,
    "Q5_0": 0.0426, "Q4_K": 0.0714, "IQ4_NL": 0.0762, "IQ4_XS": 0.0768, "Q4_1": 0.0782, "Q4_0": 0.0861,
    "Q3_K": 0.1508, "IQ3_S": 0.1658, "Q2_K": 0.2965,
}  # fmt: skip


def relative_rmse_limit(ggml_type: str) -> Limit:
    """Limit of a tensor's relative root mean square error, by its own type: 2 and 5 times white noise's.

    Never so high that a tensor of zeros, whose error is 1, would pass.
    """
    noise = _RMSE.get(ggml_type, 0.3)
    return Limit(min(2 * noise, 0.8), min(5 * noise, 0.9), f"white noise has {noise}")


# --- Texts and answers ----------------------------------------------------------------------------------

NASTY_TEXTS = Limit(0.0, 0.1, "odd texts seldom occur; a wrong tokenizer differs on most of them")
EVERY_ONE = Limit(0.0, 0.0, "by definition")
# Of replies that end, and of those that begin, as the checkpoint's do. One that goes another way is chance,
# for greedy decoding follows the smallest difference from there on: it is forgiven before the share counts.
FORGIVEN = 1
UNSTOPPED = Limit(0.0, 0.4, "more than one")
OTHER_BEGINNINGS = Limit(0.0, 0.4, "more than one")
BEGINNING = 4  # tokens that are compared
# By how many nats the checkpoint must prefer a token before a GGUF has to choose it too. Rounding moved the
# difference of two logits of SmolLM2 by 0.01 in the 16-bit file.
SURE_16_BIT, SURE_QUANTISED = 0.1, 1.0

# --- Size -----------------------------------------------------------------------------------------------

SIZE = Limit(0.01, 0.05, "llama-quantize's own forecast is exact but for the header")


Verdict = Literal["ok", "warn", "fail", "n/a"]

_GRAVITY: tuple[Verdict, ...] = ("n/a", "ok", "warn", "fail")


@dataclass(frozen=True)
class Check:
    """`figure` is what was measured, with its unit; `reason` says what is wrong, empty when all is well."""

    name: str
    verdict: Verdict
    figure: str
    reason: str = ""


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the gravest of `verdicts`; n/a where there is none."""
    return max(verdicts, key=_GRAVITY.index, default="n/a")


def check_size(gguf: Path, predicted_bytes: int) -> list[Check]:
    """Compare the bytes on disk with `predicted_bytes`; both directions count."""
    size = gguf.stat().st_size
    off = abs(size - predicted_bytes) / predicted_bytes
    verdict = SIZE.judge(off)
    reason = f"{human_size(predicted_bytes)} were predicted, {off:.1%} off" if verdict != "ok" else ""
    return [Check("size", verdict, human_size(size), reason)]
