"""Two layers of the embedded model quantised by bitsandbytes: gradients, weights, and optimizers' states."""

from __future__ import annotations

import hashlib
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit

from core.tokenizer import ChatTokenizer
from tests.integration.small_runs import NF4, chats, recipe_of
from train.batches import Order, collate
from train.evaluation import evaluate
from train.examples import Encoded, Example
from train.generate import greedy
from train.labels import encode
from train.logged import Report
from train.model import Adapted, load_base
from train.recipe import Recipe
from train.sft import SFTTrainer

CPU = torch.device("cpu")
LAYERS = 2


@pytest.fixture(scope="module")
def rows(base: Path) -> list[Encoded]:
    tokenizer = ChatTokenizer(base)
    return [part for chat in chats(6) for part in encode(tokenizer, Example(chat, "", ""))]


def adapted_to(base: Path, **sections: Any) -> tuple[Adapted, Recipe]:
    """The base with an adapter that changes something, so that each of its parts has a gradient."""
    recipe = recipe_of(base, base, **sections)
    adapted = Adapted(load_base(str(base), recipe, CPU), recipe, CPU)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    return adapted, recipe


def gradients(adapted: Adapted, rows: list[Encoded]) -> dict[str, torch.Tensor]:
    adapted.train()
    adapted.zero_grad()
    adapted(collate(rows)).backward()
    return {
        n: p.grad.clone() for n, p in adapted.named_parameters() if p.requires_grad and p.grad is not None
    }


def weights_hash(adapted: Adapted) -> str:
    """A hash of everything that isn't the adapter, as it is stored."""
    digest = hashlib.sha256()
    for name, tensor in adapted.state_dict().items():
        if "lora_" not in name:
            digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def in_loop(
    adapted: Adapted, recipe: Recipe, rows: list[Encoded], folder: Path, report: Report = lambda _: None
) -> SFTTrainer:
    return SFTTrainer(adapted, recipe, Order(rows, recipe.sft), rows[:2], folder, report)


