"""The parts of verification that need no model: limits, the table, ids, distributions and headers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convert.verify.limits import Check, check_size, kl_limit, relative_rmse_limit, same_top_limit, worst
from convert.verify.loss import (
    MAX_EVALUATED,
    MAX_ROW,
    MAX_SCORED,
    agreement,
    check_quantised,
    check_sixteen_bit,
    rows_to_score,
)
from convert.verify.report import WIDTH, Report
from convert.verify.tokens import Facts, check_metadata, difference
from core.errors import ConvertError
from core.llama_sampler import log_softmax
from core.log_probs import Scores, compare, predicting, read_reference, save_reference, targets
from core.rows import PLAIN_CHATS, Row
from tests.unit.test_gguf_file import BOOL, MODEL, STRING, U32, gguf

GOOD = Scores(tokens=1000, loss=2.0, perplexity=7.389, kl_mean=0.02, kl_99=0.2, same_top=0.94)
FACTS = Facts(
    architecture="LlamaForCausalLM",
    n_ctx=2048,
    vocab_sizes=[10, 8],
    bos_ids=[1],
    eos_ids=[2],
    end_of_turn_id=5,
    chat_template="{{ messages }}",
)


def row(length: int, prompt: int, split: str = "test") -> Row:
    mask = [0] * prompt + [1] * (length - prompt)
    return Row([{"role": "user", "content": "x"}], list(range(length)), mask, split)  # type: ignore[arg-type]


def verdicts(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.verdict for check in checks}


def test_the_gravest_verdict_counts() -> None:
    assert worst(["ok", "n/a", "warn", "ok"]) == "warn"
    assert worst(["ok", "fail", "warn"]) == "fail"
    assert worst(["n/a", "ok"]) == "ok"
    assert worst([]) == "n/a"


def test_the_limit_knows_types_that_stand_in_and_small_models() -> None:
    large = kl_limit("Q5_K_M", [], 8_000_000_000)
    assert large.judge(0.0108) == "ok"
    assert large.judge(0.03) == "warn"
    assert large.judge(0.06) == "fail"
    assert large.judge(math.nan) == large.judge(math.inf) == "fail"
    assert kl_limit("Q5_K_M", ["Q5_1", "Q8_0"], 8_000_000_000).warn > large.warn
    assert kl_limit("Q5_K_M", [], 135_000_000).warn > large.warn
    assert kl_limit("Q4_K_M", ["Q5_0"], 8_000_000_000) == kl_limit("Q4_K_M", [], 8_000_000_000)


@pytest.mark.parametrize(("file_type", "kl", "same_top"), [
    ("Q8_0", 0.001355, 0.97674), ("Q6_K", 0.005452, 0.96031), ("Q4_K_M", 0.031273, 0.91901),
    ("Q2_K", 0.445132, 0.71138),
])  # fmt: skip
def test_llama_cpps_own_figures_pass_and_much_worse_ones_do_not(
    file_type: str, kl: float, same_top: float
) -> None:
    limit = kl_limit(file_type, [], 8_000_000_000)
    assert limit.judge(kl) == same_top_limit(limit).judge(1 - same_top) == "ok"
    assert limit.judge(5.1 * kl) == same_top_limit(limit).judge(3.5 * (1 - same_top)) == "fail"


def test_each_type_has_a_limit_below_the_error_of_a_tensor_of_zeros() -> None:
    for kind in (
        "F16",
        "BF16",
        "Q8_0",
        "Q6_K",
        "Q5_K",
        "Q4_K",
        "Q5_0",
        "Q5_1",
        "Q4_0",
        "Q3_K",
        "Q2_K",
        "new",
    ):
        limit = relative_rmse_limit(kind)
        assert 0 < limit.warn < limit.fail < 1


def test_scores_that_are_no_numbers_fail() -> None:
    assert worst(c.verdict for c in check_quantised(GOOD, "Q4_K_M", [], 8_000_000_000)) == "ok"
    for broken in (
        replace(GOOD, loss=math.nan),
        replace(GOOD, kl_mean=math.nan),
        replace(GOOD, same_top=0.5),
    ):
        assert worst(c.verdict for c in check_quantised(broken, "Q4_K_M", [], 8_000_000_000)) == "fail"
    assert worst(c.verdict for c in check_sixteen_bit(GOOD, 32000)) == "fail", (
        "a quant's loss is too much for 16 bit"
    )


def test_a_model_that_only_guesses_is_told_and_has_no_preferences_to_keep() -> None:
    random = replace(GOOD, loss=math.log(32000) + 1, kl_mean=3.0, same_top=0.1)
    assert [c.verdict for c in check_quantised(random, "Q4_K_M", [], 10**9, True)] == ["ok", "n/a", "n/a"]
    lost = replace(random, loss=math.nan)
    assert check_quantised(lost, "Q4_K_M", [], 10**9, True)[0].verdict == "fail"
    exact = replace(random, kl_mean=1e-6, same_top=1.0)
    assert [c.verdict for c in check_sixteen_bit(exact, 32000)] == ["warn", "ok", "ok"]


def test_the_rows_that_are_scored_are_the_test_rows_within_the_caps() -> None:
    rows = rows_to_score([row(20, 10), row(30, 10, "train"), row(20, 12)])
    assert [len(r.ids) for r in rows] == [20, 20]
    assert len(rows_to_score([row(20, 10, "train")])) == 1, "without test rows, all count"
    many = rows_to_score([row(300, 200)] * 100)
    assert len(targets(many)) == MAX_SCORED
    long = rows_to_score([row(1500, 1490)] * 100)
    assert sum(len(r.ids) for r in long) <= MAX_EVALUATED
    assert all(len(r.ids) <= MAX_ROW for r in rows_to_score([row(5000, 10)]))
    with pytest.raises(ConvertError, match="none of the 1 rows has a trained token"):
        rows_to_score([row(MAX_ROW + 10, MAX_ROW + 5)])


def test_each_trained_token_is_predicted_from_the_position_before_it() -> None:
    chat = Row([], [5, 6, 7, 8, 9], [1, 0, 1, 1, 0], "test")
    (scored,) = rows_to_score([chat])
    assert targets([scored]) == [7, 8], "nothing predicts the first token"
    assert predicting(scored) == [1, 2]


def test_scores_are_what_the_formulas_say(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    ours, theirs = (draw.normal(size=(50, 1000)).astype(np.float32) * 3 for _ in range(2))
    mixed = ours + 0.1 * theirs
    p, q = (np.array([log_softmax(row) for row in logits]) for logits in (ours, mixed))
    wanted = list(range(50))
    save_reference(tmp_path / "ours.npy", iter(p), 50)
    scores = compare(tmp_path / "ours.npy", iter(q), wanted)
    divergences = np.sum(np.exp(p.astype(np.float64)) * (p.astype(np.float64) - q), axis=1)
    assert scores.loss == pytest.approx(-np.mean(q[range(50), wanted]), rel=1e-6)
    assert scores.perplexity == pytest.approx(math.exp(scores.loss))
    assert scores.kl_mean == pytest.approx(divergences.mean(), abs=2e-5)
    assert scores.kl_99 == pytest.approx(np.quantile(divergences, 0.99), abs=1e-4)
    assert scores.same_top == np.mean(ours.argmax(1) == mixed.argmax(1))
    same = compare(tmp_path / "ours.npy", iter(p), wanted)
    assert 0 <= same.kl_mean < 1e-6, "the rounding on disk is not seen"
    assert same.same_top == 1
    assert not list(tmp_path.glob("*.partial"))


def test_a_padded_vocabulary_counts_where_both_have_tokens(tmp_path: Path) -> None:
    logits = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    save_reference(tmp_path / "a.npy", [log_softmax(row) for row in logits], 3)
    padded = [log_softmax(np.append(row, [-50.0] * 8)) for row in logits]
    scores = compare(tmp_path / "a.npy", padded, [1, 2, 3])
    assert 0 <= scores.kl_mean < 1e-6


def test_impossible_tokens_do_no_harm_and_nan_is_seen(tmp_path: Path) -> None:
    logits = np.zeros((2, 8), np.float32)
    logits[:, 7] = -np.inf
    own = [log_softmax(row) for row in logits]
    save_reference(tmp_path / "a.npy", own, 2)
    assert compare(tmp_path / "a.npy", own, [0, 1]).kl_mean == pytest.approx(0, abs=1e-6)
    broken = compare(tmp_path / "a.npy", [own[0] * np.nan, own[1]], [0, 1])
    assert math.isnan(broken.kl_mean)
    assert len(list(read_reference(tmp_path / "a.npy"))) == 2


def test_the_first_difference_names_both_tokens() -> None:
    pieces = [b"a", b"b", b"\xc3"]
    assert difference([0, 1], [0, 1], pieces) == ""
    assert difference([0, 1, 2], [0, 2, 2], pieces) == "position 1: 1 'b' here, 2 '\ufffd' expected"
    assert difference([0], [0, 9], pieces) == "position 1: the end here, 9 expected"


def test_metadata_as_the_checkpoint_has_it_passes(tmp_path: Path) -> None:
    path = tmp_path / "tiny-Q4_K_M.gguf"
    path.write_bytes(gguf())
    assert set(verdicts(check_metadata(path, FACTS)).values()) == {"ok"}


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("general.architecture", (STRING, "phi3"), "architecture"),
        ("llama.context_length", (U32, 1024), "context"),
        ("tokenizer.ggml.eos_token_id", (U32, 3), "EOS"),
        ("tokenizer.ggml.bos_token_id", (U32, 0), "BOS"),
        ("general.file_type", (U32, 17), "file type"),
        ("general.file_type", (U32, 1000), "file type"),
        ("tokenizer.chat_template", (STRING, "{{ messages}}"), "chat template"),
        ("tokenizer.chat_template", (STRING, ""), "chat template"),
    ],
)
def test_a_key_that_was_changed_is_named(
    tmp_path: Path, key: str, value: tuple[int, object], name: str
) -> None:
    path = tmp_path / "tiny-Q4_K_M.gguf"
    path.write_bytes(gguf(MODEL | {key: value}))
    failed = {check.name: check for check in check_metadata(path, FACTS) if check.verdict == "fail"}
    assert set(failed) <= {name, "context"}, "another architecture has no llama.context_length"
    assert failed[name].reason


def test_metadata_that_the_checkpoint_lacks_is_not_judged(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf(MODEL | {"tokenizer.ggml.add_bos_token": (BOOL, False)}))
    facts = Facts("NewForCausalLM", None, [8], [], [2], None, "{{ messages }}")
    found = verdicts(check_metadata(path, facts))
    assert {name for name, verdict in found.items() if verdict == "n/a"} == {
        "architecture", "context", "BOS", "EOT",
    }  # fmt: skip


def test_replies_must_end_with_a_token_that_stops(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf())
    (end,) = [c for c in check_metadata(path, replace(FACTS, end_of_turn_id=6)) if c.verdict == "fail"]
    assert end.name == "EOT"
    assert end.reason == "replies end with 6, which does not stop the chat"


def test_two_perplexities_of_one_file_agree_or_not() -> None:
    verdicts = [agreement(ours, 20.0).verdict for ours in (20.0, 20.01, 20.2, 21.0, math.nan)]
    assert verdicts == ["ok", "ok", "warn", "fail", "fail"]


def test_another_size_than_predicted_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(bytes(1000))
    assert [check_size(path, predicted)[0].verdict for predicted in (1000, 1005, 970, 500)] == [
        "ok", "ok", "warn", "fail",
    ]  # fmt: skip


def test_the_table_fits_and_says_at_a_glance() -> None:
    checks = [Check("size", "ok", "98 MB"), Check("KL", "warn", "0.1", "above 0.05 " + "because " * 40)]
    scores = {"checkpoint": replace(GOOD, kl_mean=0.0), "F16": GOOD, "Q5_K_M": GOOD}
    report = Report("Q5_K_M", checks, scores)
    table = report.table()
    assert max(map(len, table.splitlines())) <= WIDTH
    assert table.startswith("GOOD, WITH WARNINGS")
    assert Report("Q5_K_M", [*checks, Check("x", "fail", "")], scores).table().startswith("BAD")
    assert Report("Q5_K_M", checks[:1], scores).table().startswith("GOOD: every check passed")
    assert [line.split()[0] for line in table.splitlines()[3:6]] == ["checkpoint", "F16", "Q5_K_M"]


def test_the_menu_and_the_json_have_what_was_measured() -> None:
    broken = replace(GOOD, loss=math.nan)
    report = Report("Q5_K_M", [Check("x", "fail", "")], {"F16": GOOD, "Q5_K_M": broken})
    assert report.menu_quality() == {"perplexity": 7.39, "kl": 0.02, "same_top": "94 %"}
    stored = json.loads(json.dumps(report.quality_json(), allow_nan=False))
    assert stored["verdict"] == "fail"
    assert stored["scores"]["Q5_K_M"]["loss"] is None
    assert Report("", [], {}).menu_quality() == {}


def test_the_projects_own_chats_are_well_formed() -> None:
    chats = [json.loads(line) for line in PLAIN_CHATS.read_text(encoding="utf-8").splitlines()]
    assert len(chats) == 24
    for chat in chats:
        roles = [message["role"] for message in chat if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(message["content"].strip() == message["content"] != "" for message in chat)
