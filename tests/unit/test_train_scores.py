"""Scores from replies and likelihoods that are given, so that each figure can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from chat.sms_page import Calibration
from core.sms import BASELINES, FIGURES, is_of_baseline, prompt
from train.examples import Example
from train.run import score
from train.tasks.code_instructions import load_problems, program
from train.tasks.quotes import distinct, parts
from train.tasks.scored import Chat, sample
from train.tasks.sms import expected_figures, figures
from train.tasks.sms_baselines import baselines
from train.tasks.sms_calibration import (
    bins_in,
    calibration,
    calibration_bins,
    draw_calibration,
    interval,
    scores_of,
)


class Answers:
    """Replies and likelihoods of `yes` by the prompt."""

    def __init__(self, replies: dict[str, str], likely: dict[str, float] | None = None) -> None:
        self._replies, self._likely = replies, likely or {}

    def answer(self, chats: list[Chat], max_new_tokens: int) -> list[str]:
        return [self._replies[chat[-1]["content"]] for chat in chats]

    def label_probabilities(self, chats: list[Chat], labels: list[str]) -> list[list[float]]:
        assert labels == ["yes", "no"]
        return [[p, 1 - p] for p in (self._likely[chat[-1]["content"]] for chat in chats)]

    def loss(self, examples: list[Example]) -> float:
        return 2.5


def chat(prompt: str, reply: str) -> Example:
    return Example(
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}], "", "group"
    )


TRAIN = [
    chat("Quote: To be, or", "To be, or not to be.\nAuthor: William Shakespeare"),
    chat("Quote: I think, therefore", "I think, therefore I am.\nAuthor: Descartes"),
]
TESTS = [
    chat("Quote: Know thyself and", "Know thyself and be well.\nAuthor: Socrates"),
    chat("Quote: Less is more", "Less is more in houses.\nAuthor: Mies"),
    chat("Quote: To be, or", "To be, or to seem.\nAuthor: Somebody Else"),  # a prompt that was trained
]


def test_the_scores_of_quotes_are_shares_of_seen_and_unseen_prompts() -> None:
    model = Answers(
        {
            "Quote: Know thyself and": "Know thyself.\nAuthor: socrates.",
            "Quote: Less is more": "I think,  therefore I am.",
            "Quote: To be, or": "To be, or not to be.\nAuthor: William Shakespeare",
            "Quote: I think, therefore": "I think, therefore I am.\nAuthor: Kant",
        }
    )
    assert score("quotes", model, TESTS, TRAIN) == {
        "test_loss": 2.5,
        "author_right_seen": 0.5,
        "author_right_unseen": 0.5,
        "format_kept": 0.5,
        "memorised": 0.5,
        "distinct_1": 8 / 9,  # "i" is there twice
        "distinct_2": 1.0,
    }


def test_an_author_of_any_quote_with_these_first_words_is_right() -> None:
    train = [*TRAIN, chat("Quote: To be, or", "To be, or to have?\nAuthor: Erich Fromm")]
    model = Answers({example.messages[0]["content"]: "x\nAuthor: Erich Fromm" for example in train})
    assert score("quotes", model, [], train) == {"author_right_seen": 0.5}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("A.\nAuthor: B", ("A.", "B")),
        (" A.\nand more\nAuthor: B \n", ("A.\nand more", "B")),
        ("A.\n\nAuthor: B", ("A.", "B")),
        ("A. Author: B", ("A. Author: B", None)),
        ("A.\nAuthor:", ("A.", None)),
        ("Author: B", ("Author: B", None)),
        ("A.\nAuthor: B\nAuthor: C", ("A.", None)),
        ("A.\nAuthor: B\nand on", ("A.", None)),
        ("", ("", None)),
    ],
)
def test_the_format_is_a_text_and_one_author_as_the_last_line(
    reply: str, expected: tuple[str, str | None]
) -> None:
    assert parts(reply) == expected


def test_distinct_counts_different_ngrams_over_all_texts() -> None:
    assert distinct(["a b a", "A b"], 1) == 2 / 5
    assert distinct(["a b a", "A b"], 2) == 2 / 3
    assert distinct(["", "a"], 2) == 0


def test_the_sample_is_the_same_whatever_the_order_and_has_no_prompt_twice() -> None:
    examples = [chat(f"Quote: {i % 60}", "x\nAuthor: y") for i in range(80)]
    prompts = [example.messages[0]["content"] for example in sample(examples, 50)]
    again = [example.messages[0]["content"] for example in sample(examples[::-1], 50)]
    assert prompts == again
    assert len(set(prompts)) == 50


def test_a_chat_and_plain_texts_have_their_held_out_loss_only() -> None:
    assert score("oasst1", Answers({}), TESTS, TRAIN) == {"test_loss": 2.5}
    assert score("quotes", Answers({}), [Example([], "Quote: a", "a")], TRAIN) == {"test_loss": 2.5}
    assert score("oasst1", Answers({}), [], TRAIN) == {}


def test_the_scores_of_sms_are_of_the_likelihood_beside_baselines() -> None:
    train = [chat(f"sale {i}", "yes") for i in range(10)] + [chat(f"news {i}", "no") for i in range(30)]
    tests = [chat("sale", "yes"), chat("news", "no")]
    scores = score("sms", Answers({}, {"sale": 0.8, "news": 0.3}), tests, train)
    assert scores["auc"] == 1
    assert scores["log_loss"] == pytest.approx(-(math.log(0.8) + math.log(0.7)) / 2)
    assert scores["brier"] == pytest.approx((0.04 + 0.09) / 2)
    assert scores["calibration_error"] == pytest.approx((0.2 + 0.3) / 2)
    assert scores["mean_rate_brier"] == pytest.approx((0.75**2 + 0.25**2) / 2)
    assert scores["mean_rate_auc"] == 0.5
    assert scores["tfidf_auc"] == 1
    assert {name for name in scores if is_of_baseline(name)} == {
        f"{b}_{f}"
        for b in BASELINES
        for f in FIGURES[:4]  # no truth is known
    }
    assert [scores[f"bin_8_{name}"] for name in ("predicted", "observed", "rows")] == [0.8, 1, 1]


def test_a_baseline_reads_the_message_and_its_features_and_not_the_question() -> None:
    def rows(count: int, ask: Callable[[str], str] = str) -> list[Example]:
        sold = [
            chat(ask(f"Tea {i}: 50% off, {'today only' if i % 3 else 'always'}"), "yes") for i in range(count)
        ]
        return sold + [chat(ask(f"Our tea {i} is here"), "no") for i in range(count)]

    likely = {example.messages[0]["content"]: 0.5 for example in rows(5) + rows(5, prompt)}
    plain = score("sms", Answers({}, likely), rows(5), rows(40))
    asked = score("sms", Answers({}, likely), rows(5, prompt), rows(40, prompt))
    assert plain == asked
    assert plain["auc"] == 0.5
    for name in BASELINES.keys() - {"mean_rate"}:
        assert plain[f"{name}_auc"] == 1, name
        assert plain[f"{name}_log_loss"] < plain["mean_rate_log_loss"]


def test_where_the_truth_is_known_it_is_said_how_much_of_it_was_found() -> None:
    train = [chat(f"sale {i}", "yes") for i in range(10)] + [chat(f"news {i}", "no") for i in range(30)]
    tests = [replace(chat(text, "no"), true=true) for text, true in (("sale", 0.9), ("news", 0.05))]
    found = score("sms", Answers({}, {"sale": 0.9, "news": 0.05}), tests, train)
    assert found["share_of_truth_reached"] == pytest.approx(1)
    assert found["mean_rate_share_of_truth_reached"] == 0
    assert 0 < found["tfidf_share_of_truth_reached"] < 1
    wrong = Answers({}, {"sale": 0.1, "news": 0.9})
    assert score("sms", wrong, tests, train)["share_of_truth_reached"] < 0
    flat = [replace(example, true=0.25) for example in tests]  # the mean rate is all that there is to know
    assert "share_of_truth_reached" not in score("sms", wrong, flat, train)
    partly = [tests[0], chat("news", "no")]
    assert "share_of_truth_reached" not in score("sms", wrong, partly, train)


def test_the_calibration_that_the_page_reads_is_a_line_in_log_odds() -> None:
    draw = np.random.default_rng(0)
    log_odds = draw.normal(0, 2, 4000)
    truth = (draw.random(4000) < 1 / (1 + np.exp(-(0.5 * log_odds - 0.3)))).astype(int).tolist()
    found = calibration("m", truth, (1 / (1 + np.exp(-log_odds))).tolist())
    assert found["slope"] == pytest.approx(0.5, abs=0.1)
    assert found["intercept"] == pytest.approx(-0.3, abs=0.1)
    assert Calibration.model_validate(found).calibrated(0.5) == pytest.approx(0.43, abs=0.03)
    assert calibration("m", [1, 1], [0.2, 0.3]) == {}


def test_where_all_or_none_sold_the_mean_rate_is_the_only_baseline() -> None:
    assert baselines(["a", "b"], [1, 1], ["c"]) == {"mean_rate": [1]}
    assert baselines([], [], ["c"]) == {}


def test_bins_that_are_scores_are_read_again_as_what_they_were() -> None:
    bins = calibration_bins([0, 1, 1], [0.2, 0.25, 0.9])
    assert bins_in(scores_of(bins) | {"auc": 0.5}) == bins
    assert bins_in({"auc": 0.5}) == {}


def test_the_bars_are_wilsons_interval() -> None:
    low, high = interval(0.3, 40)
    for end in (low, high):  # where the share that was seen is one standard error away
        assert abs(end - 0.3) == pytest.approx(math.sqrt(end * (1 - end) / 40))
    assert interval(1, 1) == (0.5, 1)
    assert interval(0, 1) == (0, 0.5)


def test_bins_of_few_rows_are_drawn_hollow_and_on_no_line() -> None:
    bins = {0: (0.05, 0.1, 40), 3: (0.35, 0.3, 5), 7: (0.75, 1.0, 4)}
    made = draw_calibration({"after": bins}, {"after": "#0072b2"}, "Calibration")
    points = [line for line in made.axes[0].lines if line.get_marker() == "o" and line.get_label() != "after"]
    drawn = [np.array(line.get_xdata()).tolist() for line in points]
    assert drawn == [[0.05, 0.35], [0.75], []]  # the last is the legend's
    assert [line.get_markerfacecolor() for line in points] == ["#0072b2", "white", "white"]
    assert "fewer than 5 rows" in [text.get_text() for text in made.legends[0].get_texts()]
    whole = draw_calibration({"after": {0: bins[0]}}, {"after": "#0072b2"}, "Calibration")
    assert "fewer than 5 rows" not in [text.get_text() for text in whole.legends[0].get_texts()]


def test_the_expected_scores_are_the_means_over_many_draws() -> None:
    likely, true = np.linspace(0.05, 0.9, 16), np.linspace(0.1, 0.6, 16)[::-1]
    draws = np.random.default_rng(0).random((20_000, 16)) < true
    found = expected_figures(true.tolist(), likely.tolist())
    assert found["expected_brier"] == pytest.approx(((draws - likely) ** 2).mean(), abs=2e-3)
    log_loss = -np.where(draws, np.log(likely), np.log(1 - likely)).mean()
    assert found["expected_log_loss"] == pytest.approx(log_loss, abs=4e-3)
    best = expected_figures(true.tolist(), true.tolist())
    assert best["expected_log_loss"] < found["expected_log_loss"]
    assert math.isfinite(expected_figures([0.3, 0.3], [0.0, 1.0])["expected_log_loss"])


def test_bins_hold_the_ends_and_one_class_has_no_auc() -> None:
    assert calibration_bins([0, 0, 1, 1], [0.0, 0.05, 1.0, 0.95]) == {
        0: (pytest.approx(0.025), 0, 2),
        9: (pytest.approx(0.975), 1, 2),
    }
    assert "auc" not in figures([1, 1], [0.9, 1.0])


def test_code_is_found_in_a_block_or_in_a_plain_reply() -> None:
    problem = load_problems()[0]
    whole = f"def {problem.entry_point}(numbers, threshold):\n    return False"
    for reply in (
        whole,
        f"Here:\n```python\n{whole}\n```\nIt returns False.",
        f"```\nimport math\n```\nand\n```py\n{whole}\n```",
        f"```python\n{whole}",  # cut by the limit on tokens
        "    return False\n",  # the body alone
    ):
        assert program(problem, reply).rstrip().endswith("return False")
    for reply in ("", "```python\n```", "I can't.", "```python\ndef f(:\n```", "x = '\0'"):
        assert program(problem, reply) == ""
