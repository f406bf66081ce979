"""Verification on the embedded model: real files pass, and each check sees the file that it is there for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from convert.llamacpp import run, tool
from convert.verify.answers import Answer, check_answers, prompts, sure_tokens
from convert.verify.limits import Check
from convert.verify.loss import (
    agreement,
    check_quantised,
    our_perplexity,
    plain_text,
    rows_to_score,
    tool_perplexity,
)
from convert.verify.reference import ReferenceModel
from convert.verify.report import Report
from convert.verify.run import (
    ANSWERS,
    DISTRIBUTIONS,
    FACTS,
    MERGE,
    SCORES,
    TOKENS,
    _read,
    chat_model,
    reference,
    verify,
)
from convert.verify.tensors import GgufTensors, check_tensors, fallback_types
from convert.verify.tokens import Facts, Tokenized, check_metadata, check_tokens
from core.errors import ConvertError
from core.from_gguf import checkpoint_from_gguf
from core.gguf_model import read_gguf
from core.log_probs import batches, compare, float32_arithmetic, gguf_log_probs, targets
from core.model import Model
from core.rows import Row, plain_rows

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def made(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The embedded model as a checkpoint, a 16-bit GGUF and two quantised ones, and what verification needs
    of the checkpoint."""
    folder = tmp_path_factory.mktemp("verify")
    checkpoint, sixteen = folder / "checkpoint", folder / "16bit.gguf"
    checkpoint_from_gguf(embedded_model, checkpoint)
    run([tool("llama-quantize"), "--allow-requantize", embedded_model, sixteen, "F16"])
    files = {kind: folder / f"{kind}.gguf" for kind in ("Q4_K_M", "Q5_K_M")}
    for kind, path in files.items():
        run([tool("llama-quantize"), sixteen, path, kind])
    with chat_model(sixteen) as model:
        rows = plain_rows(model.encoder, model.file.vocab.eog_ids)[:6]
    steps: list[tuple[int, int]] = []
    reference(checkpoint, sixteen, rows, folder / "reference", lambda *step: steps.append(step))
    assert steps[-1][0] == steps[-1][1]
    assert {path.name for path in (folder / "reference").iterdir()} == {
        FACTS, TOKENS, ANSWERS, SCORES, MERGE, DISTRIBUTIONS,
    }  # fmt: skip
    return SimpleNamespace(
        checkpoint=checkpoint, sixteen=sixteen, files=files, rows=rows, folder=folder / "reference"
    )


def verified(made: SimpleNamespace, gguf: Path, rows: list[Row] | None = None) -> Report:
    return verify(gguf, made.sixteen, made.folder, rows or made.rows, gguf.stat().st_size, lambda *_: None)


def changed(path: Path, to: Path, old: bytes, new: bytes) -> Path:
    """Copy a file with the first `old` in it replaced by `new`, as long."""
    assert len(old) == len(new)
    content = path.read_bytes()
    at = content.index(old)
    to.write_bytes(content[:at] + new + content[at + len(old) :])
    return to


def overwritten(path: Path, to: Path, tensor: str, data: bytes) -> Path:
    """Copy a file with the beginning of a tensor overwritten."""
    shutil.copyfile(path, to)
    with to.open("r+b") as file:
        file.seek(int(GgufTensors(path).by_name[tensor].data_offset))
        file.write(data)
    return to


def loss_checks(made: SimpleNamespace, gguf: Path, kind: str) -> list[Check]:
    rows = rows_to_score(made.rows)
    distributions = gguf_log_probs(gguf, rows, lambda: None)
    scores = compare(made.folder / DISTRIBUTIONS, distributions, targets(rows))
    return check_quantised(scores, kind, fallback_types(gguf), 135_000_000)


@pytest.mark.parametrize("kind", ["16bit", "Q5_K_M"])
def test_real_files_pass(made: SimpleNamespace, kind: str) -> None:
    report = verified(made, made.files.get(kind, made.sixteen))
    assert report.verdict == "ok", report.table()
    stages = ["checkpoint", "F16"] + ([kind] if kind in made.files else [])
    assert list(report.scores) == stages
    assert report.scores["F16"].kl_mean < 1e-4
    assert report.menu_quality()["perplexity"] == float(f"{report.scores[stages[-1]].perplexity:.3g}")