@pytest.mark.parametrize("kind", [NF4, NF4 | {"bnb_4bit_quant_type": "fp4"}, {"load_in_8bit": True}])
def test_an_evaluation_changes_no_gradient(kind: dict[str, Any], base: Path, rows: list[Encoded]) -> None:
    adapted, recipe = adapted_to(base, BitsAndBytesConfig=kind)
    kinds = {type(module).__name__ for module in adapted.modules()}
    assert ("Linear8bitLt" if "load_in_8bit" in kind else "Linear4bit") in kinds
    before = gradients(adapted, rows)
    assert before.keys() == {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert all(gradient.any() for gradient in before.values())
    evaluate(adapted, rows, recipe, CPU)
    after = gradients(adapted, rows)
    for name, gradient in before.items():
        assert torch.equal(gradient, after[name]), name


def test_no_layer_repacks_its_weights(base: Path) -> None:
    """This machine's CPU may not be one that does it; the switch is what keeps those from it that do."""
    adapted, _ = adapted_to(base, BitsAndBytesConfig=NF4)
    switches = [
        module.support_avx512bf16_for_cpu
        for module in adapted.modules()
        if hasattr(module, "support_avx512bf16_for_cpu")
    ]
    assert len(switches) == LAYERS * 7
    assert not any(switches)


def test_gradients_are_those_of_the_weights_that_nf4_stands_for(base: Path, rows: list[Encoded]) -> None:
    quantised, _ = adapted_to(base, BitsAndBytesConfig=NF4)
    plain, _ = adapted_to(base)
    layers = dict(quantised.named_modules())
    for name, module in plain.named_modules():
        if isinstance(module, torch.nn.Linear) and hasattr(
            getattr(layers[name], "weight", None), "quant_state"
        ):
            weight = layers[name].weight
            module.weight.data = dequantize_4bit(weight.data, weight.quant_state).to(torch.float32)
    trained = {n: p for n, p in quantised.named_parameters() if p.requires_grad}
    for name, parameter in plain.named_parameters():
        if name in trained:
            parameter.data.copy_(trained[name].data)
    ours, theirs = gradients(quantised, rows), gradients(plain, rows)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize("lora", [{}, {"use_dora": True}])
@pytest.mark.parametrize("kind", [None, NF4])
def test_what_answers_is_what_was_trained(
    kind: dict[str, Any] | None, lora: dict[str, Any], base: Path, rows: list[Encoded]
) -> None:
    """Word for word the most likely one by the model that the loss is computed with.

    Not so for LLM.int8(): which columns it leaves unrounded depends on the tokens that come together, so with
    a cache the logits are others than without.
    """
    adapted, _ = adapted_to(base, BitsAndBytesConfig=kind, lora=lora)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(40)  # so that without the adapter the words would be others
    tokenizer = ChatTokenizer(base)
    chat = rows[0].messages[:1]
    (reply,) = greedy(adapted, tokenizer, [chat], 6)
    ids = tokenizer.encoder.encode(chat)
    adapted.eval()
    expected = most_likely(adapted, ids, 6)
    assert reply == tokenizer.decode(expected, skip_special_tokens=True)
    with adapted.peft.disable_adapter():
        assert most_likely(adapted, ids, 6) != expected


@pytest.mark.parametrize("kind", [None, NF4])
def test_replies_are_the_same_together_and_one_by_one(
    kind: dict[str, Any] | None, base: Path, rows: list[Encoded]
) -> None:
    adapted, _ = adapted_to(base, BitsAndBytesConfig=kind)
    tokenizer = ChatTokenizer(base)
    chats = [row.messages[:1] for row in rows[:4]]
    chats[1] = [{"role": "user", "content": "Hi."}]  # far shorter: the others' length is in its padding
    limits = [3, 9, 1, 6]
    alone = [greedy(adapted, tokenizer, [chat], most)[0] for chat, most in zip(chats, limits, strict=True)]
    assert greedy(adapted, tokenizer, chats, limits) == alone
    assert greedy(adapted, tokenizer, chats, 9) != alone


def most_likely(adapted: Adapted, ids: list[int], count: int) -> list[int]:
    """What follows `ids`, without a cache."""
    found: list[int] = []
    for _ in range(count):
        logits = adapted.peft(input_ids=torch.tensor([ids + found]), use_cache=False).logits
        found.append(int(logits[0, -1].argmax()))
    return found


@pytest.mark.parametrize("kind", [NF4, {"load_in_8bit": True}])
def test_training_lowers_the_loss_and_leaves_the_base_alone(
    kind: dict[str, Any], base: Path, rows: list[Encoded], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sft = {"max_steps": 4, "eval_steps": 2, "max_length": 64}
    adapted, recipe = adapted_to(base, BitsAndBytesConfig=kind, sft=sft)
    before = weights_hash(adapted)
    progress = in_loop(adapted, recipe, rows, tmp_path).run()
    assert progress.start_loss
    assert progress.best_loss < progress.start_loss
    assert weights_hash(adapted) == before
    assert not caplog.records  # of bitsandbytes, in 8 bit: one for each forward pass of each layer


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "paged_adamw_8bit", "paged_adamw_32bit"])
def test_an_optimizers_state_survives_a_checkpoint(
    optim: str, base: Path, rows: list[Encoded], tmp_path: Path
) -> None:
    lora = {"target_modules": ["gate_proj"], "r": 8}  # 4,096 weights and more, or 8 bits aren't used
    sft = {"max_steps": 4, "eval_steps": 2, "optim": optim, "max_length": 64}
    adapted, recipe = adapted_to(base, lora=lora, sft=sft)
    fresh = {name: p.detach().clone() for name, p in adapted.named_parameters() if p.requires_grad}
    whole = in_loop(adapted, recipe, rows, tmp_path / "whole")
    whole.run()
    expected = {name: p.detach().clone() for name, p in whole.parameters.items()}
    if optim == "paged_adamw_8bit":
        states = [state["state1"].dtype for state in whole.optimizer.state.values()]
        assert torch.uint8 in states

    for name, parameter in whole.parameters.items():
        parameter.data.copy_(fresh[name])

    def stop(line: dict[str, Any]) -> None:
        if line["step"] == 2 and "loss" in line:  # once: the second Ctrl-C counts at once
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        in_loop(adapted, recipe, rows, tmp_path / "halves", stop).run()
    for parameter in adapted.parameters_to_train():
        parameter.data.zero_()
    second = in_loop(adapted, recipe, rows, tmp_path / "halves")
    second.resume()
    assert second.progress.step in (2, 3)
    second.run()
    for name, parameter in second.parameters.items():
        assert torch.equal(parameter, expected[name]), name
