"""What a score needs of the model: greedy replies, the probabilities of a few labels, and the loss."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

from train.examples import Example

Chat = list[dict[str, str]]  # messages; here always without the assistant's last turn


class Scored(Protocol):
    """A model that can be scored, base or adapter alike."""

    def answer(self, chats: list[Chat], max_new_tokens: int | Sequence[int]) -> list[str]:
        """Greedy replies, one a chat, without the stop token; one limit for all, or one for each."""

    def label_probabilities(self, chats: list[Chat], labels: list[str]) -> list[list[float]]:
        """For each chat, the labels' probabilities as the reply's first token; they add up to 1."""

    def loss(self, examples: list[Example]) -> float:
        """Mean negative log likelihood in nats over the trained tokens."""


def prompt_of(example: Example) -> str:
    """The text of the last message before the reply."""
    return example.messages[-2]["content"] if len(example.messages) > 1 else ""


def sample(examples: Sequence[Example], size: int) -> list[Example]:
    """At most `size` examples of different prompts, by the prompts' hashes: the same in every run."""
    unique = {prompt_of(example): example for example in examples}
    ordered = sorted(unique, key=lambda prompt: hashlib.sha256(prompt.encode()).digest())
    return [unique[prompt] for prompt in ordered[:size]]
