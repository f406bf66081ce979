"""The features of a marketing message by rules, and of which the rules are unsure."""

from __future__ import annotations

import re
from collections.abc import Collection

from core.sms import Currency, Discount, Features

_ONES = {
    **{"five": 5, "ten": 10, "fifteen": 15, "twenty": 20, "twenty-five": 25, "thirty": 30, "forty": 40},
    **{"fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90, "hundred": 100},
}
_NUMBER = rf"(?P<size>\d{{1,5}}|{'|'.join(sorted(_ONES, key=len, reverse=True))})"
_OFF = r"(?:off|discount|less|cheaper|reduced|rabatt|günstiger|de descuento|de réduction|korting)"
_MONEY = r"(?P<sign>\$|£|€|₹|Rs\.?|USD|EUR|GBP|INR|dollars?|bucks|pounds?|euros?|rupees?)"
_CURRENCIES: dict[str, Currency] = {
    **dict.fromkeys(("$", "usd", "dollar", "dollars", "bucks"), "USD"),
    **dict.fromkeys(("€", "eur", "euro", "euros"), "EUR"),
    **dict.fromkeys(("£", "gbp", "pound", "pounds"), "GBP"),
    **dict.fromkeys(("₹", "rs", "rs.", "inr", "rupee", "rupees"), "INR"),
}


def _rule(*expressions: str) -> re.Pattern[str]:
    return re.compile("|".join(expressions), re.IGNORECASE)


_BUY_ONE = _rule(
    r"\bbogo\b|\bb1g1\b",
    r"\bbuy (?:one|1|two|2)\b.{0,12}\bget (?:one|1|another|the)\b",
    r"\b(?:two|2|three|3)[- ]for[- ](?:one|1|two|2|the price of)\b",
)
_FREE_SHIPPING = _rule(
    r"\bfree (?:\w+ )?(?:shipping|delivery|postage)\b",
    r"\b(?:versandkostenfrei|kostenloser versand|gratis[- ]?versand|env[ií]o gratis|livraison gratuite)\b",
)
_PERCENT = [
    _rule(rf"\b{_NUMBER} ?(?:%|percent|pct|prozent)\s*{_OFF}\b"),
    _rule(rf"\b(?:save|sparen sie|spare|ahorra)\s+(?:up to |bis zu )?{_NUMBER} ?(?:%|percent|pct)"),
]
_HALF = _rule(r"\bhalf[- ](?:price|off)\b|\bhalber preis\b|\bmitad de precio\b")
_AMOUNT = [
    _rule(rf"(?<!\w){_MONEY} ?{_NUMBER}(?:\.\d\d)?\s*{_OFF}\b"),
    _rule(rf"\b{_NUMBER} ?{_MONEY}\s*{_OFF}\b"),
    _rule(rf"\bsave\s+(?:up to )?{_MONEY} ?{_NUMBER}"),
    _rule(rf"\bsave\s+{_NUMBER} ?{_MONEY}"),
]
_PRICE = _rule(rf"{_MONEY} ?\d", rf"\b\d+(?:[.,]\d\d)? ?{_MONEY.replace('sign', 'sign2')}(?!\w)")
_DEADLINE = _rule(
    r"\b(?:today|tonight|this week(?:end)?) only\b|\bonly (?:today|tonight)\b|\blast (?:chance|day|hours)\b",
    r"\b(?:ends?|expires?|valid|hurry)\b.{0,12}\b(?:midnight|today|tonight|tomorrow|soon|\w+day|until|by|\d)",
    r"\b\d+ (?:hours?|days?) (?:left|only)\b",
    r"\b(?:until|till|by)\s+(?:\d|midnight|tomorrow|tonight|(?:mon|tues|wednes|thurs|fri|satur|sun)day)",
    r"\bnur (?:noch )?(?:heute|bis)\b|\bsolo hoy\b",
)
_LINK = _rule(
    r"\b(?:https?|hxxps?)://\S+|\bwww\.\S+",
    r"\b[a-z0-9-]{2,}(?:\.|\[\.\]|\(\.\))(?:com|net|org|io|co|ly|me|app|shop|store|de|es|uk|in|example)\b(?:/\S*)?",
    r"\b\w+ dot (?:com|net|org|example)\b",
)
_ACTION = _rule(
    r"(?:^|[.!?:\-,\u2013]\s*|\band )(?:shop|buy|order|book|tap|click|visit|reply|call|get|grab|claim|use"
    r"|download|redeem|sign up|try|join|come)\b(?! stop\b)",
    r"\b(?:shop|buy|order|book) (?:now|today|online)\b|\bjetzt (?:kaufen|bestellen)\b|\bcompra(?: ya)?\b",
)
_OPT_OUT = _rule(
    r"\b(?:reply|text|send|txt)\s+(?:stop|end|quit|unsubscribe)\b|\bstop\s*(?:=|2 ?(?:end|quit))",
    r"\bstop to (?:end|opt)",
    r"\bopt[- ]?out\b|\bunsubscribe\b|\babmelden\b|\bdarse de baja\b",
)
_NAMED = re.compile(
    r"(?:\b(?:[Hh]i|[Hh]ey|[Hh]ello|[Dd]ear|[Ll]iebe[r]?|[Hh]ola)\s+(?P<name>[A-Z][a-zà-ÿ]+)\b)"
    r"|(?:(?:^|[:.!?]\s+)(?P<first>[A-Z][a-zà-ÿ]+|[A-Z]{3,}), (?:this|we|your|here|just|THIS|WE|YOUR))"
    r"|(?:\bfor you, (?P<last>[A-Z][a-zà-ÿ]+))"
)
_NOBODY = {"customer", "there", "all", "friend", "member", "shopper", "everyone", "kunde", "kundin"}
_EMOJI = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf\u2b50\u2b55\U0001f1e6-\U0001f1ff]")

