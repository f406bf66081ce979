"""A real GGUF written out as a checkpoint: llama.cpp's ids, llama.cpp's answers, and accepted back by it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from sentencepiece import SentencePieceProcessor
from transformers import AutoModelForCausalLM, AutoTokenizer

from convert import llamacpp
from convert.base import find_base as find_base_to_merge
from convert.from_gguf import main
from convert.verify.tokens import NASTY
from core.errors import ChatError, ConvertError
from core.from_gguf import check_written, checkpoint_from_gguf
from core.gguf_model import read_gguf
from core.gguf_tokenizer import read_tokens, write_tokenizer
from core.gguf_weights import Weights, read_config, read_tensors
from tests.integration.merge_bases import changed
from tests.integration.tiny_models import tokenizer_of, vocabulary
from train.base import find_base
from train.sections import Model

ROOT = Path(__file__).resolve().parents[2]
# Byte-level vocabularies of llama.cpp, one for each rule of cutting text into words.
BYTE_LEVEL = ("gpt-2", "llama-bpe", "qwen2", "starcoder")
SENTENCEPIECE = ("phi-3", "llama-spm")


def real_text() -> Iterator[str]:
    """Yield the paragraphs of this repository's own files: prose, code, markup, JSON."""
    for pattern in ("*.md", "chat/*.py", "chat/*.js", "chat/*.css", "models.json"):
        for path in sorted(ROOT.glob(pattern)):
            yield from path.read_text(encoding="utf-8").split("\n\n")


@pytest.fixture(scope="module")
def smollm(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("from-gguf") / "smollm"
    assert main([str(embedded_model), "--out", str(folder)]) == 0
    return folder


def test_smollm_has_llama_cpps_ids(smollm: Path, embedded_model: Path) -> None:
    ids = tokenizer_of(smollm)
    with vocabulary(embedded_model) as tokenize:
        texts = [*NASTY, *real_text()]
        assert len(texts) > 300
        assert [text for text in texts if ids(text) != tokenize(text, True)] == []


def test_any_part_of_a_split_model_is_read_as_the_whole(embedded_model: Path, tmp_path: Path) -> None:
    options = ["--split", "--split-max-tensors", "150", "--no-tensor-first-split"]
    llamacpp.run([llamacpp.tool("llama-gguf-split"), *options, embedded_model, tmp_path / "smol"])
    parts = sorted(tmp_path.iterdir())
    assert len(parts) == 3
    whole = {tensor.name: tensor for tensor in Weights(embedded_model).tensors}
    tokens, config = read_tokens(embedded_model), read_config(read_gguf(embedded_model), [*whole.values()])
    for part in parts:
        tensors = read_tensors(read_gguf(part))
        assert {tensor.name for tensor in tensors} == whole.keys()
        assert all(np.array_equal(tensor.data, whole[tensor.name].data) for tensor in tensors[::60])
        assert read_config(read_gguf(part), tensors).to_dict() == config.to_dict()
        assert read_tokens(part).merges == tokens.merges
    parts[1].unlink()
    (tmp_path / "adapter_config.json").write_text("{}")
    for find in (
        lambda: find_base(Model(base_model=str(tmp_path), gguf_file=parts[2].name, license="x"), tmp_path),
        lambda: find_base_to_merge(tmp_path, str(parts[2])),
    ):
        with pytest.raises(ChatError, match=f"part 2 of 3, '{parts[1].name}', is not in"):
            find()


def test_smollm_answers(smollm: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm)
    model = AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0]
    reply = tokenizer.decode(ids[prompt["input_ids"].shape[1] :])
    assert "Paris" in reply
    assert reply.endswith("<|im_end|>")  # it has learnt to, and the generation config stops there


def test_what_is_written_is_compared_with_the_file(
    smollm: Path, embedded_model: Path, tmp_path: Path
) -> None:
    assert "compared with llama.cpp: mean KL 0.0" in check_written(embedded_model, smollm, None)
    shutil.copytree(smollm, tmp_path / "other")
    with changed(
        tmp_path / "other" / "model-00001-of-00002.safetensors"
    ) as tensors:  # the halves of each head as llama.cpp orders them
        name = "model.layers.0.self_attn.q_proj.weight"
        heads = tensors[name].reshape(9, 2, 32, -1)
        tensors[name] = heads.transpose(1, 2).reshape(tensors[name].shape).contiguous()
    with pytest.raises(ConvertError, match=r"predicts something else than the file itself \(mean KL"):
        check_written(embedded_model, tmp_path / "other", None)