def test_a_file_cut_short_fails_at_once(made: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "Q4_K_M.gguf"
    path.write_bytes(made.files["Q4_K_M"].read_bytes()[:-1000])
    report = verified(made, path)
    assert report.verdict == "fail"
    assert "cut short" in report.checks[0].reason


def test_one_nan_is_seen_in_the_file_and_in_the_loss(made: SimpleNamespace, tmp_path: Path) -> None:
    nan = np.full(16, np.nan, np.float16).tobytes()
    broken = overwritten(made.files["Q5_K_M"], tmp_path / "Q5_K_M.gguf", "blk.0.attn_q.weight", nan)
    checks = {check.name: check for check in check_tensors(broken, made.sixteen, lambda: None)}
    assert (checks["finite"].verdict, checks["finite"].reason) == ("fail", "in blk.0.attn_q.weight")
    assert {check.verdict for check in loss_checks(made, broken, "Q5_K_M")[:2]} == {"fail"}


def test_a_tensor_of_zeros_is_seen_by_the_tripwire_and_the_loss(
    made: SimpleNamespace, tmp_path: Path
) -> None:
    path, name = made.files["Q4_K_M"], "blk.0.ffn_down.weight"
    size = int(GgufTensors(path).by_name[name].n_bytes)
    broken = overwritten(path, tmp_path / "Q4_K_M.gguf", name, bytes(size))
    errors = {check.name: check for check in check_tensors(broken, made.sixteen, lambda: None)}
    assert errors["tensor error"].reason.startswith(f"{name} (")
    assert loss_checks(made, broken, "Q4_K_M")[1].verdict == "fail"


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        (b"<|im_end|>' + '\n'", b"<|im_end|>' + '\t'", "chat template"),
        (b"eos_token_id\x04\0\0\0\2", b"eos_token_id\x04\0\0\0\7", "EOS"),
        (b"llama.context_length\x04\0\0\0\0\x20", b"llama.context_length\x04\0\0\0\0\x40", "context"),
    ],
)
def test_a_changed_key_of_the_real_file_fails(
    made: SimpleNamespace, tmp_path: Path, old: bytes, new: bytes, name: str
) -> None:
    facts = Facts(**_read(made.folder / FACTS))
    right = check_metadata(made.files["Q4_K_M"], facts)
    assert {check.verdict for check in right} == {"ok"}
    wrong = changed(made.files["Q4_K_M"], tmp_path / "Q4_K_M.gguf", old, new)
    assert name in {check.name for check in check_metadata(wrong, facts) if check.verdict == "fail"}


def test_a_swapped_vocabulary_is_shown_with_the_first_difference(
    made: SimpleNamespace, tmp_path: Path
) -> None:
    word, other = "\u0120capital".encode(), "\u0120January".encode()
    half = changed(made.files["Q4_K_M"], tmp_path / "half", word, b"@" * len(word))
    swapped = changed(half, tmp_path / "Q4_K_M.gguf", other, word)
    with chat_model(swapped) as model:
        found = {check.name: check for check in check_tokens(model, made.rows, texts(made))}
    assert found["trained ids"].verdict == found["tokenizer"].verdict == "fail"
    assert "expected" in found["tokenizer"].reason
    assert "capital" in found["tokenizer"].reason


def texts(made: SimpleNamespace) -> list[Tokenized]:
    return [Tokenized(**raw) for raw in _read(made.folder / TOKENS)]


def answers(made: SimpleNamespace) -> list[Answer]:
    return [Answer(**raw) for raw in _read(made.folder / ANSWERS)]


@pytest.fixture
def model(made: SimpleNamespace) -> Iterator[Model]:
    with chat_model(made.files["Q4_K_M"]) as model:
        yield model


def test_ids_that_training_saw_and_the_chat_does_not_make_fail(made: SimpleNamespace, model: Model) -> None:
    row = made.rows[0]
    other = replace(row, ids=[*row.ids[:9], row.ids[9] + 1, *row.ids[10:]])
    found = check_tokens(model, [other, *made.rows[1:]], [])[0]
    assert found.verdict == "fail"
    assert found.reason.startswith("row 1, position 9: ")
    assert found.figure == f"{len(made.rows) - 1} of {len(made.rows)} rows equal"
    cut = replace(row, ids=row.ids[:12], mask=row.mask[:12])
    assert check_tokens(model, [cut], [])[0].verdict == "ok", "training cuts rows that are too long"
    longer = replace(row, ids=[*row.ids, 5], mask=[*row.mask, 0])
    assert check_tokens(model, [longer], [])[0].verdict == "fail"


def test_answers_that_differ_from_the_checkpoints_fail(made: SimpleNamespace, model: Model) -> None:
    asked = answers(made)[:1] * 3
    other = [
        replace(a, prompt_ids=[1, *a.prompt_ids], ids=[9, *a.ids], margins=[9.0, *a.margins]) for a in asked
    ]
    found = {c.name: c.verdict for c in check_answers(model, other, True, lambda: None)}
    assert (found["prompts"], found["beginnings"]) == ("fail", "fail")
    unable = [replace(a, stopped=False, empty=True, margins=[0.0] * len(a.ids)) for a in asked]
    found = {c.name: c.verdict for c in check_answers(model, unable, True, lambda: None)}
    assert found == {"prompts": "ok", "replies": "n/a", "stops": "n/a", "beginnings": "n/a"}


