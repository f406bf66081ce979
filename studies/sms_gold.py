"""A gold set of marketing messages whose features are known, as each is put together of parts with labels.

Nothing of it is real. Half of the parts are hard on purpose: numbers in words, "buy one get one", three
languages in a message, addresses in disguise, and what only looks like a discount, a deadline, a name or an
opt-out. The parts were written before the rules of `chat/sms_rules.py` were first run on them.
"""

from __future__ import annotations

import random
from typing import Any

from core.sms import Features

Part = tuple[str, dict[str, Any]]

_NONE: dict[str, Any] = {
    "discount": "none",
    "size": 0,
    "currency": "none",
    **dict.fromkeys(("deadline", "link", "call_to_action", "personal", "emoji", "opt_out"), False),
}


def _percent(size: int) -> dict[str, Any]:
    return {"discount": "percent", "size": size}


def _amount(size: int, currency: str) -> dict[str, Any]:
    return {"discount": "amount", "size": size, "currency": currency}


_BOGO, _SHIPPING = {"discount": "buy_one_get_one"}, {"discount": "free_shipping"}

EASY_OFFERS: list[Part] = [
    ("20% off all running shoes.", _percent(20)),
    ("Get 15% discount on headphones.", {**_percent(15), "call_to_action": True}),
    ("Save 30% on garden tools.", _percent(30)),
    ("$10 off your next order.", _amount(10, "USD")),
    ("Save £5 on face creams.", _amount(5, "GBP")),
    ("€20 off summer dresses.", _amount(20, "EUR")),
    ("Free shipping on coffee beans.", _SHIPPING),
    ("Buy one, get one free: socks.", _BOGO),
    ("Our new tents are here.", {}),
    ("The autumn collection has arrived.", {}),
]
HARD_OFFERS: list[Part] = [
    ("Twenty percent off everything in store.", _percent(20)),
    ("All lamps at half price.", _percent(50)),
    ("A third off garden furniture... well, 33 pct less.", _percent(33)),
    ("Ten dollars off your next coffee.", _amount(10, "USD")),
    ("We take 500 rupees off your bill.", _amount(500, "INR")),
    ("Rs. 250 off on kurtas.", _amount(250, "INR")),
    ("Two for one on all mugs.", _BOGO),
    ("BOGO on socks.", _BOGO),
    ("Buy a pair, and the second one is on us.", _BOGO),
    ("20 % Rabatt auf alle Schuhe.", _percent(20)),
    ("25% de descuento en camisas.", _percent(25)),
    ("Versand gratis für alle Taschen.", _SHIPPING),
    ("Delivery is on the house.", _SHIPPING),
    ("We pay the postage on all books.", _SHIPPING),
    ("New shirts, 50% cotton.", {}),
    ("Face creams from $30.", {"currency": "USD"}),
    ("Gluten-free biscuits are back, 100% natural.", {}),
    ("Room 20 is now a tea house.", {}),
]
EASY_DEADLINES: list[Part] = [
    ("Today only!", {"deadline": True}),
    ("Ends at midnight!", {"deadline": True}),
    ("Only 24 hours left!", {"deadline": True}),
    ("Valid until 31 May.", {"deadline": True}),
    ("", {}),
    ("", {}),
]
HARD_DEADLINES: list[Part] = [
    ("Gone by Sunday night.", {"deadline": True}),
    ("Nur noch bis Freitag.", {"deadline": True}),
    ("Solo hasta el domingo.", {"deadline": True}),
    ("When the clock strikes twelve, it is over.", {"deadline": True}),
    ("At last, they are back.", {}),
    ("Open till late every day.", {}),
    ("", {}),
]
EASY_ACTIONS: list[Part] = [
    ("Shop now: https://lumovi.example/sale", {"link": True, "call_to_action": True}),
    ("Order at www.oakrill.example", {"link": True, "call_to_action": True}),
    ("Visit us in the shop.", {"call_to_action": True}),
    ("Reply YES to book.", {"call_to_action": True}),
    ("", {}),
]
HARD_ACTIONS: list[Part] = [
    ("Tap lumovi dot example slash sale", {"link": True, "call_to_action": True}),
    ("hxxps://bit[.]example/9x", {"link": True}),
    ("More on n o r d i m . example", {"link": True}),
    ("oakrill.example/x7", {"link": True}),
    ("Jetzt kaufen!", {"call_to_action": True}),
    ("Treat yourself.", {"call_to_action": True}),
    ("No need to order, just enjoy the view.", {}),
    ("Version 2.0 of our tea.", {}),
    ("", {}),
]
EASY_GREETINGS: list[Part] = [
    ("Anna, this is for you.", {"personal": True}),
    ("Hi Ben!", {"personal": True}),
    ("Dear customer,", {}),
    ("", {}),
]
HARD_GREETINGS: list[Part] = [
    ("hey farid -", {"personal": True}),
    ("Just for you, Grace:", {"personal": True}),
    ("Liebe Carla,", {"personal": True}),
    ("Hi there!", {}),
    ("Grace and beauty for all.", {}),
    ("", {}),
]
EASY_ENDS: list[Part] = [
    ("Reply STOP to opt out.", {"opt_out": True}),
    ("Text STOP to unsubscribe.", {"opt_out": True}),
    ("🎉", {"emoji": True}),
    ("", {}),
    ("", {}),
]
HARD_ENDS: list[Part] = [
    ("STOP=end", {"opt_out": True}),
    ("No more texts? Send NO.", {"opt_out": True}),
    ("Abmelden mit STOPP.", {"opt_out": True}),
    ("Don't stop dreaming.", {}),
    (":-)", {}),
    ("☕️", {"emoji": True}),
    ("", {}),
]
_SLOTS = (
    (EASY_GREETINGS, HARD_GREETINGS),
    (EASY_OFFERS, HARD_OFFERS),
    (EASY_DEADLINES, HARD_DEADLINES),
    (EASY_ACTIONS, HARD_ACTIONS),
    (EASY_ENDS, HARD_ENDS),
)
_BRANDS = ("Lumovi", "Fernwaye", "Oakrill", "Brisvale", "Nordim")


def gold(count: int, seed: int) -> list[tuple[str, Features]]:
    """Make `count` different messages, in each part easy or hard by a coin; the same for the same seed."""
    draw = random.Random(seed)
    made: dict[str, Features] = {}
    while len(made) < count:
        chosen = [draw.choice(slot[draw.random() < 0.5]) for slot in _SLOTS]
        text = " ".join(filter(None, [f"{draw.choice(_BRANDS)}:", *(part for part, _ in chosen)]))
        truth = _NONE.copy()
        for _, labels in chosen:
            truth |= labels
        made[text] = Features(**truth)
    return list(made.items())
