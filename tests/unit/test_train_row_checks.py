"""What tokenized rows are refused for: ends that aren't trained, BOS, padding, rows that got lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.tokenizer import ChatTokenizer
from tests.unit.letters import CHAT, Kept, make_tokenizer
from train.checks import check_rows
from train.examples import Encoded, Example
from train.labels import encode


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_the_tokenizer_here_is_a_sound_one(tokenizer: ChatTokenizer) -> None:
    [row] = encode(tokenizer, Example(CHAT, "", ""))
    assert tokenizer.decode(row.ids) == "<s>user:Hi</s>assistant:Hello</s>"
    kept = Kept()
    check_rows(kept.checks, [row], tokenizer, 0)
    assert kept.passes()


def test_texts_end_nowhere(tokenizer: ChatTokenizer) -> None:
    [row] = encode(tokenizer, Example([], "“To be” ~ William", ""))
    kept, waived = Kept(), Kept("untrained_stop")
    check_rows(kept.checks, [row], tokenizer, 0)
    said = kept.refusal()
    assert "row 1 trains 0 stop tokens in 1 turns of the assistant" in said
    assert "data.format: chat puts them in (to train all the same: --waive untrained_stop, " in said
    check_rows(waived.checks, [row], tokenizer, 0)
    assert waived.passes()


def test_every_row_is_looked_at(tokenizer: ChatTokenizer) -> None:
    [sound] = encode(tokenizer, Example(CHAT, "", ""))
    untrained = Encoded(sound.ids, [*sound.mask[:-1], 0], sound.messages)
    kept = Kept()
    check_rows(kept.checks, [*[sound] * 50, untrained], tokenizer, 0)
    assert "row 51 trains 0 stop tokens in 1 turns" in kept.refusal()


def test_one_end_for_two_turns(tokenizer: ChatTokenizer) -> None:
    [sound] = encode(tokenizer, Example([*CHAT, *CHAT], "", ""))
    first = sound.mask.index(1)
    stop = next(at for at in range(first, len(sound.ids)) if sound.ids[at] in tokenizer.stop_ids)
    mask = [*sound.mask[:stop], 0, *sound.mask[stop + 1 :]]
    kept = Kept()
    check_rows(kept.checks, [Encoded(sound.ids, mask, sound.messages)], tokenizer, 0)
    assert "row 1 trains 1 stop tokens in 2 turns" in kept.refusal()


@pytest.mark.parametrize(
    ("count", "said"), [(0, "begins with 0 BOS tokens"), (2, "begins with 2 BOS tokens")]
)
def test_bos_missing_and_doubled(count: int, said: str, tokenizer: ChatTokenizer) -> None:
    [sound] = encode(tokenizer, Example(CHAT, "", ""))
    assert tokenizer.adds_bos
    ids, mask = [1] * count + sound.ids[1:], [0] * count + sound.mask[1:]
    kept, waived = Kept(), Kept("bos")
    check_rows(kept.checks, [sound, Encoded(ids, mask, CHAT)], tokenizer, 0)
    assert f"row 2 {said}" in kept.refusal()
    check_rows(waived.checks, [Encoded(ids, mask, CHAT)], tokenizer, 0)
    assert waived.passes()


def test_a_tokenizer_that_adds_no_bos_needs_none(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, bos=False)
    assert not tokenizer.adds_bos
    [row] = encode(tokenizer, Example(CHAT, "", ""))
    kept = Kept()
    check_rows(kept.checks, [row, Encoded(row.ids[1:], row.mask[1:], CHAT)], tokenizer, 0)
    assert kept.passes()
    check_rows(kept.checks, [Encoded([1, *row.ids], [0, *row.mask], CHAT)], tokenizer, 0)
    assert "row 1 begins with 2 BOS tokens" in kept.refusal()


def test_no_token_to_pad_with(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, ("</s>", "<s>"))
    assert tokenizer.pad_id is None
    kept, waived = Kept(), Kept("pad_is_stop")
    [row] = encode(tokenizer, Example(CHAT, "", ""))
    check_rows(kept.checks, [row], tokenizer, 0)
    assert "no token to pad with that isn't a stop token" in kept.refusal()
    check_rows(waived.checks, [row], tokenizer, 0)
    assert waived.passes()


@pytest.mark.parametrize("pad", ["</s>", "<s>", None])
def test_a_pad_token_that_ends_replies_is_not_used(pad: str | None, tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": pad}))
    tokenizer = ChatTokenizer(tmp_path)
    assert tokenizer.pad_id == 0
    assert tokenizer.tokenizer.pad_token == pad  # nothing of the base is changed


def test_rows_that_got_lost(tokenizer: ChatTokenizer) -> None:
    kept = Kept()
    check_rows(kept.checks, [], tokenizer, 3)
    assert "3 rows of the data are neither used nor accounted for" in kept.refusal()