def test_a_model_that_says_nothing_and_one_that_never_ends_fail(
    made: SimpleNamespace, model: Model, tmp_path: Path
) -> None:
    asked = [replace(a, stopped=True) for a in answers(made) if not a.stopped][:1] * 2
    assert asked, "the model must have an answer of more than 48 tokens"
    found = {c.name: c.verdict for c in check_answers(model, asked, True, lambda: None)}
    assert found["stops"] == "fail"
    silent = [replace(a, messages=[*a.messages, {"role": "assistant", "content": "Yes."}]) for a in asked[:1]]
    monosyllabic = check_answers(model, silent, True, lambda: None)
    assert monosyllabic[0].verdict == "fail", "another prompt than the checkpoint's"


def test_prompts_are_the_first_turns_of_the_test_rows(made: SimpleNamespace) -> None:
    chosen = prompts(made.rows)
    assert len(chosen) == 3, "half of the rows are for testing"
    assert all(chat[-1]["role"] == "user" for chat in chosen)
    assert sure_tokens(Answer([], [], [5, 6, 7], [3.0, 2.0, 0.5], True, False), 1.0) == [5, 6]


def test_the_loss_is_what_torch_says_about_the_same_weights(made: SimpleNamespace) -> None:
    rows = rows_to_score(made.rows)[:2]
    with closing(ReferenceModel(made.checkpoint)) as checkpoint, torch.inference_mode():
        logits = [checkpoint.model(torch.tensor([row.ids])).logits[0].float() for row in rows]
    losses = [
        torch.nn.functional.cross_entropy(
            scores[:-1], torch.tensor([i if m else -100 for i, m in zip(row.ids, row.mask, strict=True)][1:]),
            reduction="none",
        )
        for scores, row in zip(logits, rows, strict=True)
    ]  # fmt: skip
    wanted = targets(rows)
    expected = sum(float(loss.sum()) for loss in losses) / len(wanted)
    found = gguf_log_probs(made.sixteen, rows, lambda: None)
    own = -np.mean([float(log_probs[token]) for log_probs, token in zip(found, wanted, strict=True)])
    assert own == pytest.approx(expected, abs=2e-3)


def test_padding_and_16_bit_weights_change_no_distribution() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=500, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                         num_attention_heads=4, max_position_embeddings=1024)  # fmt: skip
    narrow = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    wide = LlamaForCausalLM(config).eval()
    wide.load_state_dict({name: tensor.float() for name, tensor in narrow.state_dict().items()})
    rows = [Row([], list(range(5, 5 + n)), [0] * 3 + [1] * (n - 3), "test") for n in (40, 7, 300, 200, 310)]
    assert [len(batch) for batch in batches(rows)] == [2, 1, 1, 1]
    float32_arithmetic(narrow)  # as the constructor does
    loaded = SimpleNamespace(model=narrow)
    found = list(ReferenceModel.log_probs(loaded, rows, lambda: None))  # type: ignore[arg-type]
    assert {p.dtype for name, p in narrow.named_parameters() if "proj" in name} == {torch.bfloat16}
    with torch.inference_mode():
        expected = [torch.log_softmax(wide(torch.tensor([row.ids])).logits[0, 2:-1], dim=-1) for row in rows]
    assert np.allclose(np.array(found), torch.cat(expected).numpy(), atol=1e-5)


def test_two_files_are_told_apart_by_their_perplexities(made: SimpleNamespace) -> None:
    """That one file's agree is among what `test_real_files_pass` looks at."""
    ours = our_perplexity(made.files["Q4_K_M"], plain_text())
    theirs = tool_perplexity(tool("llama-perplexity"), made.sixteen, plain_text())
    assert agreement(ours, theirs).verdict in ("warn", "fail")
    with pytest.raises(ConvertError, match=r"chats\.jsonl has \d+ tokens; 512 are needed"):
        our_perplexity(made.files["Q4_K_M"], "too short")


def test_the_checkpoints_facts_are_its_files(made: SimpleNamespace) -> None:
    facts = _read(made.folder / FACTS)
    vocab = read_gguf(made.sixteen).vocab
    assert facts["end_of_turn_id"] == vocab.eos_id == 2
    assert facts["architecture"] == "LlamaForCausalLM"
    tokenizer = AutoTokenizer.from_pretrained(made.checkpoint)
    assert facts["chat_template"] == tokenizer.chat_template


def test_a_checkpoint_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(ConvertError, match="transformers can't load the checkpoint"):
        ReferenceModel(tmp_path)
