"""ROUGE-L and chrF of replies that are short enough to count by hand."""

from __future__ import annotations

import pytest

from train.tasks.text_scores import chrf, rouge_l


@pytest.mark.parametrize(
    ("reply", "expected"),
    [("The cat sat.", 1.0), ("the CAT", 0.8), ("sat cat the", 1 / 3), ("a dog", 0.0), ("", 0.0)],
)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(reply: str, expected: float) -> None:
    assert rouge_l(reply, "The cat sat.") == pytest.approx(expected)


def test_chrf_counts_character_n_grams() -> None:
    assert chrf("le chat", "le chat") == 1
    assert chrf("xyz", "le chat") == chrf("", "le chat") == 0
    # 1-grams: 2 of 2 made, 2 of 3 wanted; 2-grams: 1 of 1, 1 of 2; there are no longer ones of "ab".
    precision, recall = 1.0, (2 / 3 + 1 / 2) / 2
    assert chrf("ab", "abc") == pytest.approx(5 * precision * recall / (4 * precision + recall))
