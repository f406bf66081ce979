"""Features of marketing messages by rules: hard cases, false friends, and what the rules are unsure of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import precision_score, recall_score

from core.sms import FIELDS, Features, capitals, segments
from core.sms_rules import extract, hybrid
from train.tasks.sms_gold import NOTHING, compared, found_of, gold, precision_recall

FOUND: list[tuple[str, dict[str, Any]]] = [
    ("20% off all shoes", {"discount": "percent", "size": 20}),
    ("Twenty percent off", {"discount": "percent", "size": 20}),
    ("twenty-five percent off", {"discount": "percent", "size": 25}),
    ("Everything at half price", {"discount": "percent", "size": 50}),
    ("20 % Rabatt auf Schuhe", {"discount": "percent", "size": 20}),
    ("25% de descuento", {"discount": "percent", "size": 25}),
    ("$10 off your order", {"discount": "amount", "size": 10, "currency": "USD"}),
    ("Save £5", {"discount": "amount", "size": 5, "currency": "GBP"}),
    ("Ten dollars off", {"discount": "amount", "size": 10, "currency": "USD"}),
    ("Rs. 250 off", {"discount": "amount", "size": 250, "currency": "INR"}),
    ("Buy one, get one free", {"discount": "buy_one_get_one"}),
    ("Two for one on mugs", {"discount": "buy_one_get_one"}),
    ("BOGO!", {"discount": "buy_one_get_one"}),
    ("FREE SHIPPING", {"discount": "free_shipping"}),
    ("Ends at midnight", {"deadline": True}),
    ("Nur noch bis Freitag", {"deadline": True}),
    ("hxxps://bit[.]example/9x", {"link": True}),
    ("lumovi dot com", {"link": True}),
    ("oakrill.example/x7", {"link": True}),
    ("Shop now", {"call_to_action": True}),
    ("Jetzt kaufen!", {"call_to_action": True}),
    ("Hi Ben!", {"personal": True}),
    ("Liebe Carla, hallo", {"personal": True}),
    ("LUMOVI: ANNA, THIS IS FOR YOU.", {"personal": True}),
    ("Reply STOP to opt out", {"opt_out": True}),
    ("STOP=end", {"opt_out": True}),
    ("☕️", {"emoji": True}),
]
NOT_FOUND: list[tuple[str, str]] = [
    ("New shirts, 50% cotton", "discount"),
    ("100% natural", "discount"),
    ("Face creams from $30", "discount"),
    ("Room 20 is a tea house", "discount"),
    ("At last, they are back", "deadline"),
    ("Open till late every day", "deadline"),
    ("Version 2.0 of our tea", "link"),
    ("Hi there!", "personal"),
    ("Dear customer,", "personal"),
    ("Don't stop dreaming", "opt_out"),
    ("Stop by our shop", "opt_out"),
    ("Reply STOP to opt out", "call_to_action"),
    (":-)", "emoji"),
]


@pytest.mark.parametrize(("message", "wanted"), FOUND, ids=[message for message, _ in FOUND])
def test_a_hard_case_is_found(message: str, wanted: dict[str, Any]) -> None:
    found, _ = extract(message)
    assert {name: getattr(found, name) for name in wanted} == wanted


@pytest.mark.parametrize(("message", "field"), NOT_FOUND, ids=[message for message, _ in NOT_FOUND])
def test_a_false_friend_is_not(message: str, field: str) -> None:
    assert getattr(extract(message)[0], field) in ("none", False)


def test_what_may_mean_something_is_unsure_and_what_was_found_is_not() -> None:
    _, unsure = extract(
        "Delivery is on the house. When the clock strikes twelve, it ends. More on n o r d i m . example"
    )
    assert {"discount", "size", "deadline", "link"} <= unsure
    _, unsure = extract("Tea: 20% off")
    assert not unsure
    _, unsure = extract("Our tents arrived")
    assert not unsure


def test_the_hybrid_has_the_models_word_only_where_the_rules_are_unsure() -> None:
    found, unsure = extract("Tea: 20% off. When the clock strikes twelve, it ends.")
    assert unsure == {"deadline"}
    read = found.model_copy(update={"deadline": True, "size": 99, "link": True})
    assert hybrid(found, unsure, read) == found.model_copy(update={"deadline": True})
    assert hybrid(found, unsure, None) == found


def test_precision_and_recall_are_scikit_learns() -> None:
    draw = np.random.default_rng(1)
    truth, found = (draw.random(60) < 0.4 for _ in range(2))
    wanted = precision_score(truth, found), recall_score(truth, found)
    assert precision_recall(truth.tolist(), found.tolist()) == pytest.approx(wanted)
    assert precision_recall([0, 20, 20], [0, 25, 20]) == (0.5, 0.5)  # a wrong size is not found
    assert precision_recall(["none"], ["none"]) == (None, None)


def test_the_rules_say_little_of_the_gold_set_that_is_wrong_and_find_most() -> None:
    messages, truth = zip(*gold(200, 0), strict=True)
    found = found_of(truth, [extract(message)[0] for message in messages])
    for field, (precision, recall) in found.items():
        assert precision, field
        assert recall, field
        assert precision > 0.95, field
        assert recall > 0.7, field
    nothing = found_of(truth, [None] * 200)
    assert nothing == found_of(truth, [NOTHING] * 200)
    assert set(nothing.values()) == {(None, 0)}


def test_a_reading_that_fills_no_schema_is_counted_and_costs_recall() -> None:
    messages, truth = zip(*gold(20, 0), strict=True)
    found, unsure = zip(*map(extract, messages), strict=True)
    whole = compared(truth, found, unsure, list(truth), (0.25, [2.0] * 20))
    assert whole["model"].unfilled == whole["hybrid"].unfilled == 0
    assert all(recall in (1, None) for _, recall in whole["model"].fields.values())
    doubtful = next(n for n in range(20) if unsure[n] and truth[n].deadline)
    certain = next(n for n in range(20) if not unsure[n])
    read = [None if n in (doubtful, certain) else truth[n] for n in range(20)]
    broken = compared(truth, found, unsure, read, (0.25, [2.0] * 20))
    assert broken["model"].unfilled == 2
    assert broken["hybrid"].unfilled == 1  # who wasn't asked about the other
    assert (broken["model"].fields["deadline"][1] or 0) < 1
    asked = sum(map(bool, unsure))
    assert [each.asked for each in whole.values()] == [0, 20, asked]
    assert whole["hybrid"].seconds == pytest.approx(2.0 * asked / 20 + 0.25)
    assert whole["rules"].fields == found_of(truth, found)


def test_the_gold_set_is_the_same_each_time_different_in_each_message_and_has_all_kinds() -> None:
    messages = gold(200, 0)
    assert messages == gold(200, 0) != gold(200, 1)
    assert len({text for text, _ in messages}) == 200
    for field in FIELDS:
        values = {getattr(truth, field) for _, truth in messages}
        assert len(values) > 1, field
    assert {t.discount for _, t in messages} == set(
        Features.model_json_schema()["properties"]["discount"]["enum"]
    )


@pytest.mark.parametrize(
    ("message", "count"),
    [
        *[("a" * 160, 1), ("a" * 161, 2), ("a" * 306, 2), ("a" * 307, 3), ("€" * 80, 1), ("€" * 81, 2)],
        *[("🎉" * 35, 1), ("🎉" * 36, 2), ("ß" * 160, 1), ("ç" * 71, 2), ("", 1)],
    ],
)
def test_a_message_is_sent_in_as_many_parts_as_its_alphabet_makes_it(message: str, count: int) -> None:
    assert segments(message) == count


def test_capitals_are_counted_among_letters() -> None:
    assert capitals("ABCD 123!") == 1
    assert capitals("Ab 1") == 0.5
    assert capitals("123") == 0