def test_smollm_stops_where_llama_cpp_stops(smollm: Path, embedded_model: Path) -> None:
    vocab = read_gguf(embedded_model).vocab
    generation = json.loads((smollm / "generation_config.json").read_text())
    assert set(generation["eos_token_id"]) == vocab.eog_ids
    assert generation["eos_token_id"][0] == vocab.eos_id
    assert generation["pad_token_id"] not in vocab.eog_ids
    config = json.loads((smollm / "config.json").read_text())
    assert config["dtype"] == "float16"
    assert "quantization_config" not in config


def test_the_converter_takes_smollm_back(smollm: Path, embedded_model: Path, tmp_path: Path) -> None:
    written = tmp_path / "smollm.gguf"
    options = ["--outfile", written, "--outtype", "f16", "--model-name", "SmolLM2"]
    llamacpp.run([sys.executable, llamacpp.converter(), smollm, *options])
    before, after = read_tokens(embedded_model), read_tokens(written)
    assert (after.file.tokenizer, after.pre) == ("gpt2", "smollm")
    assert after.texts == before.texts
    assert after.merges == before.merges
    assert after.file.vocab == before.file.vocab
    assert after.file.chat_template == before.file.chat_template
    originals = {tensor.name: tensor for tensor in Weights(embedded_model).tensors}
    for tensor in Weights(written).tensors:
        original = originals.pop(tensor.name)
        values = gguf.dequantize(original.data, original.tensor_type).astype(np.float16)
        assert np.array_equal(tensor.data.astype(np.float16), values), tensor.name
    assert originals == {}


def test_gemma_has_llama_cpps_ids_and_logits(gemma_model: Path, tmp_path: Path) -> None:
    from core.llama import LlamaModel

    folder = tmp_path / "gemma"
    checkpoint_from_gguf(gemma_model, folder)
    ids = tokenizer_of(folder)
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    control = read_gguf(gemma_model).vocab.control
    with vocabulary(gemma_model) as tokenize:
        texts = [*NASTY, *real_text()]
        assert [text for text in texts if ids(text) != tokenize(text, True)] == []
        # sentencepiece takes a written one eighth block for the space that it stands for
        control = {*control, "\u2581"}
        plain = [text for text in texts if not any(surface in text for surface in control)]
        assert [text for text in plain if pieces.encode(text) != tokenize(text, False)] == []

    prompt = [read_gguf(gemma_model).vocab.bos_id, *ids("The capital of France is Paris. The capital of")]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        ours = model(torch.tensor([prompt])).logits[0]
    llama = LlamaModel(gemma_model, 256, 2, [])
    for position, logits in llama.logits(prompt, set(range(len(prompt)))):
        theirs = torch.tensor(list(logits))
        # llama.cpp rounds activations to 8 bits where weights have 4, so not closer than this
        agreement = torch.nn.functional.cosine_similarity(ours[position], theirs, dim=0)
        assert agreement > 0.97, f"token {position}"
    llama.close()


@pytest.mark.parametrize("name", BYTE_LEVEL + SENTENCEPIECE)
def test_a_rebuilt_tokenizer_has_llama_cpps_ids(name: str, llama_models: Path, tmp_path: Path) -> None:
    path = llama_models / f"ggml-vocab-{name}.gguf"
    write_tokenizer(read_tokens(path), tmp_path, None)
    ids = tokenizer_of(tmp_path)
    reference = (
        (llama_models / f"{path.name}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    )
    texts = [*NASTY, *reference, *real_text()]
    with vocabulary(path) as tokenize:
        assert [text for text in texts if ids(text) != tokenize(text, True)] == []
        if name in SENTENCEPIECE:
            pieces = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
            control = read_gguf(path).vocab.control
            plain = [text for text in texts if not any(surface in text for surface in control)]
            assert [text for text in plain if pieces.encode(text) != tokenize(text, False)] == []


def test_nothing_is_written_that_cannot_be_whole(llama_models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConvertError, match="no weights"):
        checkpoint_from_gguf(llama_models / "ggml-vocab-phi-3.gguf", out)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(ConvertError, match="there already"):
        checkpoint_from_gguf(llama_models / "ggml-vocab-phi-3.gguf", out)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "see python convert/from_gguf.py --help"),
        (["absent.gguf", "--out", "x"], 1, "there is no file 'absent.gguf'"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(
    arguments: list[str], code: int, said: str, tmp_path: Path
) -> None:
    command = [sys.executable, ROOT / "convert" / "from_gguf.py", *arguments]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode == code
    assert said in ran.stderr
    assert ran.stderr.count("\n") == 1
