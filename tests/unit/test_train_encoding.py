"""Rows as token ids, and the command that shows them: python train/data.py RECIPE."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, PreTrainedTokenizerFast

from core.command import command_line
from core.errors import TrainError
from core.tokenizer import ChatTokenizer
from train import data as command
from train import encoding
from train.data import load_examples, prepare
from train.data_report import harmless
from train.examples import Example
from train.recipe import RECIPES, Recipe
from train.sections import Data
from train.split import NAMES, Prepared

QUOTES = RECIPES / "quotes.jsonl"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BPE tokenizer of the quotes, with a ChatML template."""
    folder = tmp_path_factory.mktemp("base")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<unk>", "<|im_start|>", "<|im_end|>"]
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    bpe.train([str(QUOTES)], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<unk>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    AutoConfig.for_model("llama", max_position_embeddings=2048).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> ChatTokenizer:
    return ChatTokenizer(base)


def recipe_of(base: Path, **sft: object) -> Recipe:
    sections = {"model": {"base_model": str(base), "license": "mit"}, "data": {"path": str(QUOTES)}}
    return Recipe.model_validate(sections | {"SFTConfig": {"max_length": 512} | sft})


def lengths(prepared: Prepared) -> list[int]:
    return [len(row.ids) for name in NAMES for row in getattr(prepared, name)]


def test_only_the_replies_are_trained(base: Path, tokenizer: ChatTokenizer) -> None:
    prepared = prepare(recipe_of(base), tokenizer)
    for name in NAMES:
        for example, row in zip(getattr(prepared.examples, name), getattr(prepared, name), strict=True):
            trained = [i for i, m in zip(row.ids, row.mask, strict=True) if m]
            assert tokenizer.decode(trained) == example.messages[-1]["content"] + "<|im_end|>"
    assert len(lengths(prepared)) == 253
    everything = prepare(recipe_of(base, assistant_only_loss=False), tokenizer).train[0]
    assert sum(everything.mask) > sum(prepared.train[0].mask)


def test_a_row_that_is_too_long_is_left_out_and_counted(base: Path, tokenizer: ChatTokenizer) -> None:
    middle = sorted(lengths(prepare(recipe_of(base), tokenizer)))[126]
    prepared = prepare(recipe_of(base, max_length=middle), tokenizer)
    assert max(lengths(prepared)) <= middle
    assert prepared.too_long + len(lengths(prepared)) == 253
    assert 0 < prepared.too_long < 127
    with pytest.raises(
        TrainError, match=r"longer than max_length, 8 tokens; the shortest has \d+: raise SFT"
    ):
        prepare(recipe_of(base, max_length=8), tokenizer)


def test_what_took_long_is_kept_and_found_again(
    tokenizer: ChatTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = load_examples(Data(path=str(QUOTES)), seed=0).examples
    monkeypatch.setattr(encoding, "SLOW_S", -1.0)
    made = encoding.encode_all(tokenizer, examples, True, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert encoding.encode_all(tokenizer, examples, True, cache=tmp_path) == made
    assert encoding.encode_all(tokenizer, examples[:9], True, cache=tmp_path) == made[:9]
    assert len(list(tmp_path.iterdir())) == 2, "other rows are another file"
    for some in range(10, 16):
        encoding.encode_all(tokenizer, examples[:some], True, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == encoding.KEPT


def test_several_processes_give_the_same_ids(
    tokenizer: ChatTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = load_examples(Data(path=str(QUOTES)), seed=0).examples
    alone = encoding.encode_all(tokenizer, examples, True, cache=tmp_path)
    monkeypatch.setattr(encoding, "MANY", 1)
    assert encoding.encode_all(tokenizer, examples, True, cache=tmp_path) == alone


def test_the_row_that_the_template_refuses_is_named(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="the row that begins 'Hello': "):
        encoding.encode_all(
            tokenizer, [Example([{"role": "tool", "content": "Hello"}], "", "g")], True, cache=tmp_path
        )


def write_recipe(folder: Path, base: Path, **sft: object) -> str:
    """JSON is YAML too."""
    path = folder / "r.yaml"
    path.write_text(recipe_of(base, **sft).model_dump_json(by_alias=True))
    return str(path)


def test_the_command_shows_what_is_trained(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path, base)
    assert command.main([path]) == 0
    said = capsys.readouterr().out
    assert "262 rows, read as quotes; 253 examples" in said
    assert "left out: 9, the same quote as an earlier row's" in said
    assert "% of them trained" in said
    assert "blocks of 512 tokens" in said
    assert "<|im_start|>assistant\n[[You should always stay hungry." in said
    assert "Author: Syed Balkhi<|im_end|>]]" in said
    assert said.rstrip().endswith(f"Next: {command_line('train/qlora.py', [path, '--plan'])}")
    assert command.main([write_recipe(tmp_path, base, packing=False)]) == 0
    assert "no packing: batches of 4 would be" in capsys.readouterr().out


def test_control_characters_of_the_data_never_reach_the_terminal() -> None:
    assert harmless("a\x1b[31m\nb\u202ec") == "a\\x1b[31m\nb\\u202ec"


def test_mistakes_have_their_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["no-such-recipe"]) == 1
    assert "no recipe is called 'no-such-recipe'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        command.main([])
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err