# What may mean a feature that no rule found.
_MAYBE: dict[str, re.Pattern[str]] = {
    "discount": _rule(
        r"%|\bprice|\boff\b|\bsave|\bdeal|\bfree\b|\bgratis\b|\bon us\b|\bon the house\b|\brabatt",
        r"\bdescuento|\bsale\b|\bhalf\b|\bthird\b|\bpostage\b|\bdelivery\b|\bversand\b|\bsecond\b|\bless\b|\bcheap",
    ),
    "currency": _rule(r"\bmoney\b|\bcash\b|\bcents?\b|\bprice"),
    "deadline": _rule(
        r"\b(?:until|till|bis|hasta|by|before|over|last|soon|hurry|gone|ends?)\b|\b\w+day\b|\bclock\b|\w+tag\b"
    ),
    "link": _rule(r"\bdot\b|\bslash\b|\[\.\]|\w \. \w|\w\.\w|\b\w \w \w \w\b"),
    "call_to_action": _rule(r"\b(?:order|shop|buy|book|treat|enjoy|kaufen|bestellen|more on|come|see)\b|://"),
    "personal": _rule(r"\b(?:hi|hey|hello|dear|liebe|for you|you,)\b"),
    "opt_out": _rule(r"\b(?:stop|stopp|no more|end|texts)\b"),
}


def extract(message: str) -> tuple[Features, frozenset[str]]:
    """Return the features, and the fields that something speaks for though no rule found them."""
    discount, size, currency = _discount(message)
    if currency == "none" and (price := _PRICE.search(message)):
        currency = _currency(price["sign"] or price["sign2"])
    found = Features(
        discount=discount,
        size=size,
        currency=currency,
        deadline=bool(_DEADLINE.search(message)),
        link=bool(_LINK.search(message)),
        call_to_action=bool(_ACTION.search(_OPT_OUT.sub("", message))),
        personal=_is_personal(message),
        emoji=bool(_EMOJI.search(message)),
        opt_out=bool(_OPT_OUT.search(message)),
    )
    values = found.model_dump()
    unsure = {
        name for name, hint in _MAYBE.items() if values[name] in ("none", False) and hint.search(message)
    }
    return found, frozenset(unsure | ({"size"} if "discount" in unsure else set()))


def hybrid(found: Features, unsure: Collection[str], read: Features | None) -> Features:
    """What the rules `found`, but where they are `unsure` as a model has `read` it, if it has."""
    return found.model_copy(update={name: getattr(read, name) for name in unsure} if read else {})


def _discount(message: str) -> tuple[Discount, int, Currency]:
    if _BUY_ONE.search(message):
        return "buy_one_get_one", 0, "none"
    for rule in _PERCENT:
        if match := rule.search(message):
            return "percent", min(100, _size(match["size"])), "none"
    if _HALF.search(message):
        return "percent", 50, "none"
    for rule in _AMOUNT:
        if match := rule.search(message):
            return "amount", _size(match["size"]), _currency(match["sign"])
    return ("free_shipping" if _FREE_SHIPPING.search(message) else "none"), 0, "none"


def _size(number: str) -> int:
    return int(number) if number.isdecimal() else _ONES[number.lower()]


def _currency(sign: str) -> Currency:
    return _CURRENCIES[sign.lower()]


def _is_personal(message: str) -> bool:
    """Whether somebody is called by a name; the brand in front, which ends with a colon, is none."""
    names = (next(filter(None, match.groups())) for match in _NAMED.finditer(message))
    return any(name.lower() not in _NOBODY for name in names)
